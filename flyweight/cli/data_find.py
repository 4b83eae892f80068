"""`flyweight data inspect --find`: the steps at which a passage was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from flyweight.files.run import RunFolder

if TYPE_CHECKING:
    from flyweight.data.batches import Batches
    from flyweight.data.find import Hits, Readings, Taken
    from flyweight.data.shards import Dataset

_SHOWN = 20


def show_readings(path: Path, batches: Batches, passage: str, as_json: bool) -> None:
    """Print them. ``path``: a run, as far as it has come; or a dataset, read through once in the
    order of ``batches``."""
    from flyweight.data.find import find, readings

    dataset = batches.dataset
    hits = find(dataset.train, dataset.tokenizer, dataset.eot_id, passage)
    stretches = _of_run(path, dataset) if (path / "run.toml").is_file() else [_once(batches)]
    found = readings(hits, stretches)
    taken = sum(len(stretch.steps) for stretch in stretches)
    if as_json:
        typer.echo(json.dumps(_values(dataset, passage, hits, found, taken)))
        return
    size, entries = len(passage.encode()), dataset.train.entries
    for i in range(min(_SHOWN, len(found.steps))):
        hit = found.hits[i]
        name, at = entries[hits.documents[hit]].name, hits.at[hit]
        typer.echo(f"step {found.steps[i]}  row {found.rows[i]}  {name}  bytes {at}-{at + size}")
    if len(found.steps) > _SHOWN:
        typer.echo(f"... and {len(found.steps) - _SHOWN:,} more; --json has them all")
    steps = len(np.unique(found.steps))
    typer.echo(
        f"{len(hits.starts):,} occurrences in {len(np.unique(hits.documents)):,} documents of the"
        f" training text; read in {steps:,} of {taken:,} steps",
        err=True,
    )
    if not len(hits.starts):
        held_out = find(dataset.held_out, dataset.tokenizer, dataset.eot_id, passage)
        if len(held_out.starts):
            typer.echo(f"the held-out text has it {len(held_out.starts):,} times", err=True)


def _once(batches: Batches) -> Taken:
    """The steps of one reading of the whole text."""
    from flyweight.data.find import Taken

    steps = np.arange(batches.stream.tokens // batches.context // batches.rows, dtype=np.int64)
    return Taken(batches, steps + 1, steps * batches.rows, np.full_like(steps, batches.rows))


def _of_run(path: Path, dataset: Dataset) -> list[Taken]:
    """A run's steps by its ledger, which knows the windows that were skipped."""
    from flyweight.data.find import Taken
    from flyweight.train.mixes import mixes
    from flyweight.train.schedule import Plan

    run = RunFolder.open(path)
    spec, ledger = run.spec(), run.read_ledger()
    main, decay = mixes(spec, dataset)
    counts = Plan(spec.train, switch=decay is not None).windows
    stretches = []
    for mix, batches in (("main", main), ("decay", decay)):
        lines = [line for line in ledger if line.get("mix", "main") == mix]
        if batches is not None:
            steps = np.array([line["step"] for line in lines], dtype=np.int64)
            firsts = np.array([line["window"] for line in lines], dtype=np.int64)
            stretches.append(Taken(batches, steps, firsts, counts[steps - 1]))
    return stretches


def _values(
    dataset: Dataset, passage: str, hits: Hits, found: Readings, steps: int
) -> dict[str, Any]:
    size, entries = len(passage.encode()), dataset.train.entries
    occurrences = [
        {
            "document": document,
            "name": entries[document].name,
            "start_byte": at,
            "end_byte": at + size,
        }
        for document, at in zip(hits.documents.tolist(), hits.at.tolist(), strict=True)
    ]
    columns = (column.tolist() for column in found)
    read = [
        {"occurrence": hit, "step": step, "row": row}
        for hit, step, row in zip(*columns, strict=True)
    ]
    return {"find": passage, "steps": steps, "occurrences": occurrences, "readings": read}
