"""``flyweight data``: its two commands; `build` has a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flyweight.cli.data_build import build
from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError

if TYPE_CHECKING:
    from flyweight.data.batches import Batches, Span
    from flyweight.data.shards import Dataset
    from flyweight.spec.run import RunSpec

app = typer.Typer(
    name="data",
    help="Build datasets of tokens, and look into them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
_START = 60


app.command()(build)


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET|RUN", help="A dataset or a run.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="Show this step's batch; 1 is a run's first.")
    ] = None,
    find: Annotated[
        str | None, typer.Option(metavar="TEXT", help="List the steps that read this passage.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first K rows.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the run's, or 0.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Default: the run's, or 512.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Default: the run's, or 8192.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What a dataset holds, the documents of one step's batch, or the steps that read a text."""
    dataset = dataset.expanduser()
    if find is not None and step is not None:
        raise ConfigurationError("--find and --step are two questions: ask one of them")
    opened, batching, spec = _open(dataset)
    if step is None and find is None:
        typer.echo(json.dumps(opened.record) if as_json else statistics(opened))
        return
    import numpy as np

    from flyweight.data.batches import Batches
    from flyweight.files.run import RunFolder

    given = {"seed": seed, "context": context, "batch_tokens": batch_tokens}
    given = {key: value for key, value in given.items() if value is not None}
    if find is not None:
        from flyweight.cli.data_find import show_readings

        if spec is not None and given:
            raise ConfigurationError(
                f"--{next(iter(given)).replace('_', '-')}: a run has an order of its own;"
                " leave it out, or name the dataset"
            )
        show_readings(dataset, Batches(opened, **{**batching, **given}), find, as_json)
        return
    assert step is not None
    # The ledger counts finished steps, the order from 0.
    if spec is not None and not given:
        batches, first, count = _of_run(spec, opened, step - 1)
        # What was skipped moves all that follows; the ledger knows.
        taken = RunFolder(dataset).read_ledger()[step - 1 : step]
        first = taken[0]["window"] if taken else first
    else:
        batches = Batches(opened, **{**batching, **given})
        first, count = (step - 1) * batches.rows, batches.rows
    found = batches.documents_in(first + np.arange(count)[:rows])
    shown = [[_part(batches, span) for span in row] for row in found]
    if as_json:
        typer.echo(json.dumps({"step": step, **batches.order, "rows": shown}, ensure_ascii=False))
        return
    typer.echo(f"step {step}: {count} rows of {batches.context} tokens", err=True)
    for number, row in enumerate(shown):
        typer.echo(f"row {number}")
        for part in row:
            where = f"bytes {part['start_byte']}-{part['end_byte']}"
            tokens = f"tokens {part['start']}-{part['end']}"
            typer.echo(f"  {part['name']}  {where}  {tokens}")
            typer.echo(f"    {part['text']!r}")


def _of_run(spec: RunSpec, dataset: Dataset, step: int) -> tuple[Batches, int, int]:
    """(batches, first window, windows) of a run's step, counted from 0."""
    from flyweight.train.mixes import mixes
    from flyweight.train.schedule import Plan

    main, decay = mixes(spec, dataset)
    if spec.train.steps is None or step >= spec.train.steps:
        return main, step * main.rows, main.rows
    moment = Plan(spec.train, switch=decay is not None).at(step)
    batches = decay if decay is not None and moment.mix == "decay" else main
    return batches, moment.first, moment.windows


def _open(path: Path) -> tuple[Dataset, dict[str, Any], RunSpec | None]:
    """A dataset, the seed, context and batch_tokens of its run or the defaults, and the run."""
    from flyweight.data.shards import Dataset, is_dataset
    from flyweight.spec import run, toml

    path = path.expanduser()
    if not path.is_dir():
        raise FlyweightError(f"no such dataset or run: {path}")
    if is_dataset(path) or not (path / "data.json").is_file():
        train, seed, spec = run.Train(), 0, None
        dataset = Dataset.open(path)
    else:
        try:
            recorded = json.loads((path / "data.json").read_text(encoding="utf-8"))
            place, fingerprint = Path(recorded["dataset"]), recorded["fingerprint"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CorruptFileError(f"{path / 'data.json'} cannot be read: {error!r}") from None
        # A relative path is the user's, from where the run was started, or the run's own.
        dataset = Dataset.open(path / place if is_dataset(path / place) else place)
        if dataset.fingerprint != fingerprint:
            raise FlyweightError(
                f"the dataset {dataset.path} is not the one that {path} was trained on"
                f" (fingerprint {dataset.fingerprint[:12]}, the run's is {str(fingerprint)[:12]});"
                " build it again from the run's text"
            )
        spec = run.RunSpec.parse(toml.read(path / "run.toml"))
        train, seed = spec.train, spec.seed
    batching = {"seed": seed, "context": train.context, "batch_tokens": train.batch_tokens}
    return dataset, batching, spec


def _part(batches: Batches, span: Span) -> dict[str, Any]:
    """A span for people and machines: its name, where it is, and how its text starts."""
    begin = int(batches.stream.starts[span.document]) + 1 + span.start
    stop = min(begin + _START, begin + span.end - span.start)
    text = batches.dataset.tokenizer.decode(batches.stream.read(begin, stop).tolist())
    return {
        "name": span.name,
        "start": span.start,
        "end": span.end,
        "start_byte": span.start_byte,
        "end_byte": span.end_byte,
        "text": text[:_START],
    }


def statistics(dataset: Dataset) -> str:
    kind = dataset.record["tokenizer_kind"]
    lines = [
        f"dataset      {dataset.path}",
        f"fingerprint  {dataset.fingerprint}",
        f"tokenizer    {kind}, {dataset.vocab_size} tokens, {dataset.tokenizer_digest[:12]}",
    ]
    for split in (dataset.train, dataset.held_out):
        lines.append(
            f"{split.name:<12} {split.documents:,} documents, {split.bytes:,} bytes,"
            f" {split.tokens:,} tokens"
        )
    for source, counts in dataset.record["sources"].items():
        lines.append(
            f"source       {source}: {counts['documents']:,} documents, {counts['bytes']:,} bytes"
        )
    lines += [f"notice       {notice}" for notice in dataset.record.get("notices", [])]
    return "\n".join(lines)
