"""``flyweight checkpoints RUN``: what was saved, and what of it is still there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def checkpoints(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Every checkpoint that the run saved: loss, tokens, digest, and whether it was kept.

    MODEL may be RUN@STEP for those kept.
    """
    from flyweight.files.index import entries
    from flyweight.files.run import RunFolder

    folder = RunFolder.open(run)
    there = set(folder.steps())
    rows = [{**line, "kept": line["step"] in there} for line in entries(folder)]
    if json:
        import json as to

        typer.echo(to.dumps(rows))
        return
    if not rows:
        typer.echo(f"{run} has no checkpoint yet", err=True)
        return
    typer.echo(_table(rows))
    typer.echo(f"{len(there)} of {len(rows)} kept; RUN@STEP names one as a MODEL", err=True)


def _table(rows: list[dict[str, Any]]) -> str:
    head = ["step", "tokens", "loss", "mean loss", "bits per byte", "digest", ""]
    cells = [head]
    for row in rows:
        losses = (row.get(key) for key in ("loss", "mean_loss", "bits_per_byte"))
        shown = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
        kept = "" if row["kept"] else "removed"
        cells.append([f"{row['step']:,}", f"{row['tokens']:,}", *shown, row["digest"][:12], kept])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
