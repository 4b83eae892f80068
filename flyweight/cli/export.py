"""``flyweight export``: a model as the files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FORMATS = ["hf"]


def export(
    model: Annotated[str, typer.Argument(help="Any MODEL; see the README.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    to: Annotated[str, typer.Option(help="The format: hf.")] = "hf",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write MODEL as a folder that Hugging Face's transformers loads without remote code."""
    from flyweight.files.to_huggingface import write_huggingface
    from flyweight.load import stored
    from flyweight.spec.errors import FlyweightError
    from flyweight.spec.table import nearest

    if to not in FORMATS:
        raise FlyweightError(f"--to {to}{nearest(to, FORMATS)}")
    found = stored(model)
    if found.tokenizer is None:
        raise FlyweightError(f"{model} has neither weights nor a tokenizer; name a trained model")
    target = write_huggingface(
        found.spec, found.weights, found.tokenizer, out, found.name, found.family
    )
    kind = target.config["architectures"][0]
    if json:
        import json as as_json

        result = {"out": str(out), "architecture": kind, "folded": target.folded}
        typer.echo(as_json.dumps(result))
    else:
        typer.echo(f"{out}: {kind}")
