"""A run's configuration from its file and the command line, with absolute paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyweight.data.paths import locate
from flyweight.spec import toml
from flyweight.spec.errors import ConfigurationError
from flyweight.zoo import catalog


def read_config(path: Path, settings: list[str]) -> dict[str, Any]:
    """A run's TOML with dotted overrides laid on.

    Relative paths in the file are relative to the file's folder, those in overrides to the
    working directory. All become absolute, so that run.toml means the same wherever it is read.
    """
    values = toml.read(path)
    absolute_paths(values, path.parent.absolute())
    values = toml.override(values, settings)
    absolute_paths(values, Path.cwd())
    values.setdefault("name", path.stem)
    return values


def absolute_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths in a run's tables absolute, in place; relative ones are below ``folder``."""
    data, text = values.get("data"), values.get("text")
    if isinstance(data, dict):
        for key in ("train", "held_out"):
            if isinstance(data.get(key), list):
                data[key] = [_absolute(folder, item) for item in data[key]]
        locate(data, folder)
        sources = data.get("sources")
        for source in sources.values() if isinstance(sources, dict) else ():
            if isinstance(source, dict) and isinstance(source.get("paths"), list):
                source["paths"] = [_absolute(folder, item) for item in source["paths"]]
    if isinstance(text, dict):
        tokenizer = text.get("tokenizer")
        if isinstance(tokenizer, str) and tokenizer not in ("bytes", "bpe", "unigram"):
            text["tokenizer"] = _absolute(folder, tokenizer)
        elif isinstance(tokenizer, dict) and isinstance(tokenizer.get("path"), str):
            text["tokenizer"] = {**tokenizer, "path": _absolute(folder, tokenizer["path"])}
    for table, key in (("model", "start"), ("start", "model")):
        tables = values.get(table)
        if isinstance(tables, dict) and isinstance(tables.get(key), str):
            # A name of the zoo stays one, to be refused as what it is.
            if (folder / tables[key]).exists() or tables[key] not in catalog.names():
                tables[key] = _absolute(folder, tables[key])


def _absolute(folder: Path, item: Any) -> Any:
    if not isinstance(item, str):
        raise ConfigurationError(f"data lists file names; {item!r} is none")
    return item if item == "-" else str(folder / Path(item).expanduser())
