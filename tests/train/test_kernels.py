"""Training's kernels on every instruction set, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from flyweight.engine._native import kernels  # noqa: E402
from flyweight.model import kernels as model_kernels  # noqa: E402
from flyweight.model.attention_gradient import attention  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.model.positions import rotate  # noqa: E402
from flyweight.spec.errors import FlyweightError  # noqa: E402
from flyweight.train.kernels import TrainingKernels, hand_in  # noqa: E402
from flyweight.train.objective import next_token_loss  # noqa: E402
from flyweight.zoo import catalog  # noqa: E402

SETS = kernels.instruction_sets()


@pytest.fixture(params=SETS, autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FLYWEIGHT_ISA", request.param)
    monkeypatch.setattr(model_kernels, "handed_in", TrainingKernels())
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


@pytest.mark.parametrize("kind", [None, documents])
def test_a_key_that_is_not_seen_may_have_any_score(
    kind: Callable[[int, int], Tensor] | None,
) -> None:
    values, grad = leaves(4, 2, 2, 2, 150, 64)
    values[0] = values[0] * 50  # e^score is beyond float32 for many a later key
    mask = None if kind is None else kind(150, 70)
    truth = gradients(values, grad, mask, torch.float64, ours=False)
    theirs = far(gradients(values, grad, mask, torch.bfloat16, ours=False), truth)
    ours = far(gradients(values, grad, mask, torch.bfloat16, ours=True), truth)
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
    monkeypatch.setattr(model_kernels, "handed_in", None)
    hand_in()
    assert (model_kernels.handed_in is None) == (isa == "portable")
    values, grad = leaves(0, 1, 2, 2, 40, 16)
    for value in gradients(values, grad, None, torch.bfloat16, ours=True):
        assert value.isfinite().all()


def test_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWEIGHT_ISA", "sse9")
    with pytest.raises(FlyweightError, match=r"FLYWEIGHT_ISA = sse9.*portable"):
        hand_in()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_it_is_pytorchs_own(dtype: torch.dtype) -> None:
    values, _ = leaves(2, 1, 2, 2, 50, 16)
    values = [value.to(dtype) for value in values]
    with torch.no_grad():
        ours = attention(*values, None, True, 0.25)
    theirs = F.scaled_dot_product_attention(*values, is_causal=True, scale=0.25)
    assert torch.equal(ours, theirs)


def grads(f: Callable[..., Tensor], grad: Tensor, *given: Tensor) -> list[Tensor]:
    """The value and the gradients by ``given``."""
    leaves = [t.detach().clone().requires_grad_() for t in given]
    # A view, as the model's queries and keys are: rows are not side by side in memory.
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def near(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    for mine, true in zip(found, wanted, strict=True):
        assert mine.dtype in (dtype, torch.float32)
        loose = 1e-6 if mine.dtype == torch.float32 and dtype == torch.float32 else 5e-3
        assert (mine.double() - true).norm() <= loose * true.norm() + 1e-12


some = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = st.sampled_from((torch.float32, torch.bfloat16))


@some
@given(
    dtype=DTYPES,
    length=st.integers(1, 400),
    width=st.integers(1, 100),
    gained=st.booleans(),
    size=st.sampled_from((1e-6, 1.0, 1e3)),
    seed=st.integers(0, 99),
)
def test_rms_norm(
    dtype: torch.dtype, length: int, width: int, gained: bool, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (size * torch.randn(2, length, 3, width, generator=generator)).to(dtype)
    grad = torch.randn(2, 3, length, width, generator=generator).to(dtype)
    gain = [torch.rand(width, generator=generator) + 0.5] if gained else []

    def plain(x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.rms_norm(x.transpose(1, 2), (width,), weight, 1e-5)

    def ours(x: Tensor, weight: Tensor | None = None) -> Tensor:
        return TrainingKernels().rms_norm(x.transpose(1, 2), weight, 1e-5)

    wanted = grads(plain, grad, x.double(), *(g.double() for g in gain))
    found = grads(ours, grad, x, *gain)
    # Of few numbers' gradient little is left when its part along x is taken off.
    rms = (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt().transpose(1, 2)
    whole = [0, (grad.double() / rms).norm(), 0]
    for mine, true, more in zip(found, wanted, whole, strict=False):
        loose = 1e-5 if dtype == torch.float32 else 5e-3
        scale = true.norm() + more
        assert (mine.double() - true).norm() <= loose * scale


@some
@given(
    dtype=DTYPES,
    length=st.integers(1, 50),
    pairs=st.integers(1, 40),
    rest=st.integers(0, 20),
    layout=st.sampled_from(("half", "interleaved")),
    seed=st.integers(0, 99),
)
def test_rotations(
    dtype: torch.dtype, length: int, pairs: int, rest: int, layout: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, length, 3, 2 * pairs + rest, generator=generator).to(dtype)
    grad = torch.randn(2, 3, length, 2 * pairs + rest, generator=generator).to(dtype)
    angles = 9 * torch.randn(length, pairs, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    wanted = grads(
        lambda x: rotate(x.transpose(1, 2), cos.double(), sin.double(), layout), grad, x.double()
    )
    found = grads(lambda x: TrainingKernels().rotate(x.transpose(1, 2), cos, sin, layout), grad, x)
    near(found, wanted, dtype)


@some
@given(dtype=DTYPES, rows=st.integers(1, 50), width=st.integers(1, 100), seed=st.integers(0, 99))
def test_squared_relu(dtype: torch.dtype, rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, width, generator=generator).to(dtype)
    grad = torch.randn(2, rows, width, generator=generator).to(dtype)
    wanted = grads(lambda x: torch.relu(x).square(), grad, x.double())
    near(grads(TrainingKernels().relu2, grad, x), wanted, dtype)


def test_a_model_trains_with_them_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and gradients from the whole default model, within rounding."""
    spec = catalog.get("quickstart").spec
    tokens = torch.randint(0, 256, (2, 200), generator=torch.Generator().manual_seed(0))
    found = []
    for kernels_now in (TrainingKernels(), None):
        monkeypatch.setattr(model_kernels, "handed_in", kernels_now)
        model = Decoder(spec)
        init_weights(model, 0)
        torch.manual_seed(0)
        loss = next_token_loss(model, tokens[:, :-1], tokens[:, 1:], None, torch.float32, 398)
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    (ours, mine), (plain, theirs) = found
    assert ours == pytest.approx(plain, rel=1e-6)
    for name, gradient in theirs.items():
        if gradient is not None:
            assert (mine[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, name
