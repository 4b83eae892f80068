"""What a cleaning rule says of a text: nothing, that it goes, or how it reads without something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dropped:
    """The document goes. ``rule`` is the table and key that says so; ``why`` has the value."""

    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Edited:
    """``text`` without what the rule is against: ``lines`` lines less, ``found`` things changed or
    taken out; ``sample``: the first of them."""

    rule: str
    text: str
    lines: int
    found: int
    sample: str


# A pure function of the text: the same on every machine, in any order of documents.
Rule = Callable[[str], Dropped | Edited | None]
