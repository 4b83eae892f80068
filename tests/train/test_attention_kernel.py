"""The gradient of attention on the CPU in bfloat16, against PyTorch's in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from flyweight.engine._native import kernels  # noqa: E402
from flyweight.model import attention_gradient  # noqa: E402
from flyweight.model.attention_gradient import attention  # noqa: E402
from flyweight.train.attention_kernel import gradients as kernel  # noqa: E402
from flyweight.train.attention_kernel import hand_in  # noqa: E402

SETS = kernels.instruction_sets()


@pytest.fixture(params=SETS, autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FLYWEIGHT_ISA", request.param)
    monkeypatch.setattr(attention_gradient, "kernel", kernel)
    return str(request.param)


def leaves(
    seed: int, batch: int, heads: int, kv_heads: int, length: int, dim: int
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values as the model hands them over (a transposed view), and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    rows = heads + 2 * kv_heads
    qkv = torch.randn(batch, length, rows, dim, generator=generator).bfloat16().transpose(1, 2)
    grad = torch.randn(batch, heads, length, dim, generator=generator).bfloat16()
    return list(qkv.split((heads, kv_heads, kv_heads), dim=1)), grad


def gradients(
    values: list[Tensor], grad: Tensor, mask: Tensor | None, dtype: torch.dtype, ours: bool
) -> list[Tensor]:
    some = [value.detach().to(dtype).requires_grad_() for value in values]
    scale = some[0].shape[-1] ** -0.5
    if ours:
        y = attention(*some, mask, mask is None, scale)
    else:
        y = F.scaled_dot_product_attention(
            *some, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    return list(torch.autograd.grad(y, some, grad.to(dtype)))


def documents(length: int, cut: int) -> Tensor:
    """(2, 1, T, T): causal, the first row's positions from ``cut`` on a document of their own."""
    mask = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    mask[0, :, cut:, :cut] = False
    return mask


def prefix(length: int, cut: int) -> Tensor:
    """(1, 1, T, T): causal, but the first ``cut`` positions see each other both ways."""
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    mask[..., :cut, :cut] = True
    return mask


def far(some: list[Tensor], truth: list[Tensor]) -> list[float]:
    pairs = zip(some, truth, strict=True)
    return [float((a.double() - b).norm() / b.norm()) for a, b in pairs]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    length=st.integers(1, 300),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    dim=st.sampled_from((8, 20, 32, 64, 80)),
    kind=st.sampled_from((None, documents, prefix)),
    cut=st.integers(0, 300),
    seed=st.integers(0, 99),
)
def test_it_is_as_near_to_the_truth_as_bfloat16_allows(
    length: int,
    groups: int,
    kv_heads: int,
    dim: int,
    kind: Callable[[int, int], Tensor] | None,
    cut: int,
    seed: int,
) -> None:
    values, grad = leaves(seed, 2, groups * kv_heads, kv_heads, length, dim)
    mask = None if kind is None else kind(length, min(cut, length))
    truth = gradients(values, grad, mask, torch.float64, ours=False)
    ours = gradients(values, grad, mask, torch.bfloat16, ours=True)
    # Of few positions' terms the greater part cancels; what was rounded off them does not.
    rounded = 0.008 * float(grad.double().norm()) if length < 8 else 0.0
    for mine, true in zip(ours, truth, strict=True):
        # Three roundings to 8 bits, each of relative error 2^-9 at most, and their sums' own.
        assert float((mine.double() - true).norm()) <= 0.012 * float(true.norm()) + rounded


def test_large_scores_lose_no_more() -> None:
    values, grad = leaves(0, 2, 2, 2, 200, 64)
    values[0] = values[0] * 8  # scores of standard deviation 8: attention to one or two keys
    truth = gradients(values, grad, None, torch.float64, ours=False)
    theirs = far(gradients(values, grad, None, torch.bfloat16, ours=False), truth)
    ours = far(gradients(values, grad, None, torch.bfloat16, ours=True), truth)
    assert all(a < 3 * b + 0.01 for a, b in zip(ours, theirs, strict=True))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    values, grad = leaves(1, 3, 4, 2, 257, 32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found.append(gradients(values, grad, None, torch.bfloat16, ours=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_it_is_handed_in_where_it_is_fast(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_gradient, "kernel", None)
    hand_in()
    assert (attention_gradient.kernel is None) == (isa == "portable")
    values, grad = leaves(0, 1, 2, 2, 40, 16)
    for value in gradients(values, grad, None, torch.bfloat16, ours=True):
        assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_it_is_pytorchs_own(dtype: torch.dtype) -> None:
    values, _ = leaves(2, 1, 2, 2, 50, 16)
    values = [value.to(dtype) for value in values]
    with torch.no_grad():
        ours = attention(*values, None, True, 0.25)
    theirs = F.scaled_dot_product_attention(*values, is_causal=True, scale=0.25)
    assert torch.equal(ours, theirs)
