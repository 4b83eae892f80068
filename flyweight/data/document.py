"""A text with its name, and the account of what was not read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from flyweight.spec.errors import FlyweightError

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``name`` is stable and free of the machine's paths; ``source`` is the name of its
    source, or the path, folder or glob, as the user wrote it, that it came through."""

    name: str
    text: str
    source: str


def printable(name: str) -> str:
    """``name`` as text: what is no character, in a file's name or an id, is spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass
class Skipped:
    """What was not read, counted by reason, with the first few names of each; and how many texts
    were read in an encoding other than UTF-8.

    ``stop``: whether broken input raises (data.on_error) or is counted here too.
    """

    stop: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    encodings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(name)

    def broken(self, reason: str, name: str, error: FlyweightError) -> None:
        """Broken input: raises ``error``, or counts ``name`` under ``reason``."""
        if self.stop:
            raise error
        self.add(reason, name)

    def merge(self, other: Skipped) -> None:
        """Add what came after this."""
        self.counts += other.counts
        self.encodings += other.encodings
        for reason, names in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine += names[: _EXAMPLES - len(mine)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "counts": dict(sorted(self.counts.items())),
            "examples": dict(sorted(self.examples.items())),
            "encodings": dict(sorted(self.encodings.items())),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Skipped:
        return cls(
            counts=Counter(values["counts"]),
            examples=values["examples"],
            encodings=Counter(values["encodings"]),
        )

    def lines(self) -> list[str]:
        """One line per reason, for a notice."""
        lines = []
        for reason, count in sorted(self.counts.items()):
            names = self.examples[reason]
            more = ", ..." if count > len(names) else ""
            lines.append(f"skipped {count}: {reason} ({', '.join(names)}{more})")
        for encoding, count in sorted(self.encodings.items()):
            lines.append(f"read {count} as {encoding}, for want of valid UTF-8")
        return lines
