"""``flyweight report RUN``: write the run's page, print where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    sink: Annotated[
        list[str] | None,
        typer.Option(help="Instead: copy the ledger to tensorboard, wandb or trackio."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write RUN/report.html, one self-contained page, and print its path."""
    if sink:
        from json import dumps

        from flyweight.files.run import RunFolder
        from flyweight.train.sinks import replay

        places = {name: str(replay(RunFolder.open(run), name)) for name in sink}
        typer.echo(dumps({"sinks": places}) if json else "\n".join(places.values()))
        return
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
