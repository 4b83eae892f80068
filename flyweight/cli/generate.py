"""``flyweight generate``: continue a prompt, streaming."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flyweight.text.talk import Step


def generate(
    model: Annotated[str, typer.Argument(help="Any MODEL; see the README.")],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; - reads it.")] = None,
    max_tokens: Annotated[int, typer.Option(help="At most this many tokens.")] = 256,
    min_tokens: Annotated[int, typer.Option(help="No end of text before this many.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample within this mass.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Of the likeliest's probability.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, what was said becomes less likely.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text.")] = None,
    engine: Annotated[str, typer.Option(help="native, torch or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Processor threads.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Convert the weights in memory: q8_0, q4_0, ...")
    ] = None,
    cache: Annotated[
        str, typer.Option(help="Keys and values: f32, f16, bf16, q8_0; auto: f32 with f32 weights.")
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Continue PROMPT with MODEL. Standard output carries the continuation alone."""
    import time

    from flyweight.cli.notice import note
    from flyweight.load import load
    from flyweight.text.talk import Sampling, pieces

    text = _standard_input() if prompt == "-" else prompt or ""
    loaded = load(model, threads, engine, format, cache, note)
    given, context = len(loaded.tokenizer.encode(text)), loaded.spec.context
    if given > context and loaded.spec.encoder is None:
        note(f"the prompt has {given} tokens: the newest {context}, the model's context, are read")
    sampling = Sampling(
        max_tokens, min_tokens, temperature, top_k, top_p, seed, min_p, repetition_penalty
    )
    times = [time.perf_counter()]

    def timed() -> Iterator[Step]:
        for step in loaded.steps(text, sampling):
            times.append(time.perf_counter())
            yield step

    shown = []
    for piece in pieces(timed(), loaded.tokenizer, stop):
        shown.append(piece)
        if not json:
            _show(piece)
    tokens, seconds = len(times) - 1, time.perf_counter() - times[0]
    if json:
        import json as to

        first = round(times[1] - times[0], 3) if tokens else None
        made = {"tokens": tokens, "seconds": round(seconds, 3), "first_token_seconds": first}
        typer.echo(to.dumps({"prompt": text, "text": "".join(shown), **made}))
    else:
        sys.stdout.write("\n")
        said = f"{tokens} token{'' if tokens == 1 else 's'}"
        if tokens:
            said += f", the first after {times[1] - times[0]:.2f} s"
        if tokens > 1:
            said += f", then {(tokens - 1) / (times[-1] - times[1]):.0f} a second"
        print(said, file=sys.stderr)


def _show(piece: str) -> None:
    # What a model made up must not steer a terminal; a file or a pipe gets it as it is.
    if sys.stdout.isatty():
        from flyweight.report.wording import visible

        piece = visible(piece)
    sys.stdout.write(piece)
    sys.stdout.flush()


def _standard_input() -> str:
    from flyweight.spec.errors import FlyweightError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FlyweightError(
            f"the prompt on standard input is not UTF-8 (byte {error.start}); convert it first"
        ) from None
