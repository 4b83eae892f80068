"""What a run's folder says of itself, checked without training: digests, chains, and their sums.

Every part of the record vouches for another: the ledger's lines are chained, the checkpoints hold
the chain and the digests of the configuration and the dataset, the dataset those of its shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from flyweight.data.shards import Dataset
from flyweight.files.atomic import sha256
from flyweight.files.index import entry
from flyweight.files.model_folder import SPEC, TOKENIZER, WEIGHTS, read_spec
from flyweight.files.run import RunFolder, json_lines, read_checkpoint_state
from flyweight.spec.errors import FlyweightError
from flyweight.spec.run import RunSpec
from flyweight.train.ledger import identity_of, link


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
    return result


def _checkpoints(run: RunFolder, result: Audit) -> None:
    for step in run.steps():
        path = run.checkpoint_path(step)
        try:
            state = read_checkpoint_state(path)
        except FlyweightError as error:
            result.found(path, str(error))
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
    try:
        result.ledger = list(json_lines(run.ledger))
    except FlyweightError as error:
        result.found(run.ledger, str(error))
        return
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


def _index(run: RunFolder, result: Audit) -> None:
    try:
        lines = list(json_lines(run.index))
    except FlyweightError as error:
        result.found(run.index, str(error))
        return
    result.index = {line["step"]: line for line in lines}
    for at, line in enumerate(lines, 1):
        step = line["step"]
        if step > len(result.ledger):
            continue
        state = result.states.get(step)
        if state is None:
            # Removed since: the ledger still knows all but the digests.
            digests = {**line.get("sha256", {}), "state.json": line.get("digest")}
            counts = {key: result.ledger[step - 1].get(key) for key in ("tokens", "bytes", "chain")}
            state = {**counts, "step": step, "sha256": digests}
            if step == 0:
                continue
        expected = entry(state, result.ledger[:step])
        wrong = [k for k in {**expected, **line} if line.get(k) != expected.get(k)]
        if wrong:
            result.found(
                f"{run.index}, line {at}",
                f"its {' and '.join(sorted(wrong))} of step {step} is not what the checkpoint"
                " and the ledger say",
            )


def _model(run: RunFolder, result: Audit) -> None:
    """RUN/model: weights of a checkpoint of this run, its shape, its tokenizer."""
    weights = run.model / WEIGHTS
    if not weights.is_file():
        return
    if sha256(weights) not in set(_weight_digests(result)):
        result.found(weights, "its weights are of no checkpoint of this run")
    try:
        if result.spec is not None and read_spec(run.model) != result.spec.model:
            result.found(run.model / SPEC, "it is not the model of run.toml")
        if result.dataset is not None and (
            sha256(run.model / TOKENIZER) != result.dataset.tokenizer_digest
        ):
            result.found(run.model / TOKENIZER, "it is not the dataset's tokenizer")
    except (FlyweightError, OSError) as error:
        result.found(run.model, str(error))


def _weight_digests(result: Audit) -> Iterator[str]:
    described: Sequence[dict[str, Any]] = [*result.states.values(), *result.index.values()]
    for state in described:
        yield state["sha256"].get(WEIGHTS, "")


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [finding._asdict() for finding in findings]


__all__ = ["Audit", "Finding", "as_json", "audit", "check_beginning"]
