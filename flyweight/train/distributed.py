"""One model in many processes: PyTorch's FSDP2, with heads and hidden features split or not.

``distributed.shard`` is what each process keeps a part of only, as ZeRO's stages (arXiv:1910.02054)
do: nothing, the optimiser's state, gradients too, parameters too. Losses are summed over the whole
batch's targets and so are gradients: the number of processes changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from flyweight.files.tensors import TensorFile
from flyweight.model.decoder import Decoder
from flyweight.model.weights import check_shapes
from flyweight.spec.run import Distributed
from flyweight.train.layout import Layout, Rows
from flyweight.train.optimizer import coalesce
from flyweight.train.processes import Processes
from flyweight.train.sharded_muon import ShardedMuon
from flyweight.train.tensor_parallel import Split, split_heads

# Gradients that are summed at once, in bytes: few exchanges, and little memory besides.
_BUCKET = 32 << 20


@dataclass
class Place:
    """Where a parameter is: ``split`` among the tensor-parallel processes, then ``sharded`` in
    rows among the data-parallel ones. ``shape``: as a single process has it.
    """

    shape: torch.Size
    split: Split | None
    sharded: bool


class Sharded(Layout):
    """A process's part of ``model``, which is changed in place. All must make theirs alike."""

    def __init__(self, model: Decoder, spec: Distributed, processes: Processes) -> None:
        self.processes, self.model, self.spec = processes, model, spec
        mesh = processes.mesh
        assert mesh is not None
        self.data, self.tensor = mesh["data"], mesh["tensor"]
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        ngrams = model.embedding.ngrams
        # Any row of a hashed table may be asked for anywhere: it stays whole in every process.
        tables = set() if ngrams is None else {ngrams.table}
        splits = split_heads(model, self.tensor) if processes.tensor > 1 else {}
        self.fully = spec.shard != "none" and processes.copies > 1
        if self.fully:
            keep = spec.shard != "parameters"
            # What blocks share belongs to the root, which is whole from forward to backward.
            for unit in (*model.blocks, *(model.ahead.steps if model.ahead is not None else ())):
                fully_shard(
                    unit, mesh=self.data, reshard_after_forward=not keep, ignored_params=tables
                )
            fully_shard(model, mesh=self.data, reshard_after_forward=False, ignored_params=tables)
            register_fsdp_forward_method(model, "hidden")
            for part in self._parts():
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        kept = {name for name, p in model.named_parameters() if p in tables}
        kept |= {name for name, _ in model.named_buffers()}
        self.places = {
            name: Place(shape, splits.get(name), self.fully and name not in kept)
            for name, shape in shapes.items()
        }
        self.pieces: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}

    def _parts(self) -> Iterator[FSDPModule]:
        return (part for part in self.model.modules() if isinstance(part, FSDPModule))

    @torch.no_grad()
    def piece_of(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        piece = parameter
        if isinstance(parameter, DTensor):
            piece = nn.Parameter(parameter.to_local())
        self.pieces[name] = piece, parameter
        return piece

    def accumulate(self, last: bool) -> None:
        if not self.fully:
            return
        # "optimizer" sums gradients once a step, the others after every micro-batch; what is to
        # stay whole does so until the parameters change.
        sync = last or self.spec.shard != "optimizer"
        again = last or self.spec.shard == "parameters"
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(sync)
        self.model.set_reshard_after_backward(again)

    @torch.no_grad()
    def collect(self) -> None:
        plain = []
        for name, (piece, parameter) in self.pieces.items():
            if piece is not parameter:
                grad, parameter.grad = parameter.grad, None
                if isinstance(grad, DTensor) and isinstance(parameter, DTensor):
                    grad = grad.redistribute(placements=parameter.placements).to_local()
                piece.grad = grad
            if piece.grad is None:
                continue
            if not self.places[name].sharded:
                plain.append(piece.grad)
            if self._of_own_heads(name):
                dist.all_reduce(piece.grad, group=self.tensor.get_group())
        if self.processes.copies > 1:
            for bucket in _buckets(plain):
                flat = torch.cat([grad.reshape(-1) for grad in bucket])
                dist.all_reduce(flat, group=self.data.get_group())
                sizes = [grad.numel() for grad in bucket]
                for grad, total in zip(bucket, flat.split(sizes), strict=True):
                    grad.copy_(total.view(grad.shape))

    def _of_own_heads(self, name: str) -> bool:
        """Whether a gradient is that of this process's heads alone: a gain is every head's."""
        block, _, norm = name.rpartition(".attention.")
        return norm in ("query_norm.weight", "key_norm.weight") and (
            self.places[f"{block}.attention.qkv.weight"].split is not None
        )

    def forget(self) -> None:
        for _, parameter in self.pieces.values():
            parameter.grad = None

    @torch.no_grad()
    def collect_rows(self, rows: Rows) -> Rows:
        group, copies = self.data.get_group(), self.processes.copies
        if copies == 1:
            return rows
        index_U, grads_UD = rows
        counts = [torch.zeros(1, dtype=torch.int64, device=index_U.device) for _ in range(copies)]
        dist.all_gather(counts, counts[0].new_tensor([len(index_U)]), group=group)
        most = max(int(count) for count in counts)
        every_index = [index_U.new_zeros(most) for _ in counts]
        every_grad = [grads_UD.new_zeros(most, grads_UD.shape[1]) for _ in counts]
        dist.all_gather(every_index, _padded(index_U, most), group=group)
        dist.all_gather(every_grad, _padded(grads_UD, most), group=group)
        index = torch.cat([part[: int(n)] for part, n in zip(every_index, counts, strict=True)])
        grads = torch.cat([part[: int(n)] for part, n in zip(every_grad, counts, strict=True)])
        return coalesce(index, grads)

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        norms = torch._foreach_norm(list(grads.values()))
        squares = torch.stack(norms).double().square().tolist()
        # What several processes hold alike counts once.
        return (
            self.processes.sum(
                sum(s / self._holders(n) for n, s in zip(grads, squares, strict=True))
            )
            ** 0.5
        )

    def _holders(self, name: str) -> int:
        place = self.places[name]
        holders = 1 if place.sharded else self.processes.copies
        return holders * (1 if place.split else self.processes.tensor)

    def muon(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        names = {id(piece): name for name, (piece, _) in self.pieces.items()}
        return ShardedMuon(groups, names, self, **settings)

    @torch.no_grad()
    def gathered(self, name: str, piece: Tensor) -> Tensor:
        """The whole tensor of every process's piece, in every process."""
        place = self.places[name]
        if piece.ndim == 0:
            return piece
        if place.sharded:
            shape = place.shape if place.split is None else place.split.local(place.shape)
            piece = _full(piece, self.data, 0, shape)
        if place.split is not None:
            piece = _full(piece, self.tensor, place.split.dim, place.shape)
            piece = place.split.merged(piece)
        return piece

    def whole(self, name: str, piece: Tensor) -> Tensor | None:
        found = self.gathered(name, piece)
        return found.cpu() if self.processes.leader else None

    @torch.no_grad()
    def piece(self, name: str, whole: Tensor) -> Tensor:
        place = self.places[name]
        if whole.ndim == 0:
            return whole
        if place.split is not None:
            rank = self.tensor.get_local_rank()
            whole = place.split.parted(whole).chunk(self.processes.tensor, place.split.dim)[rank]
        if place.sharded:
            parts = whole.chunk(self.processes.copies, 0)
            index = self.data.get_local_rank()
            whole = parts[index] if index < len(parts) else whole[:0]
        return whole

    def weights(self, model: Decoder) -> dict[str, Tensor]:
        found = {name: self.whole(name, _local(t)) for name, t in model.state_dict().items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @torch.no_grad()
    def load_weights(self, model: Decoder, path: Path) -> None:
        tensors = TensorFile(path)
        check_shapes({name: place.shape for name, place in self.places.items()}, tensors, path)
        for name, tensor in model.state_dict().items():
            _local(tensor).copy_(self.piece(name, tensors[name]))


@torch.no_grad()
def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _full(piece: Tensor, mesh: Any, dim: int, shape: torch.Size) -> Tensor:
    stride = torch.empty(shape, device="meta").stride()
    spread = DTensor.from_local(
        piece.contiguous(), mesh, [Shard(dim)], run_check=False, shape=shape, stride=stride
    )
    return spread.full_tensor()


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat((x, x.new_zeros(rows - len(x), *x.shape[1:])))


def _buckets(grads: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for grad in grads:
        bucket.append(grad)
        if sum(g.nbytes for g in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
