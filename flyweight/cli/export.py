"""``flyweight export``: a model as the files that other programs read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flyweight.cli.notice import note

FORMATS = ["hf", "gguf"]


def export(
    model: Annotated[str, typer.Argument(help="Any MODEL; see the README.")],
    out: Annotated[Path, typer.Argument(help="What to write; must not exist.")],
    to: Annotated[str, typer.Option(help="hf (a folder) or gguf (a file).")] = "hf",
    type: Annotated[
        str | None,
        typer.Option(
            help="Of gguf: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1 or q4_k_m.",
            show_default="f16",
        ),
    ] = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Of gguf: repeat shared tensors, for llama.cpp.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write MODEL as a folder that Hugging Face's transformers loads without remote code, or as a
    GGUF file, which llama.cpp runs where it knows the architecture.

    A zoo name gives a GGUF file with random weights and a placeholder tokenizer.
    """
    from flyweight.spec.errors import FlyweightError
    from flyweight.spec.table import nearest

    if to not in FORMATS:
        raise FlyweightError(f"--to {to}{nearest(to, FORMATS)}")
    if to == "gguf":
        result = _gguf(model, out, type or "f16", expand)
        kind = f"{result['architecture']}, {result['bytes'] / 2**20:,.1f} MiB"
    else:
        if type is not None or expand:
            raise FlyweightError("--type and --expand belong to --to gguf")
        result = _hf(model, out)
        kind = result["architecture"]
    if json:
        import json as as_json

        typer.echo(as_json.dumps(result))
    else:
        typer.echo(f"{out}: {kind}")


def _hf(model: str, out: Path) -> dict[str, Any]:
    from flyweight.files.to_huggingface import write_huggingface
    from flyweight.load import stored
    from flyweight.spec.errors import FlyweightError

    found = stored(model, note)
    if found.tokenizer is None:
        raise FlyweightError(f"{model} has neither weights nor a tokenizer; name a trained model")
    target = write_huggingface(
        found.spec, found.weights, found.tokenizer, out, found.name, found.family
    )
    kind = target.config["architectures"][0]
    return {"out": str(out), "architecture": kind, "folded": target.folded}


def _gguf(model: str, out: Path, type: str, expand: bool) -> dict[str, Any]:
    from flyweight.files.random_weights import RandomSource
    from flyweight.files.to_gguf import Source, StoredSource, chat_template, export_gguf
    from flyweight.load import stored
    from flyweight.text.gguf_tokens import placeholder
    from flyweight.text.load import load_tokenizer
    from flyweight.zoo import catalog

    template = None
    source: Source
    if model in catalog.names() and not Path(model).exists():
        spec, name, family = catalog.get(model).spec, model, ""
        source, tokenizer = RandomSource(spec), placeholder(spec.vocab_size)
        note(f"{model} is a name of the zoo: random weights and a placeholder tokenizer")
    else:
        found = stored(model, note)
        assert found.tokenizer is not None
        spec, name, family = found.spec, found.name, found.family
        source, tokenizer = StoredSource(found.weights), load_tokenizer(found.tokenizer)
        template = chat_template(found.tokenizer)
    made = export_gguf(
        spec, source, tokenizer, out, name, type, family, expand, template, _Progress(out)
    )
    for each in made.notes:
        note(each)
    return {
        "out": str(out),
        "architecture": made.architecture,
        "type": type,
        "bytes": made.bytes,
        "notes": list(made.notes),
    }


class _Progress:
    """A line on standard error, for a person: renewed at every hundredth."""

    def __init__(self, out: Path) -> None:
        self.out, self.shown = out, -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(1, total)
        if not sys.stderr.isatty() or percent == self.shown:
            return
        self.shown = percent
        end = "\r\033[K" if done == total else ""
        print(f"\r{self.out}: {percent} %{end}", end="", file=sys.stderr, flush=True)
