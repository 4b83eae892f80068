"""What a run folder holds so far; an unfinished or broken one still tells its tale."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flyweight.report.wording import finite


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds, as read: absent or unreadable files are empty here.

    ``notes`` says what could not be read, for the page to repeat.
    """

    folder: Path
    configuration: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    weights: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        name = self.settings.get("name")
        return name if isinstance(name, str) and name else self.folder.resolve().name

    def column(self, key: str) -> list[float]:
        """The ledger's values of ``key``, one a line; NaN where there is none."""
        values = (finite(line.get(key)) for line in self.ledger)
        return [math.nan if value is None else value for value in values]

    @cached_property
    def steps(self) -> list[float]:
        return self.column("step")

    @cached_property
    def bits(self) -> list[float]:
        """Training bits per byte, a value per line."""
        return self.column("bits_per_byte")

    @property
    def seconds(self) -> float:
        """Time spent in training steps, the resumed stretches together."""
        return sum(value for value in self.column("seconds") if math.isfinite(value))

    @property
    def spikes(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, what the ledger says of it) of each batch that was left out as a spike."""
        found = []
        for line in self.ledger:
            events = line.get("spikes")
            for event in events if isinstance(events, list) else []:
                if isinstance(event, dict) and event.get("action") != "taken":
                    found.append((int(line["step"]), event))
        return found

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]) if self.steps else 0

    @property
    def total_steps(self) -> int | None:
        train = self.settings.get("train")
        total = finite(train.get("steps")) if isinstance(train, dict) else None
        return int(total) if total else None

    @property
    def held_out(self) -> dict[str, Any]:
        found = self.evaluation.get("held_out")
        return found if isinstance(found, dict) else {}

    @property
    def held_out_bits(self) -> float | None:
        return finite(self.held_out.get("bits_per_byte"))

    @property
    def training_bits(self) -> float | None:
        """Bits per byte in training, averaged over the last twentieth of the steps."""
        tail = [v for v in self.bits[-max(1, len(self.bits) // 20) :] if math.isfinite(v)]
        return sum(tail) / len(tail) if tail else None

    @property
    def compressors(self) -> list[tuple[str, float, int | None]]:
        """(name, bits per byte, compressed bytes) of each compressor that was measured."""
        found = self.evaluation.get("compressors")
        rows = []
        for row in found if isinstance(found, list) else []:
            bits = finite(row.get("bits_per_byte")) if isinstance(row, dict) else None
            if bits is not None:
                size = finite(row.get("bytes"))
                rows.append((str(row.get("name", "?")), bits, None if size is None else int(size)))
        return rows

    @property
    def parameters(self) -> int | None:
        for table in (self.evaluation.get("model"), self.data, self.environment):
            number = finite(table.get("parameters")) if isinstance(table, dict) else None
            if number:
                return int(number)
        return self.weights


def read_run(run: Path) -> RunRecord:
    """Read a run folder, forgiving: a file that is absent, cut off or broken becomes a note."""
    notes: list[str] = []
    configuration = _text(run / "run.toml", notes)
    settings: dict[str, Any] = {}
    try:
        settings = tomllib.loads(configuration)
    except tomllib.TOMLDecodeError as error:
        notes.append(f"run.toml is not valid TOML: {error}")
    return RunRecord(
        folder=run,
        configuration=configuration,
        settings=settings,
        environment=_object(run / "environment.json", notes),
        data=_object(run / "data.json", notes),
        ledger=_in_order(_lines(run / "ledger.jsonl", notes)),
        samples=_in_order(_lines(run / "samples.jsonl", notes), unique=False),
        evaluation=_object(run / "evaluation.json", notes),
        weights=_count_weights(run / "model" / "model.safetensors"),
        notes=tuple(notes),
    )


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror or error}")
        return ""


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _text(path, notes)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is not valid JSON and was left out")
        return {}
    return value if isinstance(value, dict) else {}


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. A broken last line is what a crash leaves: no note."""
    lines = _text(path, notes).split("\n")
    found, broken = [], 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            broken += i + 1 < len(lines)
            continue
        if isinstance(value, dict) and finite(value.get("step")) is not None:
            found.append(value)
    if broken:
        notes.append(f"{broken} unreadable line{'s' * (broken > 1)} of {path.name} left out")
    return found


def _in_order(lines: list[dict[str, Any]], unique: bool = True) -> list[dict[str, Any]]:
    """Lines by rising step. Where a resumed run repeats steps, the later lines count."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        last = line["step"] - 1 if unique else line["step"]
        while kept and kept[-1]["step"] > last:
            kept.pop()
        kept.append(line)
    return kept


def _count_weights(path: Path) -> int | None:
    """Parameters by the header of a safetensors file (length as u64, then JSON), if it is there."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        shapes = (item["shape"] for key, item in header.items() if key != "__metadata__")
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
