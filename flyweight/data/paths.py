"""Where the files lie that the tables below [data] name: by the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The tables below [data] whose key ``files`` lists some.
_FILES = (("clean", "bad_words"), ("clean", "keywords"), ("decontaminate",))


def locate(data: dict[str, Any], folder: Path) -> None:
    """Make the paths in the tables below [data], not checked yet, absolute or relative to here,
    where they were relative to ``folder``: the files of [data.clean], [data.decontaminate] and
    [data.mix]. A model's name stays where no such file is there."""
    for tables in _FILES:
        table = _table(data, tables)
        if isinstance(table.get("files"), list):
            table["files"] = [_below(folder, item) for item in table["files"]]
    perplexity = _table(data, ("clean", "perplexity"))
    model = perplexity.get("model")
    if isinstance(model, str) and Path(_below(folder, model.partition("@")[0])).exists():
        perplexity["model"] = _below(folder, model)
    for mix in (_table(data, ("mix",)), _table(data, ("mix", "decay"))):
        if "file" in mix:
            mix["file"] = _below(folder, mix["file"])


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
