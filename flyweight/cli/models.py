"""``flyweight models [NAME] [--json]``: the zoo, and what each model weighs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flyweight.zoo.catalog import ZooEntry


def models(
    name: Annotated[
        str | None, typer.Argument(help="Print this model's spec.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models known by name, or print the spec of one as TOML.

    Parameters are unique ones: what is shared counts once. Bytes are those of the weights.
    """
    from flyweight.zoo import catalog

    if name is None:
        entries = [_facts(catalog.get(each)) for each in catalog.names()]
        print(json.dumps(entries, indent=2) if as_json else _table(entries))
        return
    entry = catalog.get(name)
    if as_json:
        facts = _facts(entry) | {"model": entry.spec.values()}
        print(json.dumps(facts, indent=2))
    else:
        print(_toml(entry))


def _facts(entry: ZooEntry) -> dict[str, Any]:
    from flyweight.zoo.shapes import bytes_per_format, parameters

    counts = parameters(entry.spec)
    return {
        "name": entry.name,
        "family": entry.family,
        "parameters": counts.unique,
        "parameters_without_embeddings": counts.without_embeddings,
        "parameters_unshared": counts.total,
        "context": entry.spec.context,
        "paper": entry.paper,
        "bytes": bytes_per_format(entry.spec),
    }


def _table(entries: list[dict[str, Any]]) -> str:
    rows = [["name", "parameters", "without embeddings", "context", "bf16", "q4_0", "paper"]]
    for entry in entries:
        rows.append(
            [
                entry["name"],
                _millions(entry["parameters"]),
                _millions(entry["parameters_without_embeddings"]),
                str(entry["context"]),
                _megabytes(entry["bytes"]["bf16"]),
                _megabytes(entry["bytes"]["q4_0"]),
                entry["paper"],
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = {0, len(widths) - 1}
    lines = (
        "  ".join(
            cell.ljust(width) if i in text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _toml(entry: ZooEntry) -> str:
    from flyweight.spec.toml import dumps

    facts = _facts(entry)
    sizes = ", ".join(f"{name} {_megabytes(size)}" for name, size in facts["bytes"].items())
    notes = [
        f"# {facts['parameters']:,} parameters,"
        f" {facts['parameters_without_embeddings']:,} without embeddings"
    ]
    if facts["parameters_unshared"] != facts["parameters"]:
        notes.append(f"# {facts['parameters_unshared']:,} if every use had weights of its own")
    notes.append(f"# {sizes}")
    spec = dumps({"name": entry.name, "paper": entry.paper, "model": entry.spec.values()})
    return "\n".join([*notes, spec.rstrip("\n")])


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
