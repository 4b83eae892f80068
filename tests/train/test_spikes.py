"""Spikes: corrupt batches in a real run; what is left out is in the ledger, and is repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.data.batches import Batch, Batches  # noqa: E402
from flyweight.files.run import RunFolder  # noqa: E402
from flyweight.spec.errors import ConfigurationError, FlyweightError  # noqa: E402
from flyweight.spec.run import Spikes  # noqa: E402
from flyweight.train.configure import check_tables  # noqa: E402
from flyweight.train.ledger import TIMES  # noqa: E402
from flyweight.train.loop import backward, run_training, take_step  # noqa: E402
from flyweight.train.objective import next_token_loss  # noqa: E402
from flyweight.train.schedule import Moment  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.spikes import Watch, shrink_embedding_gradient  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

Fresh, Sessions = Callable[..., TrainState], Callable[..., Session]
ROWS, STEPS = 8, 120
# Bursts of damaged data, by the running numbers of their windows; the last while the rate is low.
DAMAGED = {*range(60 * ROWS, 64 * ROWS), *range(100 * ROWS, 106 * ROWS)}


class Damaged(Batches):
    """A dataset some of whose windows hold noise, as a broken disk or a bad crawl leaves it."""

    windows_damaged: frozenset[int] = frozenset()

    def take(
        self, first: int, count: int, rows: slice | None = None, context: int | None = None
    ) -> Batch:
        batch = super().take(first, count, rows, context)
        for row in range(len(batch.tokens_BT)):
            if first + row in self.windows_damaged:
                noise = np.random.default_rng(first + row).integers(0, 256, self.context + 1)
                batch.tokens_BT[row], batch.targets_BT[row] = noise[:-1], noise[1:]
        return batch


def made(
    session: Sessions, damaged: set[int], guard: dict[str, Any] | None, **more: Any
) -> Session:
    changes = {"steps": STEPS, "schedule": {"peak": 0.02, "warmup": 10}, **more}
    plain = session(**changes, **({"spikes": guard} if guard else {}))
    batches = Damaged(plain.batches.dataset, plain.train.context, 8 * plain.train.context, 5)
    batches.windows_damaged = frozenset(damaged)
    return replace(plain, batches=batches)


def trained(state: TrainState, session: Session, path: Path) -> RunFolder:
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    run_training(state, session, run)
    return run


def final_loss(state: TrainState, session: Session) -> float:
    """Over windows that no run has seen damaged or not: those far behind the end."""
    total = 0.0
    for number in range(1000, 1010):
        batch = session.batches.batch(number)
        tokens, targets = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.targets_BT)
        with torch.no_grad():
            loss = next_token_loss(state.model, tokens, targets, None, torch.float32)
        total += float(loss) / targets.numel()
    return total / 10


def test_a_guarded_run_ends_as_the_clean_one_and_a_bare_one_does_not(
    fresh: Fresh, session: Sessions, tmp_path: Path
) -> None:
    guard = {"window": 32, "tries": 8}
    losses, ledgers = {}, {}
    for name, damaged, spikes in (
        ("clean", set(), guard),
        ("guarded", DAMAGED, guard),
        ("skipping", DAMAGED, {**guard, "skip": 4}),
        ("bare", DAMAGED, None),
    ):
        state, used = fresh("tokens", "adamw"), made(session, damaged, spikes)
        run = trained(state, used, tmp_path / name)
        losses[name], ledgers[name] = final_loss(state, used), run.read_ledger()
    assert abs(losses["guarded"] / losses["clean"] - 1) < 0.01, losses
    assert abs(losses["skipping"] / losses["clean"] - 1) < 0.01, losses
    assert losses["bare"] / losses["clean"] - 1 > 0.01, losses

    assert not any("spikes" in line for line in ledgers["clean"] + ledgers["bare"])
    events = [event for line in ledgers["guarded"] for event in line.get("spikes", [])]
    assert {event["action"] for event in events} == {"replaced"}
    left_out = {event["window"] + i for event in events for i in range(event["windows"])}
    assert left_out == DAMAGED, "all of the damage, and nothing else"
    # What was trained on is the order without what was left out.
    windows = [line["window"] + i for line in ledgers["guarded"] for i in range(ROWS)]
    assert windows == [n for n in range(STEPS * ROWS + len(DAMAGED)) if n not in DAMAGED]
    skips = [event for line in ledgers["skipping"] for event in line.get("spikes", [])]
    assert [(event["action"], event["windows"]) for event in skips[:1]] == [("skipped", 4 * ROWS)]


def test_a_resumed_run_leaves_out_the_same(fresh: Fresh, session: Sessions, tmp_path: Path) -> None:
    damaged = {*range(30 * ROWS, 31 * ROWS), *range(40 * ROWS, 42 * ROWS)}
    guard = {"window": 16, "tries": 4}
    used = made(session, damaged, guard, steps=48, checkpoint={"every": 16, "keep": 0})
    whole = fresh("tokens")
    run = trained(whole, used, tmp_path / "run")
    lines = run.read_ledger()
    assert [line["step"] for line in lines if "spikes" in line] == [31, 40]
    for start in (16, 32):
        again = fresh("tokens", seed=3)
        again.load(run.checkpoint_path(start))
        for line in lines[start:]:
            record = take_step(again, used)
            wanted = {key: value for key, value in line.items() if key not in TIMES | {"chain"}}
            assert {k: v for k, v in record.items() if k not in TIMES} == wanted
        assert again.extra == whole.extra
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], tensor), name


MOMENT = Moment(rate=0.01, context=32, windows=8, first=800, mix="main")


def steady(**spec: Any) -> dict[str, Any]:
    """What a watch remembers after steady losses around 2 and norms around 1."""
    memory: dict[str, Any] = {}
    for i in range(40):
        watch = Watch(Spikes.parse(spec), memory, MOMENT)
        assert watch.accepts(2 + 0.01 * math.sin(i), 1 + 0.1 * math.cos(i))
    return memory


@pytest.mark.parametrize(
    ("loss", "norm", "spike"),
    [
        (2.02, 1.1, False),
        (1.0, 0.2, False),
        (2.5, 1.0, True),
        (2.0, 5.0, True),
        (math.nan, 1.0, True),
        (2.0, math.inf, True),
    ],
)
def test_what_is_a_spike(loss: float, norm: float, spike: bool) -> None:
    memory = steady()
    watch = Watch(Spikes(), memory, MOMENT)
    assert watch.accepts(loss, norm) is not spike
    assert watch.first == 800 + 8 * spike
    # The ledger and the checkpoint hold it as JSON.
    assert json.loads(json.dumps([watch.events, memory], allow_nan=False)) == [watch.events, memory]


def test_what_goes_on_spiking_is_taken(fresh: Fresh, session: Sessions) -> None:
    memory = steady(skip=5, tries=2)
    watch = Watch(Spikes(skip=5, tries=2), memory, MOMENT)
    assert [watch.accepts(9.0, 1.0) for _ in range(3)] == [False, False, True]
    assert [event["action"] for event in watch.events] == ["skipped", "skipped", "taken"]
    assert watch.first == 800 + 2 * 5 * 8
    # Other data are judged by themselves, and counted by themselves.
    other = Watch(Spikes(), memory, replace(MOMENT, mix="decay", first=0))
    assert other.first == 0
    assert other.accepts(9.0, 1.0)


def test_what_is_no_number_in_the_end_stops_the_run(fresh: Fresh, session: Sessions) -> None:
    state, used = fresh("tokens"), session(spikes={"tries": 2})
    state.model.blocks[0].attention.qkv.weight.data[0, 0] = math.nan
    with pytest.raises(FlyweightError, match="step 1: the loss is nan"):
        take_step(state, used)


@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_a_shrunk_embedding_gradient(fresh: Fresh, session: Sessions, model: str) -> None:
    """e <- a e + (1 - a) stopgrad(e): the same loss, a times the gradient of what is embedded."""
    init = {"init": {"kind": "normal", "std": 0.2}}
    plain, shrunk, used = fresh(model, **init), fresh(model, **init), session()
    shrink_embedding_gradient(shrunk.model, 0.1)
    batch = used.batches.batch(0)
    assert backward(plain, used, batch) == backward(shrunk, used, batch)
    for (name, one), other in zip(
        plain.model.named_parameters(), shrunk.model.parameters(), strict=True
    ):
        if one.grad is None:
            assert name == "embedding.ngrams.table"
            continue
        factor = 0.1 if name.startswith("embedding.") else 1.0
        torch.testing.assert_close(other.grad, factor * one.grad, rtol=1e-5, atol=1e-9)
    for state in (plain, shrunk):
        state.optimizer.gather()
    if model == "patches":
        assert plain.optimizer.touched is not None and shrunk.optimizer.touched is not None
        torch.testing.assert_close(
            shrunk.optimizer.touched[1], 0.1 * plain.optimizer.touched[1], rtol=1e-5, atol=1e-9
        )


def test_a_tied_head_keeps_its_gradient(fresh: Fresh, session: Sessions) -> None:
    used = session()
    batch = used.batches.batch(0)
    gradients = []
    for share in (1.0, 0.5, 0.25):
        state = fresh("tokens", tie_embeddings=True, init={"kind": "normal", "std": 0.2})
        shrink_embedding_gradient(state.model, share)
        backward(state, used, batch)
        gradients.append(state.model.embedding.weight.grad.double())
    # head + share * embedding, at three shares.
    whole, half, quarter = gradients
    torch.testing.assert_close(whole - half, 2 * (half - quarter), rtol=1e-3, atol=1e-7)
    assert float((2 * half - whole).norm()) > 0, "the head's part"


def test_byte_slots_have_no_embedding_to_shrink() -> None:
    model = {
        "width": 32, "depth": 1, "attention": {"heads": 2}, "feedforward": {"hidden": 32},
        "input": {"kind": "slots"},
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"train\.embedding_gradient does not apply"):
        check_tables({"model": model, "train": {"embedding_gradient": 0.1}})
