"""``flyweight verify RUN``: prove a run's record by taking its steps again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flyweight.spec.errors import ConfigurationError

if TYPE_CHECKING:
    from flyweight.train.verify import Verdict


def verify(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    steps: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only these steps; default: all.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every file of a run, take its steps again, and compare them bit for bit.

    A run of several processes: by as many, started with torchrun. Exit code 1 where anything does
    not hold; what it is goes to standard output.
    """
    from flyweight.cli.run import sample_maker, watched
    from flyweight.train.processes import joined
    from flyweight.train.verify import verify_run

    with joined() as processes, watched(processes.leader) as (view, _):
        first, last = processes.each(lambda: _stretch(steps))
        verdict = verify_run(run, first, last, view, sample_maker(), processes)
    if not processes.leader:
        return
    if json:
        import json as to

        typer.echo(to.dumps(verdict.values()))
    else:
        typer.echo(_words(verdict))
    if not verdict.holds:
        raise typer.Exit(1)


def _stretch(steps: str | None) -> tuple[int | None, int | None]:
    if steps is None:
        return None, None
    parts = re.fullmatch(r"(\d*):(\d*)", steps)
    if parts is None:
        raise ConfigurationError(f"--steps {steps}: write A:B, as in 100:200; or A: or :B")
    first, last = (int(part) if part else None for part in parts.groups())
    if first == 0:
        raise ConfigurationError(f"--steps {steps}: the first step is 1")
    return first, last


def _words(verdict: Verdict) -> str:
    lines = []
    if verdict.holds:
        how = "within the tolerance below" if verdict.inexact else "bit for bit"
        lines.append(f"{verdict.run}: steps {verdict.first} to {verdict.last} hold, {how}")
    else:
        lines.append(f"{verdict.run} does not hold:")
        lines += [f"  {finding.where}: {finding.what}" for finding in verdict.findings]
    if verdict.holds:
        lines.append(
            f"  record   {verdict.lines:,} lines of the ledger, {verdict.checkpoints} checkpoints"
            " and the dataset agree with their digests and with one another"
        )
    if verdict.began is None:
        lines.append("  re-run   none: this needs the run's own configuration and dataset")
        return "\n".join(lines)
    begin = f"checkpoint {verdict.began}" if verdict.began else "the seed's own weights"
    lines.append(f"  re-run   {verdict.steps_compared:,} steps from {begin}")
    lines.append(f"  tensors  {_tensors(verdict)}")
    if verdict.samples_compared:
        lines.append(f"  samples  taken again after step {_some(verdict.samples_compared)}")
    if verdict.tolerance is not None:
        within = ", ".join(f"{key} {value:g}" for key, value in verdict.tolerance.items())
        lines.append(f"  within   {within} (relative), for {verdict.inexact}")
    return "\n".join(lines)


def _tensors(verdict: Verdict) -> str:
    if not verdict.tensors_compared:
        return "none compared: no checkpoint lies in the steps taken again"
    gone = (
        f"; {len(verdict.by_digest)} of them removed since, by digest" if verdict.by_digest else ""
    )
    return f"compared after step {_some(verdict.tensors_compared)}{gone}"


def _some(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[-6:]))
    return f"..., {shown}" if len(steps) > 6 else shown
