"""What a build's processes work with: a work folder, and what loads models for it.

The data room, which knows no model, is handed the perplexity rule's as a function.
"""

from __future__ import annotations

from pathlib import Path

from flyweight.data.cleaner import Score
from flyweight.data.work import Work
from flyweight.measure.bits import bits_per_byte
from flyweight.spec.cleaning import Perplexity

OPENER = "flyweight.train.data_worker"


def scorer(table: Perplexity) -> Score:
    """A function that gives a text's bits per byte under the table's model, on one thread.

    Raises FlyweightError where the model cannot be loaded.
    """
    from flyweight.load import load

    model = load(table.model, threads=1)

    def score(text: str) -> float:
        return bits_per_byte(model, [("", text.encode("utf-8"))]).bits_per_byte

    return score


def open_work(folder: Path) -> Work:
    """A build's work folder (see `flyweight.data.crew.open_with`)."""
    return Work(folder, scorer)
