"""Shared weights: equal to a model that holds copies, and trained by the sum over their uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.feedforward import FeedForward  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
Make = Callable[..., Decoder]


def loss(model: Decoder, text_BT: Tensor) -> Tensor:
    logits = model(text_BT[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), text_BT[:, 1:].flatten())


def unshared(shared: Decoder, make: Make, **changes: Any) -> Decoder:
    """The model without sharing whose every layer has a copy of what the shared one lends it."""
    copy = make(depth=shared.spec.depth, **changes)
    state = {}
    for name in copy.state_dict():
        layer, _, rest = name.partition(".feedforward.")
        at = f"shared_feedforward.{rest}" if rest and layer.startswith("blocks") else name
        source = shared.state_dict()
        state[name] = source[name] if name in source else source[at]
    copy.load_state_dict(state)
    return copy


@pytest.mark.parametrize("kind", ["swiglu", "gelu", "gelu-exact", "relu2"])
@pytest.mark.parametrize(
    ("share", "uses"),
    [
        ({"feedforward": "all"}, range(6)),
        ({"feedforward": "interior"}, range(1, 5)),
        ({"feedforward": "interior", "ends": 2}, range(2, 4)),
    ],
    ids=["all", "interior", "two ends"],
)
def test_a_lent_feedforward_is_a_copy_in_each_layer(
    decoder: Make, text_BT: Tensor, kind: str, share: dict[str, Any], uses: range
) -> None:
    feedforward = {"kind": kind, "hidden": 20, "bias": True}
    shared = decoder(depth=6, share=share, feedforward=feedforward)
    copies = unshared(shared, decoder, feedforward=feedforward)
    torch.testing.assert_close(shared(text_BT), copies(text_BT), **CLOSE)
    # The gradient of the one body is the sum over its uses.
    loss(shared, text_BT).backward()
    loss(copies, text_BT).backward()
    grads = {name: p.grad for name, p in copies.named_parameters()}
    for name, parameter in shared.named_parameters():
        _, lent, rest = name.partition("shared_feedforward.")
        summed = sum(grads[f"blocks.{i}.feedforward.{rest}"] for i in uses) if lent else grads[name]
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, summed, **CLOSE)


def test_a_body_with_updates_takes_the_gradients_of_all_its_uses(
    decoder: Make, text_BT: Tensor
) -> None:
    """W + V U in each layer as one matrix: their gradients sum to W's, and give V's and U's."""
    share = {"feedforward": "interior", "lora_rank": 3}
    shared, copies = decoder(depth=5, share=share), decoder(depth=5)
    state = copies.state_dict()
    with torch.no_grad():
        for name, tensor in shared.state_dict().items():
            if name in state:
                state[name].copy_(tensor)
        for i in (1, 2, 3):
            update, body = shared.blocks[i].update, shared.shared_feedforward
            low = [p.up.weight @ p.down.weight for p in (update.gate, update.up, update.down)]
            gate_up = body.gate_up.weight + torch.cat(low[:2])
            state[f"blocks.{i}.feedforward.gate_up.weight"].copy_(gate_up)
            state[f"blocks.{i}.feedforward.down.weight"].copy_(body.down.weight + low[2])
    torch.testing.assert_close(shared(text_BT), copies(text_BT), **CLOSE)
    loss(shared, text_BT).backward()
    loss(copies, text_BT).backward()
    for matrix in ("gate_up", "down"):
        grads = [getattr(copies.blocks[i].feedforward, matrix).weight.grad for i in (1, 2, 3)]
        body_grad = getattr(shared.shared_feedforward, matrix).weight.grad
        torch.testing.assert_close(body_grad, sum(grads), **CLOSE)
        if matrix == "down":
            for i, grad in zip((1, 2, 3), grads, strict=True):
                low = shared.blocks[i].update.down
                torch.testing.assert_close(low.up.weight.grad, grad @ low.down.weight.T, **CLOSE)
                torch.testing.assert_close(low.down.weight.grad, low.up.weight.T @ grad, **CLOSE)


@pytest.mark.parametrize("kind", ["swiglu", "gelu", "gelu-exact", "relu2"])
def test_low_rank_updates_are_those_of_the_formula(decoder: Make, kind: str) -> None:
    """(W + V U) x for each matrix W, with U and V of this use (arXiv:2405.14159)."""
    share = {"feedforward": "interior", "lora_rank": 3}
    model = decoder(depth=4, share=share, feedforward={"kind": kind, "hidden": 20}).double()
    assert model.blocks[0].update is None
    assert model.blocks[3].update is None
    body, x = model.shared_feedforward, torch.randn(5, 32, dtype=torch.float64)
    assert isinstance(body, FeedForward)
    for i in (1, 2):
        update = model.blocks[i].update
        into = body.gate_up.weight if kind == "swiglu" else body.up.weight
        parts = [update.gate, update.up] if kind == "swiglu" else [update.up]
        into = into + torch.cat([part.up.weight @ part.down.weight for part in parts])
        out = body.down.weight + update.down.up.weight @ update.down.down.weight
        z = x @ into.T
        if kind == "swiglu":
            gate, up = z[:, :20], z[:, 20:]
            hidden = gate / (1 + (-gate).exp()) * up
        elif kind == "gelu-exact":
            hidden = z * (1 + torch.erf(z / 2**0.5)) / 2
        elif kind == "gelu":
            inner = (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)
            hidden = 0.5 * z * (1 + inner.tanh())
        else:
            hidden = z.clamp(min=0) ** 2
        torch.testing.assert_close(body(x, update), hidden @ out.T)


