"""A build's work, laid out before it begins: which pieces of which files make which unit.

The plan follows from the input and the configuration alone. Units are done in any order, by any
number of workers, and each is a pure function of the plan: so is the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flyweight.data.piece import Piece
from flyweight.data.rows import open_parquet
from flyweight.data.sources import Origin
from flyweight.data.unpack import PACKED
from flyweight.spec.errors import CorruptFileError

UNIT_BYTES = 32 << 20
# What packed text takes, against what it unpacks to.
_PACKING = 4


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker reads at a time: pieces of one origin (its number), in order."""

    origin: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Plan:
    """``settings``: what decides the dataset besides the files; ``stamps``: (size, time of change
    in ns) of every file, for a source must not change while it is read."""

    settings: dict[str, Any]
    origins: list[dict[str, Any]]
    units: list[Unit]
    stamps: dict[str, tuple[int, int]]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        units = [
            {"origin": unit.origin, "pieces": [_to_dict(piece) for piece in unit.pieces]}
            for unit in self.units
        ]
        values = {
            "settings": self.settings,
            "origins": self.origins,
            "stamps": self.stamps,
            "units": units,
        }
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        values = json.loads(text)
        units = [
            Unit(
                unit["origin"],
                tuple(Piece(**(piece | {"path": Path(piece["path"])})) for piece in unit["pieces"]),
            )
            for unit in values["units"]
        ]
        stamps = {path: (size, time) for path, (size, time) in values["stamps"].items()}
        return cls(values["settings"], values["origins"], units, stamps)


def plan(settings: dict[str, Any], origins: list[Origin]) -> Plan:
    """Group the pieces of each origin into units of some megabytes; large files of JSON lines and
    of Parquet are cut between lines and between row groups."""
    units = [
        Unit(number, tuple(pieces))
        for number, origin in enumerate(origins)
        for pieces in _grouped(origin.pieces)
    ]
    described = [
        {
            "source": origin.source,
            "path": origin.path,
            "held_out": origin.held_out,
            "files": origin.files,
            "passed": origin.passed.to_dict(),
        }
        for origin in origins
    ]
    paths = {str(piece.path): piece.path for origin in origins for piece in origin.pieces}
    stamps = {name: stamp for name, path in paths.items() if (stamp := stamp_of(path))}
    return Plan(settings, described, units, stamps)


def stamp_of(path: Path) -> tuple[int, int] | None:
    """(size, time of change in ns) of a regular file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if path.is_file() else None


def _grouped(pieces: list[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for whole in pieces:
        for piece, weight in _cut(whole):
            if group and size + weight > UNIT_BYTES:
                yield group
                group, size = [], 0
            group.append(piece)
            size += weight
    if group:
        yield group


def _cut(piece: Piece) -> Iterator[tuple[Piece, int]]:
    """The parts of a file that can be read apart, and about how many bytes of text each has."""
    stamp = stamp_of(piece.path)
    size = stamp[0] if stamp else 0
    packed = piece.path.suffix.lower() in PACKED
    if piece.kind in ("saved", "hub"):
        yield piece, UNIT_BYTES
    elif piece.kind == "jsonl" and not packed and size > UNIT_BYTES:
        for start, stop, first in _line_ranges(piece.path, size):
            yield replace(piece, start=start, stop=stop, first=first), stop - start
    elif piece.kind == "parquet" and size:
        yield from _row_groups(piece)
    else:
        yield piece, size * (_PACKING if packed else 1)


def _line_ranges(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, number of its first line) of stretches of about UNIT_BYTES, cut at lines."""
    start, first, at, line = 0, 1, 0, 1
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            inside = 0
            if at + len(chunk) - start >= UNIT_BYTES:
                inside = chunk.find(b"\n") + 1
            if inside:
                line += 1
                yield start, at + inside, first
                start, first = at + inside, line
            line += chunk.count(b"\n", inside)
            at += len(chunk)
    if start < at:
        yield start, at, first


def _row_groups(piece: Piece) -> Iterator[tuple[Piece, int]]:
    try:
        table = open_parquet(piece.path)
    except CorruptFileError:
        yield piece, 0  # reading it says what is wrong
        return
    first = 1
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        part = replace(piece, start=group, stop=group + 1, first=first)
        yield part, about.total_byte_size
        first += about.num_rows
    if not table.num_row_groups:
        yield piece, 0
    table.close()


def _to_dict(piece: Piece) -> dict[str, Any]:
    return asdict(piece) | {"path": str(piece.path)}
