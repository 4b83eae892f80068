"""A build's work, laid out before it begins: which pieces of which files make which unit.

The plan follows from the input and the configuration alone. Units are done in any order, by any
number of workers, and each is a pure function of the plan: so is the dataset.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flyweight.data.piece import Piece
from flyweight.data.rows import open_parquet
from flyweight.data.sources import Origin
from flyweight.data.unpack import PACKED
from flyweight.spec.errors import CorruptFileError

# What a worker reads at a time, and what it cleans and packs at a time: at most so many bytes,
# and less where the whole is small, for the workers to share it evenly.
UNIT_BYTES = 32 << 20
PART_BYTES = 16 << 20
_SHARES = 64
_LEAST_PART = 1 << 20
# What packed text takes, against what it unpacks to.
_PACKING = 4


# Rows of a library's own, whose text nobody has counted.
_WITHOUT_SIZE = ("saved", "hub")

# path -> (size, time of change in ns)
Stamps = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker reads at a time: pieces of one origin (its number), in order."""

    origin: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Plan:
    """``settings``: what decides the dataset besides the files; ``stamps``: (size, time of change
    in ns) of every file, for a source must not change while it is read; ``part_bytes``: from that
    size on a part of the documents read is full."""

    settings: dict[str, Any]
    origins: list[dict[str, Any]]
    units: list[Unit]
    stamps: Stamps
    part_bytes: int

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
            "part_bytes": self.part_bytes,
        }
        # In ASCII: a file's name may hold what is no UTF-8.
        return json.dumps(values, sort_keys=True)

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
        return cls(values["settings"], values["origins"], units, stamps, values["part_bytes"])


def plan(settings: dict[str, Any], origins: list[Origin]) -> Plan:
    """Group the pieces of each origin into units of some megabytes; large files of JSON lines and
    of Parquet are cut between lines and between row groups."""
    paths = {str(piece.path): piece.path for origin in origins for piece in origin.pieces}
    stamps = {name: stamp for name, path in paths.items() if (stamp := stamp_of(path))}
    part_bytes = _part_bytes(origins, stamps)
    units = [
        Unit(number, tuple(pieces))
        for number, origin in enumerate(origins)
        for pieces in _grouped(origin.pieces, stamps, min(UNIT_BYTES, 2 * part_bytes))
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
    return Plan(settings, described, units, stamps, part_bytes)


def stamp_of(path: Path) -> tuple[int, int] | None:
    """(size, time of change in ns) of a regular file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _part_bytes(origins: list[Origin], stamps: Stamps) -> int:
    pieces = [piece for origin in origins for piece in origin.pieces]
    if any(piece.kind in _WITHOUT_SIZE for piece in pieces):
        return PART_BYTES
    whole = sum(_text_bytes(piece, stamps) for piece in pieces)
    return min(PART_BYTES, max(_LEAST_PART, whole // _SHARES))


def _text_bytes(piece: Piece, stamps: Stamps) -> int:
    """About how much text a file holds."""
    size, _ = stamps.get(str(piece.path), (0, 0))
    return size * (_PACKING if piece.path.suffix.lower() in PACKED else 1)


def _grouped(pieces: list[Piece], stamps: Stamps, limit: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for whole in pieces:
        for piece, weight in _cut(whole, stamps, limit):
            if group and size + weight > limit:
                yield group
                group, size = [], 0
            group.append(piece)
            size += weight
    if group:
        yield group


def _cut(piece: Piece, stamps: Stamps, limit: int) -> Iterator[tuple[Piece, int]]:
    """The parts of a file that can be read apart, and about how many bytes of text each has."""
    size = _text_bytes(piece, stamps)
    packed = piece.path.suffix.lower() in PACKED
    if piece.kind in _WITHOUT_SIZE:
        yield piece, limit
    elif piece.kind == "jsonl" and not packed and size > limit:
        for start, stop, first in _line_ranges(piece.path, limit):
            yield replace(piece, start=start, stop=stop, first=first), stop - start
    elif piece.kind == "parquet" and size:
        yield from _row_groups(piece)
    else:
        yield piece, size


def _line_ranges(path: Path, limit: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, number of its first line) of stretches of about ``limit`` bytes, cut at
    lines."""
    start, first, at, line = 0, 1, 0, 1
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            inside = 0
            if at + len(chunk) - start >= limit:
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
