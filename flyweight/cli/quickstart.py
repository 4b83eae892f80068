"""``flyweight quickstart``: raw text to a model that talks, in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

HELD_OUT_BYTES = 600_000


def quickstart(
    text: Annotated[list[str] | None, typer.Option(help="Your files or folders.")] = None,
    minutes: Annotated[float, typer.Option(help="Training budget.", min=0.05)] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/quickstart.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and data order.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a small byte model on your text (default: Python's standard library), and try it."""
    import json as to

    from flyweight.cli.run import (
        evaluate_run,
        evaluation_table,
        free_folder,
        prompts_from,
        sampler,
        watched,
    )
    from flyweight.report.page import write_report
    from flyweight.train.start import open_dataset, train_run

    folder = out or free_folder(Path("runs/quickstart"))
    values: dict[str, Any] = {
        "name": folder.name,
        "seed": seed,
        "data": {"train": [str(Path(item).expanduser().absolute()) for item in text or []]},
        "train": {"minutes": minutes},
    }
    with watched() as (view, progress):
        view.notice(f"text: {', '.join(text) if text else 'the Python standard library'}")
        run = train_run(values, folder, view, progress, sampler(view))
        result = evaluate_run(run, HELD_OUT_BYTES, view)
    page = write_report(run.path)
    samples = _completions(run.path, prompts_from(open_dataset(run), 3), quiet=json)
    if json:
        typer.echo(
            to.dumps({"run": str(run.path), "report": str(page), **result, "samples": samples})
        )
        return
    typer.echo(f"\n{evaluation_table(result)}")
    print(
        f"\nmodel:    {run.model}\n"
        f"picture:  {page}\n\n"
        "Next:\n"
        f'  flyweight generate {run.path} "def main("\n'
        f"  flyweight data inspect {run.path} --step 1\n"
        f"  flyweight quickstart --text PATH --minutes 10",
        file=sys.stderr,
    )


def _completions(run: Path, prompts: list[str], quiet: bool) -> list[dict[str, str]]:
    """Continue each prompt, streaming to standard output."""
    from flyweight.cli.run import SAMPLE_TEMPERATURE
    from flyweight.load import load

    model = load(run)
    samples = []
    for prompt in prompts:
        pieces = []
        if not quiet:
            sys.stdout.write(f"\n\033[1m{prompt}\033[0m" if sys.stdout.isatty() else f"\n{prompt}")
        for piece in model.stream(prompt, max_tokens=200, temperature=SAMPLE_TEMPERATURE):
            pieces.append(piece)
            if not quiet:
                sys.stdout.write(_printable(piece))
                sys.stdout.flush()
        if not quiet:
            sys.stdout.write("\n")
        samples.append({"prompt": prompt, "text": "".join(pieces)})
    return samples


def _printable(text: str) -> str:
    """What a model made up must not steer the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)