def test_low_rank_updates_start_at_nothing() -> None:
    spec = ModelSpec.parse(
        {
            "vocab_size": 258,
            "width": 32,
            "depth": 3,
            "context": 64,
            "attention": {"heads": 4},
            "feedforward": {"hidden": 20},
            "share": {"feedforward": "interior", "lora_rank": 3},
        }
    )
    model = Decoder(spec)
    init_weights(model, 0)
    update = model.blocks[1].update
    x = torch.randn(5, 32)
    body = model.shared_feedforward
    assert torch.equal(body(x, update), body(x))
    assert update.gate.down.weight.abs().min() > 0, "else nothing would ever be learnt"


@pytest.mark.parametrize("repeat", [2, 3])
def test_a_repeated_block_is_its_copies_in_a_row(
    decoder: Make, text_BT: Tensor, repeat: int
) -> None:
    shared = decoder(depth=2, share={"block": "adjacent", "repeat": repeat})
    unrolled = decoder(depth=2 * repeat)
    state = shared.state_dict()
    copied = {}
    for name in unrolled.state_dict():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(int(parts[1]) // repeat)
        copied[name] = state[".".join(parts)]
    unrolled.load_state_dict(copied)
    torch.testing.assert_close(shared(text_BT), unrolled(text_BT), **CLOSE)
    loss(shared, text_BT).backward()
    loss(unrolled, text_BT).backward()
    for i, block in enumerate(shared.blocks):
        for name, parameter in block.named_parameters():
            copies = [unrolled.blocks[i * repeat + r].get_parameter(name) for r in range(repeat)]
            summed = torch.stack([c.grad for c in copies]).sum(dim=0)
            torch.testing.assert_close(parameter.grad, summed, **CLOSE)


def test_tied_embeddings_take_both_gradients(decoder: Make, text_BT: Tensor) -> None:
    tied, untied = decoder(tie_embeddings=True), decoder()
    state = tied.state_dict()
    untied.load_state_dict({**state, "head.weight": state["embedding.weight"]})
    torch.testing.assert_close(tied(text_BT), untied(text_BT))
    loss(tied, text_BT).backward()
    loss(untied, text_BT).backward()
    both = untied.embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.embedding.weight.grad, both, **CLOSE)


@torch.no_grad()
def test_scales_are_factors_of_the_weights(decoder: Make, text_BT: Tensor) -> None:
    """Each multiplier equals a model whose weights carry it (norms have no such freedom)."""
    scale = {"embedding": 12.0, "residual": 0.3, "logits": 0.25}
    scaled, plain = decoder(scale=scale), decoder()
    state = {name: tensor.clone() for name, tensor in scaled.state_dict().items()}
    for name in state:
        if name == "embedding.weight":
            state[name] *= 12.0
        elif name.endswith(("attention.output.weight", "feedforward.down.weight")):
            state[name] *= 0.3
        elif name == "head.weight":
            state[name] *= 0.25
    plain.load_state_dict(state)
    torch.testing.assert_close(scaled(text_BT), plain(text_BT), **CLOSE)


@torch.no_grad()
def test_scores_over_d_are_queries_over_its_root(decoder: Make, text_BT: Tensor) -> None:
    attention = {"heads": 4, "kv_heads": 2}
    by_d, by_root = decoder(attention={**attention, "scale": "1/d"}), decoder(attention=attention)
    state = {name: tensor.clone() for name, tensor in by_d.state_dict().items()}
    for name in state:
        if name.endswith("qkv.weight"):
            state[name][:32] *= 8**-0.5
    by_root.load_state_dict(state)
    torch.testing.assert_close(by_d(text_BT), by_root(text_BT), **CLOSE)


@torch.no_grad()
def test_normalised_queries_ignore_their_size(decoder: Make, text_BT: Tensor) -> None:
    model = decoder(attention={"heads": 4, "qk_norm": True})
    before = model(text_BT)
    for block in model.blocks:
        block.attention.qkv.weight[:64] *= 7.0
    torch.testing.assert_close(model(text_BT), before, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"share": {"feedforward": "all"}},
        {"share": {"feedforward": "interior", "lora_rank": 3}, "depth": 4},
        {"share": {"block": "adjacent", "repeat": 2}},
        {"tie_embeddings": True},
    ],
    ids=["all", "interior", "adjacent", "tied"],
)
def test_compiled_blocks_have_the_gradients_of_eager_ones(
    decoder: Make, text_BT: Tensor, changes: dict[str, Any]
) -> None:
    """Which are the sums over the copies of an unshared model, by the tests above."""
    model = decoder(**changes)
    found = []
    for _ in range(2):
        loss(model, text_BT).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
        for part in (*model.blocks, model.norm):
            part.compile()
    eager, compiled = found
    for name, gradient in eager.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(compiled[name], gradient, **CLOSE, msg=name)
