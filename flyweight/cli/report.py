"""``flyweight report RUN``: write the run's page, print where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write RUN/report.html, one self-contained page, and print its path."""
    from flyweight.report.page import write_report
    from flyweight.report.record import read_run

    path = write_report(run)
    if not json:
        typer.echo(path)
        return
    from json import dumps

    record = read_run(run)
    figures = {
        "report": str(path),
        "name": record.name,
        "steps": record.last_step,
        "seconds": record.seconds,
        "training_bits_per_byte": record.training_bits,
        "held_out_bits_per_byte": record.held_out_bits,
    }
    typer.echo(dumps(figures))
