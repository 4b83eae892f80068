"""When checkpoints are made and which are kept, against plain lists; the index and its mending."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.files.index import add_entry, entries, entry, mend
from flyweight.files.run import RunFolder, read_checkpoint_state, write_checkpoint
from flyweight.spec.errors import ConfigurationError
from flyweight.spec.run import Checkpoint
from flyweight.train.checkpoints import due, kept
from flyweight.train.ledger import TIMES, Ledger, link


def saved(steps: int, **table: Any) -> list[int]:
    checkpoint = Checkpoint.parse(table)
    return [step for step in range(1, steps + 1) if due(checkpoint, step, steps)]


def test_each_way_of_naming_steps() -> None:
    assert saved(10) == [10], "the last one always"
    assert saved(10, every=4) == [4, 8, 10]
    assert saved(10, at=[7, 2]) == [2, 7, 10]
    assert saved(100, powers=2) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert saved(100, powers=3) == [1, 3, 9, 27, 81, 100]
    assert saved(20, every=8, at=[3], powers=4) == [1, 3, 4, 8, 16, 20]


@given(st.integers(1, 3000), st.integers(1, 400))
def test_so_many_in_all_are_evenly_spread(steps: int, count: int) -> None:
    found = saved(steps, count=count)
    assert len(found) == min(steps, count)
    assert found[-1] == steps
    gaps = {b - a for a, b in zip([0, *found], found, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_mobillama_published_359() -> None:
    assert len(saved(1_200_000, count=359)) == 359


@pytest.mark.parametrize("table", [{"powers": 1}, {"count": 0}, {"at": [0]}, {"keep": -1}])
def test_values_without_a_meaning_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(table))):
        Checkpoint.parse(table)


def lines_of(losses: list[float]) -> list[dict[str, Any]]:
    return [{"step": step + 1, "mean_loss": loss} for step, loss in enumerate(losses)]


def test_by_default_two_are_kept_or_all_where_a_schedule_was_chosen() -> None:
    lines = lines_of([3.0, 2.0, 1.0, 2.5])
    assert kept(Checkpoint.parse({"every": 1}), lines) == {3, 4}
    for chosen in ({"count": 4}, {"at": [1]}, {"powers": 2}):
        assert kept(Checkpoint.parse(chosen), lines) == {1, 2, 3, 4}
        assert kept(Checkpoint.parse({**chosen, "keep": 1}), lines) == {4}
    assert kept(Checkpoint.parse({"every": 1, "keep": 0}), lines) == {1, 2, 3, 4}


@given(
    st.lists(st.floats(0, 9), max_size=30),
    st.integers(1, 5),
    st.none() | st.integers(1, 6),
    st.integers(0, 4),
)
def test_thinning_as_it_goes_keeps_what_the_rules_name(
    losses: list[float], keep: int, keep_every: int | None, keep_best: int
) -> None:
    """Checkpoint after checkpoint, as in a run: what was removed once is never wanted again."""
    checkpoint = Checkpoint(keep=keep, keep_every=keep_every, keep_best=keep_best)
    there: set[int] = {0}
    lines = [{"step": 0}, *lines_of(losses)]
    for n in range(1, len(lines)):
        there = (there | {n}) & kept(checkpoint, lines[: n + 1])
    steps = range(1, len(losses) + 1)
    best = sorted(steps, key=lambda step: (losses[step - 1], step))[:keep_best]
    expected = {0, *steps[-keep:], *best, *(s for s in steps if keep_every and s % keep_every == 0)}
    assert there == expected


# -- the ledger's chain


@dataclass
class Holder:
    chain: str


def record(step: int, loss: float = 1.5) -> dict[str, Any]:
    return {"step": step, "loss": loss, "bits_per_byte": loss, "digest": "ab", "seconds": 0.1}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    return run


def test_the_chain_holds_all_but_times_and_survives_the_file(run: RunFolder) -> None:
    state = Holder("begin")
    with Ledger(run, state) as ledger:
        for step in (1, 2, 3):
            ledger.append(record(step, loss=math.pi / step))
    end = state.chain
    lines = run.read_ledger()
    chain = "begin"
    for line in lines:
        chain = link(chain, line)
        assert line["chain"] == chain
    assert chain == end
    assert link("begin", {**lines[0], **dict.fromkeys(TIMES, 9.9)}) == lines[0]["chain"]
    for key in lines[0].keys() - TIMES - {"chain"}:
        assert link("begin", {**lines[0], key: 7}) != lines[0]["chain"], key
    assert link("begun", lines[0]) != lines[0]["chain"]
    with Ledger(run, Holder(end)) as again:
        again.append(record(4))
    assert run.read_ledger()[3]["chain"] == link(end, record(4))


# -- the index


def make(run: RunFolder, step: int) -> None:
    files = {"model.safetensors": lambda path: path.write_bytes(b"weights %d" % step)}
    write_checkpoint(run, step, files, {"step": step, "tokens": 9, "bytes": 8, "chain": "c"})


def ledger(run: RunFolder, steps: int) -> None:
    with Ledger(run, Holder("begin")) as file:
        for step in range(1, steps + 1):
            file.append(record(step, loss=10.0 / step))


def test_an_entry_describes_its_checkpoint(run: RunFolder) -> None:
    ledger(run, 150)
    make(run, 150)
    state = read_checkpoint_state(run.checkpoint_path(150))
    line = entry(state, run.read_ledger())
    assert (line["step"], line["tokens"], line["loss"]) == (150, 9, 10 / 150)
    assert line["mean_loss"] == pytest.approx(sum(10 / n for n in range(51, 151)) / 100)
    assert line["digest"] == state["sha256"]["state.json"]
    assert line["sha256"] == {"model.safetensors": state["sha256"]["model.safetensors"]}


def test_what_a_crash_kept_out_of_the_index_is_put_back(run: RunFolder) -> None:
    ledger(run, 6)
    for step in (0, 2, 4, 6):
        make(run, step)
        state = read_checkpoint_state(run.checkpoint_path(step))
        add_entry(run, entry(state, run.read_ledger()[:step]))
    whole = run.index.read_text()
    lines = whole.splitlines(keepends=True)
    for left in ("".join(lines[:3]), whole[:-30], "".join(lines[:2]) + "{"):
        run.index.write_text(left)
        assert [line["step"] for line in entries(run)] == [0, 2, 4, 6]
        mend(run, 6)
        assert run.index.read_text() == whole
    mend(run, 4)
    assert run.index.read_text() == "".join(lines[:3]), "step 6 will be taken again"


def test_the_index_remembers_what_was_thinned(run: RunFolder) -> None:
    ledger(run, 3)
    for step in (1, 2, 3):
        make(run, step)
        state = read_checkpoint_state(run.checkpoint_path(step))
        add_entry(run, entry(state, run.read_ledger()[:step]))
    run.thin({3})
    assert run.steps() == [3]
    mend(run, 3)
    assert [json.loads(line)["step"] for line in run.index.read_text().splitlines()] == [1, 2, 3]
