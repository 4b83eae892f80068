"""``flyweight import``: a Hugging Face folder to a model folder of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flyweight.files.published import Published


def import_(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.", metavar="HF_DIR")],
    out: Annotated[Path, typer.Argument(help="The model folder to write; must not exist.")],
    like: Annotated[
        str | None, typer.Option(help="A zoo name or a TOML file with family and [model].")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=CHOICE, where a layout leaves one open.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(help="A text: take the options that predict it best.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="In place of the folder's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn HF_DIR (safetensors or .bin weights, config.json, tokenizer) into a model folder.

    No code of the folder is run. A tensor that is missing, unexpected or of another shape is an
    error that names it.
    """
    from flyweight.files.huggingface import as_ours, open_source, refuse_existing, write_import
    from flyweight.zoo.catalog import parameters

    refuse_existing(out)
    source = open_source(folder, like)
    options = {**source.options, **_options(option or [])}
    tried: list[dict[str, Any]] = []
    if fit is not None:
        from flyweight.model.fit_options import fit_options

        tried = fit_options(source, options, fit, tokenizer)
        options = tried[0]["options"]
        for each in tried:
            chosen = ", ".join(f"{k}={v}" for k, v in each["options"].items())
            print(f"{each['loss']:8.4f} nats a token: {chosen}", file=sys.stderr)
    model = as_ours(source, options)
    notes = [*source.notes, *_notes(model)]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    write_import(source, model, out, tokenizer)
    counts = parameters(model.spec)
    if json:
        import json as to

        result = {
            "out": str(out),
            "layout": source.layout.name,
            "options": options,
            "tensors": len(model.kinds),
            "parameters": counts.unique,
            "notes": notes,
        }
        typer.echo(to.dumps(result | ({"fit": tried} if tried else {})))
    else:
        typer.echo(f"{out}: {counts.unique:,} parameters in {len(model.kinds)} tensors")


def _options(written: list[str]) -> dict[str, str]:
    from flyweight.spec.errors import ConfigurationError

    options = {}
    for each in written:
        name, equals, choice = each.partition("=")
        if not equals:
            raise ConfigurationError(f"--option {each}: NAME=CHOICE is wanted")
        options[name.strip()] = choice.strip()
    return options


def _notes(model: Published) -> list[str]:
    ignored = model.findings.ignored
    notes = [f"tied {line}" for line in model.tied()]
    if ignored:
        notes.append(f"not needed, left out ({len(ignored)}): {', '.join(ignored[:3])}")
    return notes
