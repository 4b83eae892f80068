"""What a run's folder says of itself, checked without training: digests, chains, and their sums.

Every part of the record vouches for another: the ledger's lines are chained, the checkpoints hold
the chain and the digests of the configuration and the dataset, the dataset those of its shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from flyweight.data.shards import Dataset
from flyweight.files.atomic import sha256
from flyweight.files.index import entry
from flyweight.files.model_folder import SPEC, TOKENIZER, read_spec
from flyweight.files.run import STATE, RunFolder, json_lines, read_checkpoint_state
from flyweight.spec.errors import FlyweightError
from flyweight.spec.run import RunSpec
from flyweight.train.checkpoints import due
from flyweight.train.corruption import words_of
from flyweight.train.ledger import identity_of, link
from flyweight.train.state import OPTIMIZER, WEIGHTS


class Finding(NamedTuple):
    """Something that does not hold: a file (and a place in it), and what is wrong."""

    where: str
    what: str


@dataclass
class Audit:
    """What was found. ``spec`` and ``dataset`` are None where they cannot be what they were."""

    findings: list[Finding] = field(default_factory=list)
    spec: RunSpec | None = None
    dataset: Dataset | None = None
    ledger: list[dict[str, Any]] = field(default_factory=list)
    # state.json of the checkpoints that are whole, by step.
    states: dict[int, dict[str, Any]] = field(default_factory=dict)
    # The index: a line for every checkpoint ever saved, by step.
    index: dict[int, dict[str, Any]] = field(default_factory=dict)
    # What the model wrote along the way, by step.
    samples: dict[int, dict[str, Any]] = field(default_factory=dict)

    def found(self, where: object, what: str) -> None:
        self.findings.append(Finding(str(where), what))


def audit(run: RunFolder) -> Audit:
    """Read all of a run's folder and compare its parts with one another."""
    result = Audit()
    _checkpoints(run, result)
    _configuration(run, result)
    _dataset(run, result)
    _ledger(run, result)
    _index(run, result)
    _model(run, result)
    _samples(run, result)
    return result


# What state.json says, apart from its digests.
_DESCRIBED = {
    "step": int, "tokens": int, "bytes": int, "chain": str, "extra": dict, "identity": dict
}  # fmt: skip


def _checkpoints(run: RunFolder, result: Audit) -> None:
    for step in run.steps():
        path = run.checkpoint_path(step)
        try:
            state = read_checkpoint_state(path)
        except FlyweightError as error:
            result.found(path, str(error))
            continue
        if state["sha256"].keys() != {WEIGHTS, OPTIMIZER, STATE} or any(
            not isinstance(state.get(key), kind) for key, kind in _DESCRIBED.items()
        ):
            result.found(path / STATE, "it does not say what a checkpoint says")
            continue
        if state["step"] != step:
            result.found(path, f"the folder's name says step {step}, its state {state['step']}")
            continue
        result.states[step] = state


def _configuration(run: RunFolder, result: Audit) -> None:
    try:
        spec = run.spec()
    except FlyweightError as error:
        result.found(run.config, str(error))
        return
    made_with = _disagree(result, "configuration (run.toml)", identity_of(spec))
    if made_with:
        result.found(run.config, f"it is not the configuration that {made_with} made with")
    else:
        result.spec = spec


def _dataset(run: RunFolder, result: Audit) -> None:
    try:
        place, fingerprint = run.dataset()
        dataset = Dataset.open(place, "full")
    except FlyweightError as error:
        result.found(run.data, str(error))
        return
    made_with = _disagree(result, "dataset", dataset.fingerprint)
    if made_with:
        result.found(dataset.path, f"it is not the dataset that {made_with} made with")
    elif dataset.fingerprint != fingerprint:
        result.found(
            run.data,
            f"it records the fingerprint {fingerprint[:12]}, but the dataset {dataset.path} has"
            f" {dataset.fingerprint[:12]}",
        )
    else:
        result.dataset = dataset


def _disagree(result: Audit, key: str, value: str) -> str:
    """Which of the checkpoints were made with another ``key``, in words; "" for none."""
    others = [s for s, state in result.states.items() if state["identity"].get(key) != value]
    if not others:
        return ""
    named = ", ".join(map(str, others[:5])) + (" and more" if len(others) > 5 else "")
    return f"checkpoint {named} was" if len(others) == 1 else f"the checkpoints {named} were"


def _ledger(run: RunFolder, result: Audit) -> None:
    result.ledger = _lines(run.ledger, result)
    steps = [line["step"] for line in result.ledger]
    for at, step in enumerate(steps, 1):
        if step != at:
            result.found(run.ledger, f"line {at} is step {step}: a line is missing or too many")
            result.ledger = result.ledger[: at - 1]
            return
    newest = max(result.states, default=0)
    if newest > len(steps):
        result.found(
            run.ledger, f"it ends at step {len(steps)}, but there is a checkpoint of step {newest}"
        )
    for line in result.ledger:
        if not isinstance(line.get("chain"), str):
            result.found(
                f"{run.ledger}, line {line['step']}",
                "it has no chain: the line was changed, or an older Flyweight wrote it",
            )
            return
    # The first line's beginning is what the run is: `check_beginning`.
    for before, line in pairwise(result.ledger):
        if link(before["chain"], line) != line["chain"]:
            result.found(
                f"{run.ledger}, line {line['step']}",
                "the chain of digests breaks here: this line was changed, or the one before it",
            )
    for step, state in result.states.items():
        if 0 < step <= len(steps):
            _agree(result, f"{run.ledger}, line {step}", result.ledger[step - 1], state, step)


