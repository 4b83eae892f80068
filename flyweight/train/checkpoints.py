"""When a checkpoint is made, how, and which are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flyweight.files.index import add_entry, entries, entry
from flyweight.files.run import RunFolder, read_checkpoint_state
from flyweight.spec.run import Checkpoint
from flyweight.train.ledger import Ledger

if TYPE_CHECKING:
    from flyweight.train.state import TrainState


def save(state: TrainState, run: RunFolder, ledger: Ledger, checkpoint: Checkpoint) -> None:
    """Write the state's checkpoint and its line of the index; then thin, when all is on disk.

    All processes must call it; the leader writes.
    """
    # A checkpoint must not outlive, in a power cut, the lines that it follows.
    ledger.sync()
    path = state.save(run)
    if not state.optimizer.layout.processes.leader:
        return
    written = read_checkpoint_state(path, check=False)
    add_entry(run, entry(written, list(ledger.recent)))
    run.thin(kept(checkpoint, entries(run)))


def due(checkpoint: Checkpoint, step: int, steps: int) -> bool:
    """Whether the state after ``step`` (1-based) of ``steps`` is saved."""
    if step == steps or step in checkpoint.at:
        return True
    if checkpoint.every and step % checkpoint.every == 0:
        return True
    # The floor of step * count / steps rises `count` times, the last time at the last step.
    count = checkpoint.count
    if count and step * count // steps > (step - 1) * count // steps:
        return True
    return bool(checkpoint.powers) and _is_power(step, checkpoint.powers)


def _is_power(n: int, base: int | None) -> bool:
    assert base is not None
    while n % base == 0:
        n //= base
    return n == 1


def kept(checkpoint: Checkpoint, entries: Sequence[dict[str, Any]]) -> set[int]:
    """The steps to keep, of checkpoints described by ``entries`` (``step``, ``mean_loss``).

    Step 0, the weights that a run starts from, stays.
    """
    steps = sorted(line["step"] for line in entries)
    if not checkpoint.newest:
        return set(steps)
    keep = {*steps[-checkpoint.newest :], *(step for step in steps if step == 0)}
    if checkpoint.keep_every:
        keep |= {step for step in steps if step % checkpoint.keep_every == 0}
    trained = (line for line in entries if line["step"])
    best = sorted(trained, key=lambda line: (line["mean_loss"], line["step"]))
    return keep | {line["step"] for line in best[: checkpoint.keep_best]}
