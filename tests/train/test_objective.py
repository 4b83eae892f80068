"""The fused loss against PyTorch's own in float64: values and gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.train.cross_entropy import LinearCrossEntropy, Terms, cross_entropy  # noqa: E402
from flyweight.train.objective import next_token_loss  # noqa: E402


def inputs(rows: int, width: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + vocab)
    h = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator) * 2 * width**-0.5
    return h, weight, torch.randint(0, vocab, (rows,), generator=generator)


def exact(h: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, ...]:
    h, weight = (t.double().requires_grad_() for t in (h, weight))
    loss = F.cross_entropy(scale * (h @ weight.T), targets, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, (h, weight))


def fused(h: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, ...]:
    h, weight = h.requires_grad_(), weight.requires_grad_()
    loss = LinearCrossEntropy.apply(h, weight, targets, Terms(scale))[0]
    return loss.detach(), *torch.autograd.grad(loss, (h, weight))


# The last two have more logits than are held at a time, in chunks that do not divide the rows.
SHAPES = [(1, 4, 2), (7, 5, 3), (300, 16, 258), (1001, 8, 20_011), (50, 6, 250_007)]


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_float64s(shape: tuple[int, int, int], scale: float) -> None:
    arguments = inputs(*shape)
    for found, wanted in zip(fused(*arguments, scale), exact(*arguments, scale), strict=True):
        assert found.dtype == torch.float32
        # As near as PyTorch's own float32 loss is over 250,007 classes (1.3e-4).
        assert (found.double() - wanted).norm() < 2e-4 * wanted.norm()


@pytest.mark.parametrize("shape", SHAPES[2:4])
def test_bfloat16_is_near(shape: tuple[int, int, int]) -> None:
    h, weight, targets = inputs(*shape)
    loss, grad_h, grad_w = exact(h.bfloat16(), weight.bfloat16(), targets, 0.5)
    found = fused(h.bfloat16(), weight, targets, 0.5)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == torch.bfloat16
    assert found[2].dtype == torch.float32, "weights' gradients stay whole"
    assert found[0].item() == pytest.approx(loss.item(), rel=2e-3)
    for rough, wanted in zip(found[1:], (grad_h, grad_w), strict=True):
        error = (rough.double() - wanted).norm() / wanted.norm()
        assert error < 0.02


def test_the_gradient_is_scaled_by_what_follows() -> None:
    h, weight, targets = inputs(30, 8, 40)
    whole = fused(h, weight, targets, 1.0)
    loss = LinearCrossEntropy.apply(h, weight, targets, Terms())[0] / 7
    for part, grad in zip(torch.autograd.grad(loss, (h, weight)), whole[1:], strict=True):
        torch.testing.assert_close(part, grad / 7)


def test_finite_differences_agree() -> None:
    h, weight, targets = inputs(6, 5, 9)
    _, grad_h, grad_w = fused(h, weight, targets, 0.7)
    step = 1e-2
    for tensor, grad in ((h, grad_h), (weight, grad_w)):
        direction = torch.randn_like(tensor)
        moved = []
        for sign in (1, -1):
            with torch.no_grad():
                shifted = tensor + sign * step * direction
                pair = (shifted, weight) if tensor is h else (h, shifted)
                moved.append(LinearCrossEntropy.apply(*pair, targets, Terms(0.7))[0].item())
        slope = (moved[0] - moved[1]) / (2 * step)
        assert slope == pytest.approx((grad * direction).sum().item(), rel=1e-2, abs=1e-3)


def test_without_gradients_the_value_is_the_same() -> None:
    h, weight, targets = inputs(300, 16, 258)
    with torch.no_grad():
        plain = LinearCrossEntropy.apply(h, weight, targets, Terms())[0]
    assert torch.equal(plain, fused(h, weight, targets, 1.0)[0])


def test_a_bias_on_the_head_is_trained() -> None:
    """The fused loss of a model whose logits have a bias, and its gradients, are the plain ones."""
    spec = ModelSpec.parse(
        {
            "vocab_size": 258,
            "width": 16,
            "depth": 1,
            "context": 32,
            "attention": {"heads": 2},
            "feedforward": {"hidden": 24},
            "scale": {"logits": 0.5},
            "logit_bias": True,
        }
    )
    model = Decoder(spec)
    init_weights(model, 0)
    assert model.head is not None and model.head.bias is not None
    with torch.no_grad():
        model.head.bias.copy_(torch.linspace(-2, 2, 258))
    tokens, targets = torch.randint(0, 258, (2, 3, 20)).unbind(0)
    plain = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    parameters = list(model.parameters())
    expected = torch.autograd.grad(plain, parameters)
    loss = next_token_loss(model, tokens, targets, None, torch.float32)
    torch.testing.assert_close(loss, plain)
    for found, wanted in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_impossible_target_still_has_its_loss() -> None:
    """A probability that float32 cannot hold: the loss is a number, and exact."""
    h, weight, targets = inputs(40, 8, 100)
    found, wanted = (f(h * 40, weight * 40, targets, 1.0) for f in (fused, exact))
    assert wanted[0] > 40 * 100, "the targets are improbable"
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=0)
    assert all(grad.isfinite().all() for grad in found[1:])


def test_a_divisor_divides_the_loss_and_its_gradients() -> None:
    h, weight, targets = inputs(1001, 8, 20_011)
    whole = fused(h, weight, targets, 0.5)
    h, weight = h.requires_grad_(), weight.requires_grad_()
    loss = LinearCrossEntropy.apply(h, weight, targets, Terms(0.5, 1001.0))[0]
    parts = (loss, *torch.autograd.grad(loss, (h, weight)))
    for part, all_of_it in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.detach(), all_of_it / 1001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "terms", [Terms(0.7, 3.0, 0.1, 1e-2), Terms(-1.3, z=0.5), Terms(smoothing=1.0)]
)
def test_smoothing_and_z_loss(dtype: torch.dtype, terms: Terms) -> None:
    """Both ways of computing them (the kernel's, and PyTorch's for other devices) in float64's."""
    _, _, targets = inputs(64, 4, 301)
    targets[::5] = -1
    logits = 4 * torch.randn(64, 301, generator=torch.Generator().manual_seed(3)).to(dtype)
    x = logits.double().requires_grad_()
    u, counts = x * terms.scale, targets >= 0
    plain = F.cross_entropy(
        u, targets, ignore_index=-1, reduction="sum", label_smoothing=terms.smoothing
    )
    wanted = (plain + terms.z * (u.logsumexp(-1)[counts] ** 2).sum()) / terms.divisor
    (gradient,) = torch.autograd.grad(wanted, x)
    loose = 1e-5 if dtype == torch.float32 else 5e-3
    elsewhere = logits.to(torch.float64 if dtype == torch.float32 else torch.float16)
    for way in (logits.clone(), elsewhere):
        found = cross_entropy(way, targets, terms)
        loss, record = (torch.as_tensor(value).double() for value in found)
        alone = F.cross_entropy(u, targets, ignore_index=-1, reduction="sum") / terms.divisor
        torch.testing.assert_close(record, alone.detach(), rtol=max(loose / 10, 2e-6), atol=0)
        torch.testing.assert_close(loss, wanted.detach(), rtol=max(loose / 10, 2e-6), atol=0)
        assert (way.double() - gradient).norm() < loose * gradient.norm()
        assert not way[~counts].any()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    _, _, targets = inputs(33, 4, 1000)
    logits = torch.randn(33, 1000).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            way = logits.clone()
            found.append((cross_entropy(way, targets, Terms())[0], way))
    finally:
        torch.set_num_threads(before)
    assert all(loss == found[0][0] and torch.equal(way, found[0][1]) for loss, way in found)
