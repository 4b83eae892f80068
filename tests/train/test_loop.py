"""The loop: accumulation, determinism, resumption to the bit, and stopping before harm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from flyweight.files.run import RunFolder  # noqa: E402
from flyweight.spec.errors import CorruptFileError, FlyweightError  # noqa: E402
from flyweight.train.calibrate import count_flops  # noqa: E402
from flyweight.train.loop import backward, run_training  # noqa: E402
from flyweight.train.objective import next_token_loss  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

Fresh, Sessions = Callable[..., TrainState], Callable[..., Session]
# Nothing zero at the start, so that every gradient says something.
INIT = {"init": {"kind": "normal", "std": 0.2}}


def run_folder(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    return run


def tensors(state: TrainState) -> dict[str, Tensor]:
    model = {f"model {name}": t for name, t in state.model.state_dict().items()}
    return model | {f"optimizer {name}": t for name, t in state.optimizer.tensors().items()}


def copied(state: TrainState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors(state).items()}


def assert_equal_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def gradients(state: TrainState, session: Session) -> tuple[float, dict[str, Tensor]]:
    loss = backward(state, session, session.batches.batch(0))
    state.optimizer.gather()
    found = {n: p.grad for n, p in state.model.named_parameters() if p.grad is not None}
    if state.optimizer.touched is not None:
        rows, grads = state.optimizer.touched
        found["rows"], found["table"] = rows.float(), grads
    return loss, found


@pytest.mark.parametrize("model", ["tokens", "patches"])
@pytest.mark.parametrize("micro", [1, 2])
def test_eight_small_batches_are_one_large_one(
    fresh: Fresh, session: Sessions, model: str, micro: int
) -> None:
    whole_loss, whole = gradients(fresh(model, **INIT), session())
    small = session(micro_batch_tokens=32 * micro)
    loss, parts = gradients(fresh(model, **INIT), small)
    assert small.batches.batch(0).documents_BT.any(), "rows hold borders of documents"
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert parts.keys() == whole.keys()
    for name, grad in whole.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(
            parts[name], grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max())
        )


@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_the_loss_is_the_mean_over_targets(fresh: Fresh, session: Sessions, model: str) -> None:
    state, made = fresh(model, **INIT), session()
    batch = made.batches.batch(0)
    tokens, targets, documents = (
        torch.from_numpy(a) for a in (batch.tokens_BT, batch.targets_BT, batch.documents_BT)
    )
    with torch.no_grad():
        logits = state.model(tokens, documents).double()
        rows = logits.log_softmax(dim=-1).gather(2, targets[:, :, None])
        summed = next_token_loss(state.model, tokens, targets, documents, torch.float32)
    assert backward(state, made, batch) == pytest.approx(-float(rows.mean()), rel=1e-6)
    assert float(summed) == pytest.approx(-float(rows.sum()), rel=1e-6)


@pytest.mark.parametrize("model", ["tokens", "patches"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_to_the_bit(
    fresh: Fresh, session: Sessions, tmp_path: Path, model: str, dtype: torch.dtype
) -> None:
    ends, files = [], []
    for name in ("one", "two"):
        run, state = run_folder(tmp_path / name), fresh(model)
        made = session(dtype, ramp=[{"context": 16, "until": 0.5}])
        run_training(state, made, run)
        ends.append(copied(state))
        folder = run.checkpoint_path(6)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert_equal_bits(*ends)
    assert files[0] == files[1]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_a_run_continued_is_the_run_uninterrupted(
    fresh: Fresh, session: Sessions, tmp_path: Path, model: str, optimizer: str
) -> None:
    run = run_folder(tmp_path / "run")
    made = session(checkpoint={"every": 2, "keep": 0}, micro_batch_tokens=64)
    whole = fresh(model, optimizer)
    run_training(whole, made, run)
    assert run.steps() == [2, 4, 6]
    again = fresh(model, optimizer, seed=7)
    again.load(run.checkpoint_path(4))
    assert (again.step, again.tokens) == (4, 4 * 256)
    run.cut_ledger(4)
    run_training(again, made, run)
    assert_equal_bits(tensors(again), tensors(whole))
    assert again.bytes == whole.bytes
    assert [line["step"] for line in run.read_ledger()] == [1, 2, 3, 4, 5, 6]


def test_the_ledger_says_what_was_done(fresh: Fresh, session: Sessions, tmp_path: Path) -> None:
    run, state = run_folder(tmp_path / "run"), fresh("patches")
    made = session(ramp=[{"context": 16, "until": 0.5}])
    run_training(state, made, run)
    lines = run.read_ledger()
    assert [line["tokens"] for line in lines] == [256 * n for n in range(1, 7)]
    assert [line["context"] for line in lines] == [16, 16, 16, 32, 32, 32]
    rates = [0.005, 0.01, 0.01, 0.01, 0.02 / 3, 0.01 / 3]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    assert lines[0]["loss"] == pytest.approx(math.log(258), rel=0.01), "it knows nothing yet"
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line, before in zip(lines, [{"bytes": 0}, *lines], strict=False):
        size = line["bytes"] - before["bytes"]
        assert 0 < size <= 256, "an <eot> is a target but no byte"
        assert line["bits_per_byte"] == pytest.approx(line["loss"] * 256 / math.log(2) / size)
        assert line["gradient_norm"] > 0
    assert len({line["digest"] for line in lines}) == 6


@pytest.mark.parametrize("model", ["tokens", "patches"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(
    fresh: Fresh, session: Sessions, tmp_path: Path, model: str, value: float
) -> None:
    run, state, made = run_folder(tmp_path / "run"), fresh(model), session(steps=4)
    state.step = 2
    state.model.blocks[0].attention.qkv.weight.data[0, 0] = value
    before = copied(state)
    with pytest.raises(FlyweightError, match="step 3: the loss is .*nothing was updated"):
        run_training(state, made, run)
    after = tensors(state)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert (state.step, state.tokens) == (2, 0)
    assert run.steps() == []
    assert run.read_ledger() == []


def test_counting_flops_changes_nothing(fresh: Fresh, session: Sessions) -> None:
    state, made = fresh("tokens"), session()
    before = copied(state)
    flops = count_flops(state, made)
    # Forward and backward: six per matrix weight and token, and attention's scores besides.
    matrices = sum(p.numel() for n, p in state.model.named_parameters() if p.ndim == 2)
    matrices -= state.model.embedding.weight.numel()
    assert 6 * matrices * 256 * 0.9 < flops < 6 * matrices * 256 * 2
    assert_equal_bits(tensors(state), before)
    assert all(p.grad is None for p in state.model.parameters())


def test_a_checkpoint_of_another_run_is_refused(
    fresh: Fresh, session: Sessions, tmp_path: Path
) -> None:
    run, state = run_folder(tmp_path / "run"), fresh("tokens")
    state.identity = {"dataset": "aa"}
    run_training(state, session(steps=1), run)
    other = fresh("tokens")
    other.identity = {"dataset": "bb"}
    with pytest.raises(FlyweightError, match="made with dataset aa, but this run now has bb"):
        other.load(run.checkpoint_path(1))
    wider = fresh("tokens", width=32)
    wider.identity = {"dataset": "aa"}
    with pytest.raises(CorruptFileError, match="does not fit its spec"):
        wider.load(run.checkpoint_path(1))


def test_a_sample_that_a_kill_kept_out_is_taken(
    fresh: Fresh, session: Sessions, tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run")
    made = session(checkpoint={"every": 2, "keep": 0}, sample_every=2)

    def sample(state: TrainState) -> None:
        with open(run.samples, "a") as file:
            file.write(json.dumps({"step": state.step}) + "\n")

    made.sample = sample
    run_training(fresh("tokens"), made, run)
    whole = run.samples.read_text()
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [2, 4, 6]
    for step, left in ((4, 1), (6, 2), (6, 3)):
        run.samples.write_text("".join(whole.splitlines(keepends=True)[:left]))
        again = fresh("tokens")
        again.load(run.checkpoint_path(step))
        run.cut_ledger(step)
        run_training(again, made, run)
        assert run.samples.read_text() == whole
