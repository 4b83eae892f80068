"""The steps of a recorded run taken again, each beside its line, its checkpoint and its sample."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flyweight.files.run import RunFolder
from flyweight.files.tensors import read_tensors, serialised
from flyweight.spec.errors import FlyweightError
from flyweight.train.audit import Audit
from flyweight.train.ledger import TIMES
from flyweight.train.loop import take_step
from flyweight.train.session import Session
from flyweight.train.state import TrainState

if TYPE_CHECKING:
    from flyweight.train.verify import Verdict

Tolerance = dict[str, float]
# Makes a state's sample: its line of samples.jsonl.
Sample = Callable[[TrainState, RunFolder], dict[str, Any]]

# On another kind of processor, or another number of threads: how far losses and gradient norms
# may be off, and each tensor of a checkpoint as |ours - theirs| / |theirs| (Euclidean norms).
# Losses 20 times (bf16: 50), norms 8 (50), tensors 4 times what benchmarks/verify_tolerance.py
# measured over 40 steps from a common state where training is stable (docs/lab-notes.md).
TOLERANCES: dict[str, Tolerance] = {
    "f32": {"loss": 1e-3, "gradient_norm": 1e-2, "tensors": 0.2},
    "bf16": {"loss": 2e-2, "gradient_norm": 2e-1, "tensors": 0.5},
}
# What sums decide, and rounding therefore moves; all else is equal on every machine.
ROUNDED = ("loss", "bits_per_byte", "gradient_norm")
# So many steps in a row that differ say what there is to say.
ENOUGH = 10


class Replay:
    """Takes steps and adds what differs to the verdict's findings. Touches no file."""

    def __init__(
        self,
        run: RunFolder,
        found: Audit,
        verdict: Verdict,
        session: Session,
        state: TrainState,
        sample: Sample | None,
    ) -> None:
        self.run, self.found, self.verdict = run, found, verdict
        self.session, self.state, self.sample = session, state, sample

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
                self._checkpoint()
                self._sampled()
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

    def _checkpoint(self) -> None:
        """Compare with the checkpoint of this step, if one was ever saved."""
        step = self.state.step
        kept = self.found.states.get(step)
        described = kept or self.found.index.get(step)
        if described is None:
            return
        files = self.state.files()
        if self.session.processes.leader:
            if self.verdict.tolerance is None:
                self._to_the_bit(files, described, kept)
            elif kept is not None:
                for name, tensors in files.items():
                    self._name_tensors(name, tensors, self._close)
                self.verdict.tensors_compared.append(step)
        if self.verdict.tolerance is not None and kept is not None:
            # On from what was recorded, so that rounding adds up between two checkpoints only.
            self.session.processes.each(lambda: self.state.load(self.run.checkpoint_path(step)))

    def _to_the_bit(
        self,
        files: dict[str, dict[str, Tensor]],
        described: dict[str, Any],
        kept: dict[str, Any] | None,
    ) -> None:
        step = self.state.step
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
            self.found.found(self.run.checkpoint_path(step), "what it remembers of spikes differs")

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
        try:
            theirs = read_tensors(path)
        except FlyweightError as error:
            self.found.found(path, str(error))
            return
        wrong = sorted(ours.keys() ^ theirs.keys())
        wrong += [
            n for n in sorted(ours.keys() & theirs.keys()) if not same(ours[n].cpu(), theirs[n])
        ]
        if wrong:
            named = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            self.found.found(
                path, f"{len(wrong)} of {len(theirs)} tensors differ, taken again: {named}"
            )

    def _sampled(self) -> None:
        """Sample again where the run did. Rounding may turn a drawn token, and then all after."""
        line = self.found.samples.get(self.state.step)
        if self.sample is None or line is None or self.verdict.tolerance is not None:
            return
        whole = self.state.gathered()
        if whole is None:
            return
        ours = self.sample(whole, self.run)
        wrong = [key for key in ("prompt", "text") if ours[key] != line.get(key)]
        if wrong:
            self.found.found(
                f"{self.run.samples}, step {self.state.step}",
                f"its {' and '.join(wrong)} is not what the model says there, taken again",
            )
        self.verdict.samples_compared.append(self.state.step)
