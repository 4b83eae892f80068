"""``flyweight bench``: what a model costs on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer


def bench(
    model: Annotated[str, typer.Argument(help="Any MODEL; see the README.")],
    prompt: Annotated[str, typer.Option(help="Prompt lengths, in tokens.")] = "32,128,512",
    threads: Annotated[str | None, typer.Option(help="Numbers of threads: 1,2.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 3,
    engine: Annotated[str, typer.Option(help="native, torch or auto.")] = "auto",
    format: Annotated[
        str | None, typer.Option(help="Convert the weights in memory: q8_0, q4_0, ...")
    ] = None,
    cache: Annotated[
        str, typer.Option(help="Keys and values: f32, f16, bf16, q8_0; auto: f32 with f32 weights.")
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time MODEL: to the first token, prefill and decode, its memory, and the memory's limit."""
    import json as to
    import os

    from flyweight.cli.notice import note

    lengths = _numbers("prompt", prompt)
    counts = _numbers("threads", threads or str(os.cpu_count() or 1))
    settings = (engine, format, cache)
    results = [_measured(model, count, lengths, tokens, rounds, settings, note) for count in counts]
    if json:
        typer.echo(to.dumps({"model": model, "tokens": tokens, "runs": results}))
        return
    for result in results:
        typer.echo(_table(result))


def _measured(
    model: str,
    threads: int,
    lengths: list[int],
    tokens: int,
    rounds: int,
    settings: tuple[str, str | None, str],
    notice: Any,
) -> dict[str, Any]:
    import time

    from flyweight.engine.processor import read_bandwidth
    from flyweight.load import load
    from flyweight.measure.cost import speeds

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{threads} threads: {text}", end="", file=sys.stderr, flush=True)

    begin = time.perf_counter()
    loaded = load(model, threads, *settings, notice)
    load_seconds = time.perf_counter() - begin
    before = read_bandwidth(threads)
    found = speeds(loaded, lengths, tokens, rounds, progress)
    progress("")
    # The machine's own speed changes within minutes.
    after = read_bandwidth(threads)
    bandwidth = None if before is None or after is None else (before + after) / 2
    result: dict[str, Any] = {
        "engine": type(loaded).__name__.removesuffix("Model").lower(),
        "threads": threads,
        "load_seconds": load_seconds,
        "bandwidth": bandwidth,
        "speeds": [speed.values() for speed in found],
    }
    for name in ("isa", "cache"):
        if (value := getattr(loaded, name, None)) is not None:
            result[name] = value
    if (memory := getattr(loaded, "memory", None)) is not None:
        result["memory"] = memory()._asdict()
    if (read := getattr(loaded, "read_bytes", None)) is not None:
        for speed, values in zip(found, result["speeds"], strict=True):
            size = read(speed.prompt + tokens // 2)
            if size is not None and bandwidth is not None:
                values["read_bytes_per_token"] = size
                values["share_of_bandwidth"] = size * speed.decode_per_second / bandwidth
    return result


def _numbers(name: str, text: str) -> list[int]:
    from flyweight.spec.errors import FlyweightError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise FlyweightError(f"--{name} {text}: different numbers of 1 or more, as 1,2, are wanted")
    return numbers


def _table(result: dict[str, Any]) -> str:
    """The figures of one number of threads."""
    threads = result["threads"]
    engine = " ".join(filter(None, (result["engine"], result.get("isa"))))
    memory_speed = ""
    if result["bandwidth"] is not None:
        memory_speed = f"; memory is read at {result['bandwidth'] / 1e9:.1f} GB/s"
    lines = [
        f"{threads} thread{'s' if threads > 1 else ''}, {engine}: loaded in"
        f" {result['load_seconds']:.2f} s{memory_speed}",
        f"  {'prompt':>8} {'first token':>13} {'prefill':>13} {'decode':>13} {'of the limit':>13}",
    ]
    for speed in result["speeds"]:
        share = speed.get("share_of_bandwidth")
        lines.append(
            f"  {speed['prompt']:>8}"
            f" {speed['first_token_seconds'] * 1000:>10.1f} ms"
            f" {speed['prefill_per_second']:>9.0f} t/s"
            f" {speed['decode_per_second']:>9.1f} t/s"
            f" {'' if share is None else f'{share:.0%}':>13}"
        )
    if memory := result.get("memory"):
        sizes = {name: f"{name} {size / 1e6:.1f} MB" for name, size in memory.items()}
        if "cache" in sizes and "cache" in result:
            sizes["cache"] += f" ({result['cache']})"
        lines.append(f"  {', '.join(sizes.values())}")
    return "\n".join(lines)