def check_beginning(run: RunFolder, result: Audit, chain: str) -> None:
    """Compare the ledger's first line with the ``chain`` that run and data begin with."""
    first = result.ledger[0]
    if link(chain, first) != first.get("chain"):
        result.found(
            f"{run.ledger}, line 1",
            "the chain of digests does not begin with this configuration, dataset and order:"
            " this line was changed, or one of those",
        )


def _agree(
    result: Audit, where: str, line: dict[str, Any], state: dict[str, Any], step: int
) -> None:
    for key in ("chain", "tokens", "bytes"):
        if line.get(key) != state.get(key):
            result.found(
                where,
                f"its {key} is {line.get(key)}, but checkpoint {step} was saved with"
                f" {state.get(key)}: the file was changed up to here, or the checkpoint",
            )
            return


def _lines(path: Path, result: Audit) -> list[dict[str, Any]]:
    """The lines of a file with a step in each, which must be as `json.dumps` wrote them: a key
    that stands twice says one thing to one reader and another to the next."""
    try:
        lines = list(json_lines(path))
    except FlyweightError as error:
        result.found(path, str(error))
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines(True) if lines else []
    for at, (text, line) in enumerate(zip(texts, lines, strict=False), 1):
        if text.removesuffix("\n") != json.dumps(line):
            result.found(f"{path}, line {at}", "it is not as Flyweight wrote it: it was changed")
    # A crash cuts a last line short of its end, and leaves none behind it.
    for at, text in enumerate(texts[len(lines) :], len(lines) + 1):
        if text.endswith("\n"):
            result.found(f"{path}, line {at}", "it is not the JSON of a step: it was changed")
    return lines


def _index(run: RunFolder, result: Audit) -> None:
    lines = _lines(run.index, result)
    result.index = {line["step"]: line for line in lines}
    newest = len(result.ledger)
    for at, line in enumerate(lines, 1):
        step, where = line["step"], f"{run.index}, line {at}"
        if at > 1 and step <= lines[at - 2]["step"]:
            result.found(where, f"step {step} comes after step {lines[at - 2]['step']}")
            continue
        if not 0 <= step <= newest:
            result.found(where, f"it is of step {step}, but the ledger ends at step {newest}")
            continue
        if not isinstance(line.get("sha256"), dict):
            result.found(where, f"it has no digests of step {step}")
            del result.index[step]
            continue
        state = result.states.get(step)
        if state is None:
            # Removed since: the ledger still knows all but the digests.
            digests = {**line["sha256"], STATE: line.get("digest")}
            counts = {key: result.ledger[step - 1].get(key) for key in ("tokens", "bytes", "chain")}
            state = {**counts, "step": step, "sha256": digests}
            if step == 0:
                continue
        expected = entry(state, result.ledger[:step])
        wrong = [k for k in {**expected, **line} if line.get(k) != expected.get(k)]
        if wrong:
            result.found(
                where,
                f"its {' and '.join(sorted(wrong))} of step {step} is not what the checkpoint"
                " and the ledger say",
            )
    if result.spec is not None and result.spec.train.steps is not None:
        train, steps = result.spec.train, result.spec.train.steps
        # A crash may come between the ledger's last line, its checkpoint and the index.
        saved = {step for step in range(1, newest) if due(train.checkpoint, step, steps)}
        if missing := sorted(saved - {line["step"] for line in lines}):
            named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            result.found(run.index, f"it has no line of checkpoint {named}")


def _model(run: RunFolder, result: Audit) -> None:
    """RUN/model: weights of a checkpoint of this run, its shape, its tokenizer."""
    weights = run.model / WEIGHTS
    if not weights.is_file():
        return
    found = sha256(weights)
    of = [s for s, each in (result.states | result.index).items() if found == _digest_of(each)]
    if not of:
        result.found(weights, "its weights are of no checkpoint of this run")
    elif result.spec is not None and len(result.ledger) == result.spec.train.steps not in of:
        result.found(
            weights,
            f"its weights are those of checkpoint {of[-1]}, not the newest;"
            f" to write them: flyweight resume {run.path}",
        )
    try:
        if result.spec is not None and read_spec(run.model) != result.spec.model:
            result.found(run.model / SPEC, "it is not the model of run.toml")
        if result.spec is not None and result.dataset is not None:
            words = words_of(result.spec, result.dataset.tokenizer)
            if sha256(run.model / TOKENIZER) != words.digest:
                result.found(run.model / TOKENIZER, "it is not the dataset's tokenizer")
    except (FlyweightError, OSError) as error:
        result.found(run.model, str(error))


def _digest_of(described: dict[str, Any]) -> Any:
    return described["sha256"].get(WEIGHTS)


def _samples(run: RunFolder, result: Audit) -> None:
    """samples.jsonl, where there is one: each step that was due, once. Their text is the re-run's
    to judge."""
    lines = _lines(run.samples, result)
    result.samples = {line["step"]: line for line in lines}
    every = result.spec.train.sample_every if result.spec is not None else None
    if not lines or not every:
        return
    newest = len(result.ledger)
    for at, line in enumerate(lines, 1):
        if line["step"] != at * every or line["step"] > newest:
            result.found(
                f"{run.samples}, line {at}",
                f"it is of step {line['step']}, but a sample was due after step {at * every}",
            )
            return
    # A crash may come between the last line of the ledger and its sample.
    if len(lines) < (newest - 1) // every:
        due_at = (len(lines) + 1) * every
        result.found(run.samples, f"it has no sample of step {due_at}")


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [finding._asdict() for finding in findings]


__all__ = ["Audit", "Finding", "as_json", "audit", "check_beginning"]
