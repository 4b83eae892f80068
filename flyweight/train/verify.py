"""``flyweight verify``: take steps of a run again, and compare all that was recorded of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flyweight.files.run import RunFolder
from flyweight.files.tensors import read_tensors, serialised
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.train.audit import Audit, Finding, as_json, audit, check_beginning
from flyweight.train.ledger import TIMES
from flyweight.train.loop import take_step
from flyweight.train.machine import difference, environment, machines_of
from flyweight.train.prepare import prepare
from flyweight.train.session import Session
from flyweight.train.state import TrainState
from flyweight.train.view import View

# On another kind of processor, or another number of threads: how far losses and gradient norms
# may be off, and the tensors of a checkpoint as |ours - theirs| / |theirs| (Euclidean norms).
TOLERANCES = {"f32": {"loss": 1e-3, "gradient_norm": 1e-2, "tensors": 1e-2}}
TOLERANCES["bf16"] = {"loss": 2e-2, "gradient_norm": 2e-1, "tensors": 1e-1}
# What sums decide, and rounding therefore moves; all else is equal on every machine.
ROUNDED = ("loss", "bits_per_byte", "gradient_norm")
# So many steps in a row that differ say what there is to say.
ENOUGH = 10


@dataclass
class Verdict:
    """What `verify` found. It holds where there is no finding and steps were compared."""

    run: str
    first: int
    last: int
    findings: list[Finding] = field(default_factory=list)
    # The step whose state the re-run began with; 0: the seed's own. None: nothing was re-run.
    began: int | None = None
    # Why the comparison was within a tolerance; "" where it was bit for bit.
    inexact: str = ""
    tolerance: dict[str, float] | None = None
    steps_compared: int = 0
    # Steps whose tensors were compared; those that are only known by their digests also there.
    tensors_compared: list[int] = field(default_factory=list)
    by_digest: list[int] = field(default_factory=list)
    lines: int = 0
    checkpoints: int = 0

    @property
    def holds(self) -> bool:
        return not self.findings and self.began is not None

    def values(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "holds": self.holds,
            "steps": [self.first, self.last],
            "began_at": self.began,
            "exact": not self.inexact,
            "inexact_because": self.inexact or None,
            "tolerance": self.tolerance,
            "ledger_lines": self.lines,
            "checkpoints": self.checkpoints,
            "steps_compared": self.steps_compared,
            "tensors_compared": self.tensors_compared,
            "findings": as_json(self.findings),
        }


def verify_run(path: Path, first: int | None, last: int | None, view: View) -> Verdict:
    """Check a run's record, then take the steps ``first`` to ``last`` (default: all) again.

    The re-run begins at the newest whole checkpoint before ``first``, or at the seed's own
    weights. Nothing is written. Raises FlyweightError where there is no such run or step.
    """
    run = RunFolder.open(path)
    view.notice("checking every file's digest")
    found = audit(run)
    newest = len(found.ledger)
    if not newest and not found.findings:
        raise FlyweightError(f"{run.path} has taken no step yet: there is nothing to verify")
    verdict = Verdict(str(path), first or 1, last or newest, found.findings)
    verdict.lines, verdict.checkpoints = newest, len(found.states)
    if found.spec is None or found.dataset is None or not newest:
        return verdict
    if not 1 <= verdict.first <= verdict.last <= newest:
        raise ConfigurationError(
            f"--steps {verdict.first}:{verdict.last}: the run has taken the steps 1 to {newest}"
        )
    session, state = prepare(found.spec, found.dataset, view)
    check_beginning(run, found, state.chain)
    _expect_order(run, found, session)
    before = [step for step in found.states if step < verdict.first]
    if before:
        state.load(run.checkpoint_path(max(before)))
    elif found.spec.start is not None:
        found.found(run.checkpoint_path(0), "the weights that the run starts from are not there")
        return verdict
    verdict.began = state.step
    verdict.inexact = _why_inexact(run, verdict, session.device)
    if verdict.inexact:
        verdict.tolerance = TOLERANCES[session.train.precision]
        view.notice(f"within a tolerance: {verdict.inexact}")
    if found.spec.train.compile == "on":
        from flyweight.train.compiled import compile_parts

        compile_parts(state, session)
    _Replay(run, found, verdict, session, state).to(verdict.last)
    return verdict


def _expect_order(run: RunFolder, found: Audit, session: Session) -> None:
    recorded = json.loads(run.data.read_text(encoding="utf-8")).get("order")
    if recorded != session.order:
        found.found(run.data, f"it records the order {recorded}, but run.toml has {session.order}")


def _why_inexact(run: RunFolder, verdict: Verdict, device: str) -> str:
    """Why equal bits cannot be expected here; "" where they can."""
    if device != "cpu":
        return f"{device} adds up in no fixed order"
    assert verdict.began is not None
    machines = machines_of(run.environment, verdict.began + 1, verdict.last)
    if not machines:
        return f"{run.environment} does not say where the run was made"
    here = environment()
    return next(filter(None, (difference(there, here) for there in machines)), "")


class _Replay:
    """The steps taken again, each beside its line and its checkpoint."""

    def __init__(
        self, run: RunFolder, found: Audit, verdict: Verdict, session: Session, state: TrainState
    ) -> None:
        self.run, self.found, self.verdict = run, found, verdict
        self.session, self.state = session, state

    def to(self, last: int) -> None:
        state, view = self.state, self.session.view
        view.start(last, f"verify {self.run.path}")
        state.model.train()
        begun, start, differing = time.perf_counter(), state.step, 0
        try:
            while state.step < last and differing < ENOUGH:
                where = f"{self.run.ledger}, line {state.step + 1}"
                try:
                    record = take_step(state, self.session)
                except FlyweightError as error:
                    self.found.found(where, f"the step cannot be taken again: {error}")
                    return
                each = (time.perf_counter() - begun) / (state.step - start)
                view.step({**record, "eta_seconds": each * (last - state.step)})
                wrong = self._differences(json.loads(json.dumps(record)))
                differing = differing + 1 if wrong else 0
                if wrong:
                    self.found.found(where, "; ".join(wrong))
                self.verdict.steps_compared += 1
                self._tensors()
        finally:
            view.stop()
        if differing == ENOUGH and state.step < last:
            self.found.found(self.run.ledger, f"{ENOUGH} steps in a row differ: the rest was left")

    def _differences(self, record: dict[str, Any]) -> list[str]:
        line = self.found.ledger[self.state.step - 1]
        wrong = []
        for key in sorted({*record, *line} - TIMES - {"chain"}):
            ours, theirs = record.get(key), line.get(key)
            if ours != theirs and not self._near(key, ours, theirs):
                wrong.append(f"{key} is {theirs}, taken again {ours}")
        return wrong

    def _near(self, key: str, ours: Any, theirs: Any) -> bool:
        """Whether rounding explains the difference. A line may hold lists of objects: spikes."""
        tolerance = self.verdict.tolerance
        if tolerance is None or type(ours) is not type(theirs):
            return False
        if isinstance(ours, dict):
            same = ours.keys() == theirs.keys()
            return same and all(self._near(k, ours[k], theirs[k]) for k in ours)
        if isinstance(ours, list):
            same = len(ours) == len(theirs)
            return same and all(self._near(key, a, b) for a, b in zip(ours, theirs, strict=False))
        if key not in ROUNDED or not isinstance(ours, float):
            return bool(ours == theirs)
        allowed = tolerance["gradient_norm" if key == "gradient_norm" else "loss"]
        return abs(ours - theirs) <= allowed * abs(theirs)

    def _tensors(self) -> None:
        """Compare with the checkpoint of this step, if one was ever saved."""
        step = self.state.step
        kept = self.found.states.get(step)
        described = kept or self.found.index.get(step)
        if described is None:
            return
        files = self.state.files()
        if self.verdict.tolerance is None:
            for name, tensors in files.items():
                digest = hashlib.sha256(serialised(tensors)).hexdigest()
                if digest == described["sha256"].get(name):
                    continue
                if kept is None:
                    self.found.found(
                        f"{self.run.index}, step {step}",
                        f"{name} of the checkpoint that was removed since had another digest than"
                        " the step taken again",
                    )
                else:
                    self._name_tensors(name, tensors, torch.equal)
            self.verdict.tensors_compared.append(step)
            if kept is None:
                self.verdict.by_digest.append(step)
            elif kept["extra"] != json.loads(json.dumps(self.state.extra)):
                self.found.found(
                    self.run.checkpoint_path(step), "what it remembers of spikes differs"
                )
        elif kept is not None:
            for name, tensors in files.items():
                self._name_tensors(name, tensors, self._close)
            self.verdict.tensors_compared.append(step)

    def _close(self, ours: Tensor, theirs: Tensor) -> bool:
        assert self.verdict.tolerance is not None
        if ours.shape != theirs.shape:
            return False
        distance = torch.linalg.vector_norm(ours.double() - theirs.double())
        scale = torch.linalg.vector_norm(theirs.double())
        return bool(distance <= self.verdict.tolerance["tensors"] * scale)

    def _name_tensors(
        self, name: str, ours: dict[str, Tensor], same: Callable[[Tensor, Tensor], bool]
    ) -> None:
        path = self.run.checkpoint_path(self.state.step) / name
        theirs = read_tensors(path)
        wrong = sorted(ours.keys() ^ theirs.keys())
        wrong += [
            n for n in sorted(ours.keys() & theirs.keys()) if not same(ours[n].cpu(), theirs[n])
        ]
        if wrong:
            named = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            self.found.found(
                path, f"{len(wrong)} of {len(theirs)} tensors differ, taken again: {named}"
            )
