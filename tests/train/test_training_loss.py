"""What training makes smaller, against slow plain sums in float64, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.run import Objective  # noqa: E402
from flyweight.train.compiled import compile_parts  # noqa: E402
from flyweight.train.loop import take_step  # noqa: E402
from flyweight.train.objective import Part, training_loss  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402
from flyweight.zoo.shapes import tensors  # noqa: E402

Fresh, Sessions = Callable[..., TrainState], Callable[..., Session]
INIT = {"init": {"kind": "normal", "std": 0.2}}


def part_of(documents: bool = True) -> Part:
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(0, 257, (3, 21), generator=generator)
    numbers = torch.zeros(3, 20, dtype=torch.int32)
    numbers[0, 9:] += 1
    numbers[1, 3:] += 1
    numbers[1, 4:] += 1
    return Part(stream[:, :-1], stream[:, 1:], numbers if documents else None)


def same_gradients(model: Decoder, found: Tensor, wanted: Tensor) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = zip(
        torch.autograd.grad(found, parameters, allow_unused=True),
        torch.autograd.grad(wanted, parameters, allow_unused=True),
        strict=True,
    )
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            size = float(other.abs().max())
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-5 * size)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "scale": {"logits": 0.3}}])
def test_smoothing_and_z_loss(fresh: Fresh, changes: dict[str, Any]) -> None:
    model, part = fresh("tokens", **INIT, **changes).model, part_of()
    objective = Objective(label_smoothing=0.1, z_loss=0.01)
    loss, plain = training_loss(model, part, objective, torch.float32, 60.0)
    logits = model(part.tokens_BT, part.documents_BT).double().flatten(0, 1)
    log_p = logits.log_softmax(-1)
    own = -log_p.gather(1, part.targets_BT.flatten()[:, None])[:, 0]
    smooth = 0.9 * own - 0.1 * log_p.mean(dim=1)
    wanted = (smooth + 0.01 * logits.logsumexp(1) ** 2).mean()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert float(plain) == pytest.approx(float(own.mean().detach()), rel=1e-6)
    same_gradients(model, loss, wanted)


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("heads", [2, 4])
def test_the_cascade(fresh: Fresh, heads: int, documents: bool) -> None:
    """h_k = block_k(W_k [norm(E(x_{t+k})); norm(h_{k-1})]), position by position."""
    changes = {"ahead": heads, "position": {"kind": "none"}, "scale": {"embedding": 2.0}}
    model, part = fresh("tokens", **INIT, **changes).model, part_of(documents)
    assert model.ahead is not None
    loss, plain = training_loss(model, part, Objective(ahead=0.6), torch.float32)
    hidden = model.hidden(part.tokens_BT, part.documents_BT)
    own = F.cross_entropy(
        model.logits(hidden).flatten(0, 1), part.targets_BT.flatten(), reduction="sum"
    )
    assert float(plain.detach()) == pytest.approx(float(own.detach()), rel=1e-6)
    total = own.double()
    for row in range(3):
        numbers = [0] * 20 if part.documents_BT is None else part.documents_BT[row].tolist()
        h = list(hidden[row])
        for k, step in enumerate(model.ahead.steps, 1):
            inputs = []
            for t in range(20 - k):
                e = 2.0 * model.embedding.weight[part.tokens_BT[row, t + k]]
                inputs.append(
                    step.join(torch.cat((step.embedding_norm(e), step.hidden_norm(h[t]))))
                )
            h = []
            for t in range(20 - k):
                # Alone with what it may see: the earlier positions of its own document.
                seen = [s for s in range(t + 1) if numbers[s] == numbers[t]]
                scene = model.positions.scene(len(seen), 0, None, torch.float32, loss.device)
                out = step.block(torch.stack([inputs[s] for s in seen])[None], scene, None)
                h.append(model.norm(out)[0, -1])
                if numbers[t + k] == numbers[t]:
                    target = part.targets_BT[row, t + k]
                    entropy = F.cross_entropy(model.logits(h[t]).double(), target)
                    total = total + 0.6 / heads * entropy
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    same_gradients(model, loss, total)


def test_the_cascade_is_what_shapes_say_and_the_model_runs_without_it(fresh: Fresh) -> None:
    for changes in ({}, {"tie_embeddings": True, "norm": {"kind": "rms", "gain": False}}):
        model = fresh("tokens", ahead=3, **changes).model
        said = {tensor.name: tensor.shape for tensor in tensors(model.spec)}
        assert said == {name: tuple(t.shape) for name, t in model.state_dict().items()}
    plain = fresh("tokens", **INIT).model
    more = fresh("tokens", ahead=2, **INIT).model
    more.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(more(part_of().tokens_BT), plain(part_of().tokens_BT))


def test_weight_zero_leaves_the_cascade_alone(fresh: Fresh) -> None:
    model = fresh("tokens", ahead=2).model
    loss, plain = training_loss(model, part_of(), Objective(ahead=0), torch.float32)
    assert torch.equal(loss, plain)


@pytest.mark.slow
def test_compiled_is_eager(fresh: Fresh, session: Sessions) -> None:
    objective = {"z_loss": 1e-3, "label_smoothing": 0.1, "prefix": 0.5, "ahead": 0.5}
    losses = []
    for compiled in (False, True):
        state, used = fresh("tokens", ahead=2), session(objective=objective)
        assert not compiled or compile_parts(state, used)
        losses.append([take_step(state, used)["loss"] for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_memory_does_not_grow_with_vocabulary_times_sequence() -> None:
    """The largest tensor that exists at any time of a loss with z-loss and smoothing: the weights
    of the head or a chunk of logits, never the 2^28 logits of this batch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            out = function(*arguments, **(named or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                    self.elements = max(self.elements, storage)
            return out

    vocab, rows, length = 1 << 16, 8, 512
    spec = {
        "vocab_size": vocab, "width": 8, "depth": 1, "context": length,
        "attention": {"heads": 1}, "feedforward": {"hidden": 8},
    }  # fmt: skip
    model = Decoder(ModelSpec.parse(spec))
    init_weights(model, 0)
    tokens = torch.randint(0, vocab, (rows, length + 1))
    part = Part(tokens[:, :-1], tokens[:, 1:])
    objective = Objective(z_loss=1e-4, label_smoothing=0.1)
    with Largest() as largest:
        loss, _ = training_loss(model, part, objective, torch.float32, tokens.numel())
        loss.backward()
    assert largest.elements <= 1 << 26 < vocab * rows * length
