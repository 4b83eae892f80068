"""``python -m flyweight.train.data_worker FOLDER``: a worker of a build, and what it loads models
with: the data room, which knows none, is handed the perplexity rule's as a function."""

from __future__ import annotations

import sys
from pathlib import Path

from flyweight.data.cleaner import Score
from flyweight.data.crew import serve
from flyweight.data.work import Work
from flyweight.measure.bits import bits_per_byte
from flyweight.spec.cleaning import Perplexity

WORKER = "flyweight.train.data_worker"


def scorer(table: Perplexity) -> Score:
    """A function that gives a text's bits per byte under the table's model, on one thread.

    Raises FlyweightError where the model cannot be loaded.
    """
    from flyweight.load import load

    model = load(table.model, threads=1)

    def score(text: str) -> float:
        return bits_per_byte(model, [("", text.encode("utf-8"))]).bits_per_byte

    return score


if __name__ == "__main__":
    serve(Work(Path(sys.argv[1]), scorer))
