"""Tensor parallelism (arXiv:1909.08053) by DTensor: heads and hidden features split among
processes, with one sum after attention and one after the feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from flyweight.model.attention import Attention, Scene
from flyweight.model.decoder import Decoder
from flyweight.model.feedforward import FeedForward
from flyweight.model.layers import Linear
from flyweight.spec.errors import ConfigurationError


@dataclass
class Split:
    """A parameter in equal parts along ``dim``. ``order``: its rows, regrouped by process.

    Queries, keys and values are the rows of one matrix, and so are gate and up; each process
    takes a share of every one of them.
    """

    dim: int
    ways: int
    order: Tensor | None = None

    def local(self, shape: torch.Size) -> torch.Size:
        sizes = list(shape)
        sizes[self.dim] //= self.ways
        return torch.Size(sizes)

    def parted(self, whole: Tensor) -> Tensor:
        return whole if self.order is None else whole[self.order]

    def merged(self, grouped: Tensor) -> Tensor:
        return grouped if self.order is None else grouped[self.order.argsort()]


def split_heads(model: Decoder, mesh: DeviceMesh) -> dict[str, Split]:
    """Split every block's matrices among the processes of ``mesh``, in place; by name, how.

    Raises ConfigurationError where the model does not divide.
    """
    ways = mesh.size()
    _check(model, ways)
    splits: dict[str, Split] = {}
    for name, part in model.named_modules():
        if isinstance(part, Attention) and name.startswith("blocks."):
            heads = [part.heads, part.kv_heads, part.kv_heads]
            order = _regrouped([count * part.head_dim for count in heads], ways)
            _split_linear(f"{name}.qkv", part.qkv, mesh, 0, order, splits)
            _split_linear(f"{name}.output", part.output, mesh, 1, None, splits)
            part.heads, part.kv_heads = part.heads // ways, part.kv_heads // ways
            part.register_forward_pre_hook(_own_heads(mesh), with_kwargs=False)
        elif isinstance(part, FeedForward) and name.startswith(("blocks.", "shared_feedforward")):
            first = "gate_up" if part.gated else "up"
            linear = part.gate_up if part.gated else part.up
            rows = len(linear.weight)
            halves = _regrouped([rows // 2] * 2, ways) if part.gated else None
            _split_linear(f"{name}.{first}", linear, mesh, 0, halves, splits)
            _split_linear(f"{name}.down", part.down, mesh, 1, None, splits)
    return splits


def _check(model: Decoder, ways: int) -> None:
    spec = model.spec
    counts = {
        "attention.heads": spec.attention.heads,
        "attention.kv_heads": spec.kv_heads,
        "feedforward.hidden": spec.feedforward.hidden,
    }
    for name, count in counts.items():
        if count % ways:
            raise ConfigurationError(
                f"distributed.tensor = {ways} does not divide model.{name} = {count}"
            )
    if spec.share.lora_rank:
        raise ConfigurationError(
            "distributed.tensor does not cover share.lora_rank (low-rank updates of a shared"
            " feed-forward); leave it at 1"
        )


def _regrouped(sizes: list[int], ways: int) -> Tensor:
    """Rows stacked as parts of ``sizes``, in the order of a process's share of each part."""
    parts = torch.arange(sum(sizes)).split(sizes)
    return torch.cat([part.chunk(ways)[rank] for rank in range(ways) for part in parts])


def _split_linear(
    name: str,
    linear: Linear,
    mesh: DeviceMesh,
    dim: int,
    order: Tensor | None,
    splits: dict[str, Split],
) -> None:
    """A linear map's outputs (dim 0) split, or its inputs (dim 1): the products are then summed."""
    outputs = dim == 0
    splits[f"{name}.weight"] = Split(dim, mesh.size(), order)
    _distribute(linear, "weight", mesh, Shard(dim), splits[f"{name}.weight"])
    if linear.bias is not None:
        if outputs:
            splits[f"{name}.bias"] = Split(0, mesh.size(), order)
            _distribute(linear, "bias", mesh, Shard(0), splits[f"{name}.bias"])
        else:
            _distribute(linear, "bias", mesh, Replicate(), None)
    entry = Replicate() if outputs else Shard(-1)

    def enter(_: nn.Module, args: tuple[Tensor]) -> Any:
        return DTensor.from_local(args[0], mesh, [entry], run_check=False)

    def leave(_: nn.Module, __: Any, output: DTensor) -> Tensor:
        found = output if outputs else output.redistribute(placements=[Replicate()])
        return found.to_local()

    linear.register_forward_pre_hook(enter)
    linear.register_forward_hook(leave)


def _distribute(
    linear: Linear, leaf: str, mesh: DeviceMesh, placement: Placement, split: Split | None
) -> None:
    parameter = getattr(linear, leaf)
    values = parameter.detach() if split is None else split.parted(parameter.detach())
    spread = distribute_tensor(values.contiguous(), mesh, [placement], src_data_rank=None)
    setattr(linear, leaf, nn.Parameter(spread, requires_grad=parameter.requires_grad))


def _own_heads(mesh: DeviceMesh) -> Any:
    """A hook that cuts a mask which differs by head (ALiBi) to the heads that are here."""

    def cut(attention: Attention, args: tuple[Any, ...]) -> Any:
        x, scene, *rest = args
        if isinstance(scene, Scene) and scene.mask is not None and scene.mask.ndim > 2:
            if scene.mask.shape[-3] == attention.heads * mesh.size():
                first = mesh.get_local_rank() * attention.heads
                mask = scene.mask.narrow(-3, first, attention.heads)
                return x, replace(scene, mask=mask), *rest
        return args

    return cut
