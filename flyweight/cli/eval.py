"""``flyweight eval``: measure a model."""

from __future__ import annotations

from typing import Annotated

import typer

TASKS = ["bits_per_byte"]


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder or RUN@STEP; any model with --text.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated: bits_per_byte.")] = TASKS[0],
    text: Annotated[list[str] | None, typer.Option(help="Score these files or folders.")] = None,
    bytes: Annotated[int, typer.Option(min=1, help="Score a sample of at most this.")] = 1 << 20,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bits per byte on held-out text, beside gzip, bzip2 and xz on the same bytes."""
    from flyweight.cli.run import evaluate_run, evaluation_table
    from flyweight.data.sources import Skipped, documents
    from flyweight.load import in_run, load
    from flyweight.measure.bits import bits_per_byte, compressors, sample
    from flyweight.spec.errors import FlyweightError
    from flyweight.spec.table import nearest

    for task in tasks.split(","):
        if task not in TASKS:
            raise FlyweightError(f"unknown task `{task}`{nearest(task, TASKS)}")
    if text:
        found = ((d.name, d.text.encode()) for d in documents(text, Skipped()))
        chosen, sampled = sample(found, bytes)
        if not any(size for _, size in chosen):
            raise FlyweightError(f"there is no text in {', '.join(text)}; name some that has any")
        held_out = bits_per_byte(load(model), chosen, sampled).values()
        result = {"held_out": held_out, "compressors": compressors(chosen)}
    elif place := in_run(model):
        run, step = place
        result = evaluate_run(run, bytes, step=step)
    else:
        raise FlyweightError(
            f"{model} is no run folder, so it holds no text; give some: --text PATH"
        )
    if json:
        import json as to

        typer.echo(to.dumps(result))
    else:
        typer.echo(evaluation_table(result))
