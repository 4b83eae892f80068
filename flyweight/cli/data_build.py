"""``flyweight data build``: raw files to a dataset."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flyweight.spec.errors import ConfigurationError

if TYPE_CHECKING:
    from flyweight.data.build import Progress
    from flyweight.data.report import Report
    from flyweight.spec.data import Data
    from flyweight.spec.run import Text

_WORDS = {
    "read": "reading text",
    "clean": "cleaning",
    "tokenizer": "training the tokenizer",
    "encode": "packing",
}


def build(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="[data] and [text].")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Settings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The dataset's folder; default: datasets/NAME.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would stay and what not; write nothing.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished build left.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print dataset.json.")] = False,
) -> None:
    """Read, clean, split, tokenise and pack text into a dataset folder.

    A build that was interrupted goes on when the same command is given again.
    """
    from flyweight.cli.data import statistics
    from flyweight.data.build import build as build_dataset
    from flyweight.data.build import dry_run as only_look
    from flyweight.train.data_worker import OPENER

    name, data, text = _configuration(config, overrides or [])
    place = out or Path("datasets") / name
    base, show = config.parent, progress()
    if dry_run:
        report = only_look(data, place, show, base, OPENER)
        typer.echo(json.dumps(report.to_dict()) if as_json else _shown(report, name))
        return
    dataset = build_dataset(data, text.tokenizer, place, show, base, restart, OPENER)
    for notice in dataset.record.get("notices", []):
        typer.echo(notice, err=True)
    typer.echo(json.dumps(dataset.record) if as_json else statistics(dataset))


def progress() -> Progress:
    """What a build is at, on standard error: a line that is rewritten on a terminal, else a line
    for each stage."""
    terminal = sys.stderr.isatty()
    said: set[str] = set()

    def show(stage: str, done: int, total: int | None) -> None:
        words = _WORDS.get(stage, stage)
        if terminal:
            many = f"{done / total:.0%}" if total else f"{done:,} documents" if done else "..."
            print(f"\r{words} {many}\x1b[K", end="\n" * (done == total), file=sys.stderr)
        elif stage not in said:
            said.add(stage)
            print(f"{words} ...", file=sys.stderr)
        sys.stderr.flush()

    return show


def _shown(report: Report, name: str) -> str:
    return report.markdown(name).rstrip("\n")


def _configuration(config: Path, overrides: list[str]) -> tuple[str, Data, Text]:
    """(name, [data], [text]) of a configuration; what it says of model and training is not read.

    Relative paths are the file's; a tokenizer's becomes absolute here, texts' in the build.
    """
    from flyweight.data.paths import locate
    from flyweight.spec import run, toml
    from flyweight.spec.table import nearest

    values = toml.override(toml.read(config), overrides)
    known = sorted(run.RunSpec.keys())
    for key in values:
        if key not in known:
            raise ConfigurationError(f"unknown key `{key}`{nearest(key, known)}")
    for key in ("data", "text"):
        if not isinstance(values.get(key, {}), dict):
            raise ConfigurationError(f"`{key}` must be a table (got {values[key]!r})")
    name = values.get("name", config.stem)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"`name` must be text (got {name!r})")
    if "data" in values:
        locate(values["data"], config.parent)
    data = run.Data.parse(values.get("data", {}), "data")
    text = run.Text.parse(_located(values.get("text", {}), config.parent), "text")
    return name, data, text


def _located(text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """[text] with the tokenizer's path as it is from here."""
    tokenizer = text.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer not in ("bytes", "bpe", "unigram"):
        return {**text, "tokenizer": str(folder / Path(tokenizer).expanduser())}
    if isinstance(tokenizer, dict) and isinstance(tokenizer.get("path"), str):
        path = str(folder / Path(tokenizer["path"]).expanduser())
        return {**text, "tokenizer": {**tokenizer, "path": path}}
    return text
