"""``flyweight models [NAME] [--toml | --json]``: the models known by name."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flyweight.zoo.catalog import ZooEntry


def models(
    name: Annotated[
        str | None, typer.Argument(help="Draw this model, block by block.", show_default=False)
    ] = None,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print the model's spec, to start one's own from.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models known by name, or draw the architecture of one.

    Parameters are unique ones: what is shared counts once. Bytes are those of the weights; a
    token's cache is its keys and values in 16 bits (in models that pool bytes, a patch's).
    """
    from flyweight.spec.errors import ConfigurationError
    from flyweight.zoo import catalog

    if as_toml and (as_json or name is None):
        wrong = "--json" if as_json else "no model's name"
        raise ConfigurationError(f"--toml prints the spec of one model; it was given {wrong}")
    if name is None:
        entries = [catalog.get(each) for each in catalog.names()]
        facts = [_facts(entry) for entry in entries]
        _print(json.dumps(facts, indent=2) if as_json else _table(facts))
        return
    entry = catalog.get(name)
    if as_json:
        _print(json.dumps(_facts(entry) | {"model": entry.spec.values()}, indent=2))
    elif as_toml:
        _print(_toml(entry))
    else:
        from flyweight.zoo.drawing import draw

        _print(draw(entry.name, entry.paper, entry.spec))


def _print(text: str) -> None:
    """To standard output, in ASCII where its encoding has no boxes and arrows."""
    from flyweight.zoo.drawing import ASCII

    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(ASCII)
    print(text)


def _facts(entry: ZooEntry) -> dict[str, Any]:
    from flyweight.zoo.shapes import bytes_per_format, cache_bytes_per_token, parameters

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
        "cache_bytes_per_token": cache_bytes_per_token(entry.spec),
    }


_HEADER = [
    *("", "params", "no emb.", "unshared"),
    *("f32", "bf16", "8 bit", "4 bit", "cache", "context"),
]


def _table(facts: list[dict[str, Any]]) -> str:
    """A heading for each family and its paper, a row for each model by size."""
    from flyweight.zoo import catalog
    from flyweight.zoo.drawing import amount, volume

    def heading(entry: dict[str, Any]) -> tuple[str, str]:
        return entry["family"], entry["paper"]

    rows: list[list[str]] = [_HEADER]
    ordered = sorted(facts, key=lambda entry: (*heading(entry), entry["parameters"]))
    for (family, paper), entries in groupby(ordered, key=heading):
        rows.append([f"{family} · {paper}"])
        for entry in entries:
            unshared = entry["parameters_unshared"]
            shared = unshared != entry["parameters"]
            rows.append(
                [
                    f"  {entry['name']}",
                    amount(entry["parameters"]),
                    amount(entry["parameters_without_embeddings"]),
                    amount(unshared) if shared else "",
                    *(volume(size) for size in entry["bytes"].values()),
                    volume(entry["cache_bytes_per_token"]),
                    f"{entry['context']:,}",
                ]
            )
    full = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    pooled = sorted(n for n in catalog.names() if catalog.get(n).spec.input.kind == "patches")
    notes = [
        "",
        "Parameters are unique ones; unshared: if every use of a shared body had its own.",
        f"Cache: keys and values of a token in 16 bits, of a patch for {', '.join(pooled)}.",
    ]
    return "\n".join(lines + notes)


def _toml(entry: ZooEntry) -> str:
    from flyweight.spec.toml import dumps
    from flyweight.zoo.drawing import volume

    facts = _facts(entry)
    sizes = ", ".join(f"{name} {volume(size)}" for name, size in facts["bytes"].items())
    notes = [
        f"# {facts['parameters']:,} parameters,"
        f" {facts['parameters_without_embeddings']:,} without embeddings"
    ]
    if facts["parameters_unshared"] != facts["parameters"]:
        notes.append(f"# {facts['parameters_unshared']:,} if every use had weights of its own")
    notes.append(f"# {sizes}")
    spec = dumps({"name": entry.name, "paper": entry.paper, "model": entry.spec.values()})
    return "\n".join([*notes, spec.rstrip("\n")])
