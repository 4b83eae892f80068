"""Which scripts and which languages a text is in.

Scripts by Unicode's Script property of each letter (scripts.txt: Unicode 17, ranges of letters,
merged where no letter of another script lies between). Languages by py3langid (byte n-grams and
naive Bayes, 4.6 MB with its model, no dependency but numpy).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache, partial
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from flyweight.data.rule import Dropped, Rule
from flyweight.data.words import code_points
from flyweight.spec.cleaning import Languages, Scripts
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.spec.table import nearest

_TABLE = 0x40000
# A long text is judged by so many windows of so many characters, evenly spread over it.
_WINDOWS = 5
_WINDOW = 200


def script_shares(text: str) -> dict[str, float]:
    """The share of a text's letters in each script that it has, largest first."""
    names, script_of = _scripts()
    codes = np.minimum(code_points(text), _TABLE - 1)
    counts = np.bincount(script_of[codes], minlength=len(names) + 1)[1:]
    total = int(counts.sum())
    order = np.argsort(-counts, kind="stable").tolist()
    return {names[i]: int(counts[i]) / total for i in order if counts[i]}


def script_rules(table: Scripts) -> Iterator[Rule]:
    known = _scripts()[0]
    for name in table.keep:
        if name not in known:
            raise ConfigurationError(
                f"data.clean.scripts.keep: no script is called {name!r}{nearest(name, known)}"
            )
    yield partial(_in_scripts, frozenset(table.keep), table.min_share)


def _in_scripts(keep: frozenset[str], least: float, text: str) -> Dropped | None:
    shares = script_shares(text)
    share = sum(value for name, value in shares.items() if name in keep)
    if share >= least and shares:
        return None
    most = next(iter(shares), "no letters")
    return Dropped("scripts", f"{share:.3f}, most in {most}" if shares else most)


@cache
def _scripts() -> tuple[list[str], npt.NDArray[np.uint8]]:
    """(the scripts' names, the number from 1 of each letter's script, 0 for what is no letter)."""
    script_of = np.zeros(_TABLE, np.uint8)
    names = []
    listed = resources.files(__package__).joinpath("scripts.txt").read_text(encoding="utf-8")
    for number, line in enumerate(listed.splitlines(), start=1):
        name, ranges = line.split(": ")
        names.append(name)
        for part in ranges.split():
            first, _, last = part.partition("-")
            script_of[int(first, 16) : int(last or first, 16) + 1] = number
    for code in np.flatnonzero(script_of[:0x20000]).tolist():
        if unicodedata.category(chr(code))[0] != "L":
            script_of[code] = 0
    return names, script_of


def language_rules(table: Languages) -> Iterator[Rule]:
    """Raises FlyweightError where py3langid is not installed, ConfigurationError for a language
    that it does not know."""
    known = sorted(set(_identifier().labels))
    for code in table.keep:
        if code not in known:
            raise ConfigurationError(
                f"data.clean.languages.keep: {code!r} is none of the languages that py3langid"
                f" knows{nearest(code, known)}; known: {', '.join(known)}"
            )
    yield partial(_in_languages, frozenset(table.keep), table.min_share)


def _in_languages(keep: frozenset[str], least: float, text: str) -> Dropped | None:
    found = languages(text)
    share = sum(language in keep for language in found) / max(1, len(found))
    return Dropped("languages", f"{share:.2f}, {' '.join(found)}") if share < least else None


def languages(text: str) -> list[str]:
    """The language of each window of a text, ISO 639 codes; of a short text there is one window,
    of a blank one none."""
    return [_identifier().classify(window)[0] for window in windows(text)]


def windows(text: str) -> list[str]:
    """Up to five windows of 200 characters, evenly spread, blank ones left out."""
    text = text.strip()
    count = min(_WINDOWS, max(1, len(text) // _WINDOW))
    step = (len(text) - _WINDOW) / max(1, count - 1)
    starts = [max(0, round(i * step)) for i in range(count)] if count > 1 else [0]
    found = [text[start : start + _WINDOW] for start in starts]
    return [window for window in found if window.strip()]


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise FlyweightError(
            "data.clean.languages needs the package `py3langid`: pip install py3langid"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE)
