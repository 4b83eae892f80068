"""``flyweight train`` and ``flyweight resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="The run's TOML file.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Overrides of the file."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a model from a configuration, from raw text to checkpoints."""
    from flyweight.cli.run import finish, sampler, watched
    from flyweight.train.processes import joined
    from flyweight.train.read_config import read_config
    from flyweight.train.start import train_run

    with joined() as processes, watched(processes.leader) as (view, progress):
        values = processes.each(lambda: read_config(config, settings or []))
        folder = out or Path("runs") / str(values["name"])
        run = train_run(values, folder, view, progress, sampler(view), processes)
    if processes.leader:
        finish(run, json)


def resume(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Go on with a run from its newest complete checkpoint, bit for bit."""
    from flyweight.cli.run import finish, sampler, watched
    from flyweight.train.processes import joined
    from flyweight.train.start import resume_run

    with joined() as processes, watched(processes.leader) as (view, _):
        folder = resume_run(run, view, sampler(view), processes)
    if processes.leader:
        finish(folder, json)
