"""The model behind `data.clean.perplexity`: the data room, which knows no models, is handed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flyweight.data.cleaner import Score
    from flyweight.spec.cleaning import Perplexity


def scorer(table: Perplexity) -> Score:
    """A function that gives a text's bits per byte under the table's model, on one thread.

    Raises FlyweightError where the model cannot be loaded.
    """
    import flyweight
    from flyweight.measure.bits import bits_per_byte

    model = flyweight.load(table.model, threads=1)

    def score(text: str) -> float:
        return bits_per_byte(model, [("", text.encode("utf-8"))]).bits_per_byte

    return score
