"""The cleaning stage: all rules of a configuration, one after the other, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from flyweight.data.document import Document
from flyweight.data.language import language_rules, script_rules
from flyweight.data.lines import line_rules, repeated_rules
from flyweight.data.markup import markup_rules
from flyweight.data.personal import personal_rules, url_rules
from flyweight.data.quality import length_rules, repetition_rules, symbol_rules
from flyweight.data.rule import Dropped, Rule
from flyweight.data.tally import Tally
from flyweight.data.word_lists import bad_word_rules, keyword_rules
from flyweight.spec.cleaning import Clean, Perplexity
from flyweight.spec.errors import ConfigurationError

# A text's bits per byte under a model.
Score = Callable[[str], float]


class Cleaner:
    """A stage of a build: each document edited, or dropped (None), by the rules that are on.

    What it does depends on the document's text alone. ``score`` is what `clean.perplexity` asks:
    the caller loads the model, for this room knows none. Raises ConfigurationError where a rule's
    words, scripts or languages are not known.
    """

    def __init__(self, table: Clean, score: Score | None = None) -> None:
        if table.perplexity is not None and score is None:
            raise ConfigurationError(
                "data.clean.perplexity needs a model to score with, and none was handed in"
            )
        self._rules = list(_rules(table, score))

    def __call__(self, document: Document, tally: Tally) -> Document | None:
        """The document as the rules leave it, or None; what they did is counted in ``tally``."""
        text = document.text
        for rule in self._rules:
            outcome = rule(text)
            if outcome is None:
                continue
            if isinstance(outcome, Dropped):
                tally.drop(outcome.rule, document.name, text, outcome.why)
                return None
            tally.edit(
                outcome.rule,
                document.name,
                text,
                outcome.text,
                outcome.lines,
                outcome.found,
                outcome.sample,
            )
            text = outcome.text
            if not text.strip():
                # Its characters went with the edit.
                tally.drop("nothing left", document.name, text, f"after {outcome.rule}")
                return None
        return document if text is document.text else replace(document, text=text)


def _rules(table: Clean, score: Score | None) -> Iterator[Rule]:
    """Those of the tables that are there, in the order of the keys."""
    if table.markup is not None:
        yield from markup_rules(table.markup)
    if table.urls is not None:
        yield from url_rules(table.urls)
    if table.personal is not None:
        yield from personal_rules(table.personal)
    if table.lines is not None:
        yield from line_rules(table.lines)
    if table.repeated is not None:
        yield from repeated_rules(table.repeated)
    if table.bad_words is not None:
        yield from bad_word_rules(table.bad_words)
    if table.length is not None:
        yield from length_rules(table.length)
    if table.symbols is not None:
        yield from symbol_rules(table.symbols)
    if table.repetition is not None:
        yield from repetition_rules(table.repetition)
    if table.keywords is not None:
        yield from keyword_rules(table.keywords)
    if table.scripts is not None:
        yield from script_rules(table.scripts)
    if table.languages is not None:
        yield from language_rules(table.languages)
    if table.perplexity is not None:
        assert score is not None
        yield partial(_perplexity, table.perplexity, score)


def _perplexity(table: Perplexity, score: Score, text: str) -> Dropped | None:
    bits = score(text[: table.characters])
    if table.min is not None and bits < table.min:
        return Dropped("perplexity.min", f"{bits:.3f} bits per byte")
    if table.max is not None and bits > table.max:
        return Dropped("perplexity.max", f"{bits:.3f} bits per byte")
    return None
