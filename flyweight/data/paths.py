"""Where the files lie that [data.clean] and [data.decontaminate] name: by the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The tables below [data] whose key ``files`` lists some.
_FILES = (("clean", "bad_words"), ("clean", "keywords"), ("decontaminate",))


def locate_cleaning(data: dict[str, Any], folder: Path) -> None:
    """Make the paths in the [data] table, not checked yet, absolute or relative to here, where
    they were relative to ``folder``. A model's name stays where no such file is there."""
    for tables in _FILES:
        table = _table(data, tables)
        if isinstance(table.get("files"), list):
            table["files"] = [_below(folder, item) for item in table["files"]]
    perplexity = _table(data, ("clean", "perplexity"))
    model = perplexity.get("model")
    if isinstance(model, str) and Path(_below(folder, model.partition("@")[0])).exists():
        perplexity["model"] = _below(folder, model)


def _table(data: dict[str, Any], tables: tuple[str, ...]) -> dict[str, Any]:
    """The table below ``data``, or an empty one where it is none: the check says so later."""
    for name in tables:
        inner = data.get(name)
        if not isinstance(inner, dict):
            return {}
        data = inner
    return data


def _below(folder: Path, item: Any) -> Any:
    return str(folder / Path(item).expanduser()) if isinstance(item, str) else item
