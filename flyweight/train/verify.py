"""``flyweight verify``: check a run's record, take its steps again, and say what holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyweight.files.run import RunFolder
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.spec.run import RunSpec
from flyweight.train.audit import Audit, Finding, as_json, audit, check_beginning
from flyweight.train.machine import difference, environment, machines_of
from flyweight.train.prepare import prepare
from flyweight.train.processes import ALONE, Processes
from flyweight.train.replay import TOLERANCES, Replay, Sample, Tolerance
from flyweight.train.session import Session
from flyweight.train.view import View


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
    tolerance: Tolerance | None = None
    steps_compared: int = 0
    # Steps whose tensors were compared; those that are only known by their digests also there.
    tensors_compared: list[int] = field(default_factory=list)
    by_digest: list[int] = field(default_factory=list)
    # Steps whose samples were taken again.
    samples_compared: list[int] = field(default_factory=list)
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
            "samples_compared": self.samples_compared,
            "findings": as_json(self.findings),
        }


def verify_run(
    path: Path,
    first: int | None,
    last: int | None,
    view: View,
    sample: Sample | None = None,
    processes: Processes = ALONE,
) -> Verdict:
    """Check a run's record, then take the steps ``first`` to ``last`` (default: all) again.

    The re-run begins at the newest whole checkpoint before ``first``, or at the seed's own
    weights. Nothing is written. ``sample`` makes the samples' lines again. All ``processes`` call
    it; the leader's verdict is the whole one. Raises FlyweightError where there is no such run or
    step, and where so many processes cannot draw what the run's drew.
    """
    run = processes.each(lambda: RunFolder.open(path))
    view.notice("checking every file's digest")
    found = processes.each(lambda: audit(run))
    processes.agree({str(n): str(each) for n, each in enumerate(found.findings)}, "the record")
    newest = len(found.ledger)
    if not newest and not found.findings:
        raise FlyweightError(f"{run.path} has taken no step yet: there is nothing to verify")
    verdict = Verdict(str(path), first or 1, last or newest, found.findings)
    verdict.lines, verdict.checkpoints = newest, len(found.states)
    spec, dataset = found.spec, found.dataset
    if spec is None or dataset is None or not newest:
        return verdict
    if not 1 <= verdict.first <= verdict.last <= newest:
        raise ConfigurationError(
            f"--steps {verdict.first}:{verdict.last}: the run has taken the steps 1 to {newest}"
        )
    begin = max((step for step in found.states if step < verdict.first), default=0)
    machines = machines_of(run.environment, begin + 1, verdict.last)
    _check_draws(run, spec, machines, processes)
    session, state = prepare(spec, dataset, view, processes)
    processes.each(session.check_rows)
    check_beginning(run, found, state.chain)
    _expect_order(run, found, session)
    if begin in found.states:
        processes.each(lambda: state.load(run.checkpoint_path(begin)))
    elif spec.start is not None:
        found.found(run.checkpoint_path(0), "the weights that the run starts from are not there")
        return verdict
    verdict.began = state.step
    verdict.inexact = _why_inexact(run, machines, session.device, processes)
    if spec.train.compile == "on":
        from flyweight.train.compiled import compile_parts

        if not compile_parts(state, session):
            verdict.inexact = verdict.inexact or "torch.compile failed here"
    if verdict.inexact:
        verdict.tolerance = TOLERANCES[session.train.precision]
        view.notice(f"within a tolerance: {verdict.inexact}")
    Replay(run, found, verdict, session, state, sample).to(verdict.last)
    return verdict


def _expect_order(run: RunFolder, found: Audit, session: Session) -> None:
    recorded = json.loads(run.data.read_text(encoding="utf-8")).get("order")
    if recorded != session.order:
        found.found(run.data, f"it records the order {recorded}, but run.toml has {session.order}")


def _check_draws(
    run: RunFolder, spec: RunSpec, machines: Sequence[dict[str, Any]], processes: Processes
) -> None:
    """Refuse a number of processes that drops out otherwise: each draws for its own rows."""
    ngrams = spec.model.ngrams
    if not spec.train.dropout and not (ngrams is not None and ngrams.dropout):
        return
    there = [machine.get("processes", 1) for machine in machines]
    tensor = 1 if spec.distributed is None else spec.distributed.tensor
    parts = {max(1, number // tensor) for number in there if isinstance(number, int)}
    if parts <= {max(1, processes.size // tensor)}:
        return
    start = "flyweight verify"
    if there[0] > 1:
        start = f"torchrun --nproc-per-node {there[0]} -m flyweight verify"
    if len(parts) > 1:
        start = f"for the first of them: {start} --steps A:B"
    raise ConfigurationError(
        f"{run.path}: these steps were taken by {' and then '.join(map(str, there))} processes,"
        f" each of which drew its own dropout, and {processes.size} would draw another;"
        f" {start} {run.path}"
    )


def _why_inexact(
    run: RunFolder, machines: Sequence[dict[str, Any]], device: str, processes: Processes
) -> str:
    """Why equal bits cannot be expected here; "" where they can."""
    if device != "cpu":
        return f"{device} adds up in no fixed order"
    if not machines:
        return f"{run.environment} does not say where the run was made"
    here = environment(processes.size)
    return next(filter(None, (difference(there, here) for there in machines)), "")
