"""muP: what is tuned at one width holds at another (arXiv:2203.03466)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.errors import ConfigurationError  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.run import Optimizer as OptimizerSpec  # noqa: E402
from flyweight.spec.run import Text, Train  # noqa: E402
from flyweight.train.configure import check_tables, model_spec  # noqa: E402
from flyweight.train.loop import take_step  # noqa: E402
from flyweight.train.optimizer import Optimizer  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

Sessions = Callable[..., Session]
WIDTHS = [64, 128, 256, 512, 1024]
MUP = {"base_width": 64, "std": 0.08, "embedding": 10.0, "logits": 2.0}


def table(width: int, **more: Any) -> dict[str, Any]:
    return {
        "width": width,
        "depth": 2,
        "attention": {"heads": 4, "scale": "1/d"},
        "feedforward": {"hidden": 2 * width},
        **more,
    }


def spec(width: int, **more: Any) -> ModelSpec:
    return model_spec({"model": table(width, **more)}, Text(), Train(context=32), None)


def state_of(made: ModelSpec) -> TrainState:
    model = Decoder(made)
    init_weights(model, 0)
    rates = {"kind": "adamw", "embedding_rate": 1.0, "vector_rate": 1.0}
    return TrainState(model, Optimizer(OptimizerSpec.parse(rates), model))


def test_btlm_s_normals_end_at_two_deviations() -> None:
    """A normal cut at c = 2 keeps sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1)) = 0.88 of its deviation."""
    phi, mass = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    share = math.sqrt(1 - 2 * 2 * phi / mass)
    whole, cut = (
        Decoder(spec(256, mup={**MUP, "truncate": most} if most else MUP)) for most in (None, 2.0)
    )
    init_weights(whole, 0)
    init_weights(cut, 0)
    for (name, ours), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
        if ours.ndim > 1:
            inner = name.startswith("blocks.")
            deviation = 0.08 / (2.0 if inner else 1.0)  # m = 4
            if name.endswith(("attention.output.weight", "feedforward.down.weight")):
                deviation /= 2.0  # L = 2
            assert ours.abs().max() <= 2 * deviation < theirs.abs().max(), name
            assert float(ours.std()) == pytest.approx(share * deviation, rel=0.02), name


def scales(state: TrainState, session: Session) -> dict[str, float]:
    """Root mean squares over a batch: the blocks' outputs and the logits."""
    found: dict[str, float] = {}
    hooks = [
        part.register_forward_hook(
            lambda _, __, out, name=name: found.__setitem__(name, float(out.square().mean().sqrt()))
        )
        for name, part in state.model.named_modules()
        if name in ("blocks.0", "blocks.1") or name.endswith(("attention", "feedforward"))
    ]
    with torch.no_grad():
        tokens = torch.from_numpy(session.batches.batch(9).tokens_BT)
        found["logits"] = float(state.model(tokens).square().mean().sqrt())
    for hook in hooks:
        hook.remove()
    return found


def after_training(session: Session, **more: Any) -> dict[int, dict[str, float]]:
    """By width, what a few steps of AdamW at one rate lead to."""
    found = {}
    for width in WIDTHS:
        state = state_of(spec(width, **more))
        for _ in range(5):
            take_step(state, session)
        found[width] = scales(state, session)
    return found


def test_coordinate_check(session: Sessions) -> None:
    """From width 64 to 1024 activations stay as large, after steps at one learning rate; in the
    standard parametrisation they grow."""
    schedule = {"kind": "constant", "peak": 0.01, "warmup": 0}
    made = session(batch_tokens=64, steps=10, schedule=schedule, clip=1e9)
    mup = after_training(made, mup=MUP)
    for name in mup[64]:
        values = [mup[width][name] for width in WIDTHS]
        assert max(values) < 2 * min(values), f"{name}: {values}"
    plain = after_training(made, init={"kind": "normal", "std": 0.08}, scale={"embedding": 10.0})
    for name in ("logits", "blocks.1"):
        values = [plain[width][name] for width in WIDTHS]
        assert values[-1] > 3 * values[0], f"{name}: {values}"


def test_the_table_is_written_out_for_the_width() -> None:
    wide = spec(256, mup={**MUP, "residual": 1.4})
    assert wide.width_multiplier == 4
    assert wide.scale.embedding == 10.0
    assert wide.scale.logits == 0.5
    assert wide.scale.residual == pytest.approx(1.4 / math.sqrt(2))
    assert wide.init.values() == {"kind": "mup", "std": 0.08, "base_width": 64}
    # BTLM and MiniCPM as the zoo has them.
    btlm = {"base_width": 256, "std": 0.073, "embedding": 14.6, "logits": 2.22}
    made = model_spec({"model": {"use": "btlm-3b-8k", "mup": btlm}}, Text(), Train(), None)
    assert (made.scale.embedding, made.scale.logits) == (14.6, pytest.approx(0.222))
    mini = {"base_width": 256, "std": 0.1, "embedding": 12.0, "logits": 1.0, "residual": 1.4}
    made = model_spec({"model": {"use": "minicpm-30m", "mup": mini}}, Text(), Train(), None)
    found = made.scale
    assert (found.embedding, found.logits) == (12.0, 0.5)
    assert found.residual == pytest.approx(0.40414518843274)


def test_initial_deviations_and_rates() -> None:
    """BTLM's: sigma, sigma / sqrt(m), and the outputs over sqrt(2 L) besides; rates over m."""
    share = {"feedforward": "interior", "lora_rank": 4}
    state = state_of(spec(512, depth=4, mup=MUP, share=share))
    wanted = {
        "embedding.weight": 0.08,
        "head.weight": 0.08,
        "blocks.0.attention.qkv.weight": 0.08 / 8**0.5,
        "blocks.0.feedforward.gate_up.weight": 0.08 / 8**0.5,
        "shared_feedforward.gate_up.weight": 0.08 / 8**0.5,
        "blocks.0.attention.output.weight": 0.08 / 8**0.5 / 8**0.5,
        "shared_feedforward.down.weight": 0.08 / 8**0.5 / 8**0.5,
        "blocks.1.update.gate.down.weight": 512**-0.5,
    }
    tensors = state.model.state_dict()
    for name, deviation in wanted.items():
        assert float(tensors[name].std()) == pytest.approx(deviation, rel=0.05), name
    residual = state_of(spec(512, mup={**MUP, "residual": 1.4})).model.state_dict()
    assert float(residual["blocks.0.attention.output.weight"].std()) == pytest.approx(
        0.08 / 8**0.5, rel=0.05
    ), "the residual scale does the depth's part"
    rates = {
        state.optimizer.names[id(p)]: group["rate"]
        for optimizer in state.optimizer.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    one_eighth = {name for name, rate in rates.items() if rate == 1 / 8}
    assert {name for name in rates if name.endswith(("qkv.weight", "output.weight"))} <= one_eighth
    assert "blocks.1.update.gate.down.weight" in one_eighth
    assert "blocks.1.update.gate.up.weight" not in one_eighth, "its inputs are the rank"
    assert not {"embedding.weight", "head.weight", "norm.weight"} & one_eighth


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (table(64, mup=MUP, scale={"logits": 2.0}), "model.mup sets model.scale"),
        (table(64, mup=True), "`model.mup` is a table"),
        (table(64, mup={"base": 64}), "unknown key `model.mup.base`"),
        (table(64, init={"kind": "mup"}), "base_width goes with kind = 'mup'"),
        ({"use": "quickstart", "mup": MUP}, "does not apply to input.kind = 'patches'"),
    ],
)
def test_what_cannot_be_is_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_tables({"model": model})
