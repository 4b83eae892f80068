"""Rules on lines: how they end, how long they are, what they contain, what is said again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from flyweight.data.rule import Edited, Rule
from flyweight.data.words import words
from flyweight.spec.cleaning import Lines, Repeated

# Full stops, questions, exclamations, ellipses of the scripts that have them.
_TERMINAL = frozenset(".!?…。！？．｡।॥؟۔։።፧፨።၊။។៕᙮᠃᠉‼⁇⁈⁉‽")
_CLOSING = "\"'”’»›)]）］】」』〉》*_`"
_PARAGRAPH = re.compile(r"(\n[^\S\n]*\n\s*)")


def is_terminated(line: str) -> bool:
    """Whether a line ends in terminal punctuation, closing quotes and brackets aside."""
    end = line.rstrip().rstrip(_CLOSING)
    return end[-1:] in _TERMINAL and bool(end)


def line_rules(table: Lines) -> Iterator[Rule]:
    if table.terminal_punctuation:
        yield partial(_dropping, "lines.terminal_punctuation", _unterminated)
    if table.min_words:
        yield partial(_dropping, "lines.min_words", partial(_short, table.min_words))
    if table.containing:
        phrases = [phrase.casefold() for phrase in table.containing]
        yield partial(_dropping, "lines.containing", partial(_containing, phrases))


def repeated_rules(table: Repeated) -> Iterator[Rule]:
    """Paragraphs first: a paragraph is said again as a whole, or line by line."""
    if table.paragraphs != "keep":
        yield partial(_repeated_paragraphs, table.paragraphs == "all")
    if table.lines != "keep":
        dropped = partial(_repeated_lines, table.lines == "all")
        yield partial(_dropping, "repeated.lines", dropped)


def _dropping(rule: str, which: Callable[[list[str]], list[bool]], text: str) -> Edited | None:
    """The rule of dropping the lines that ``which`` marks; blank ones always stay."""
    lines = text.split("\n")
    marks = [mark and bool(line.strip()) for line, mark in zip(lines, which(lines), strict=True)]
    count = sum(marks)
    if not count:
        return None
    kept = "\n".join(line for line, mark in zip(lines, marks, strict=True) if not mark)
    return Edited(rule, kept, count, count, lines[marks.index(True)])


def _unterminated(lines: list[str]) -> list[bool]:
    return [not is_terminated(line) for line in lines]


def _short(least: int, lines: list[str]) -> list[bool]:
    return (words(lines).counts < least).tolist()


def _containing(phrases: list[str], lines: list[str]) -> list[bool]:
    return [any(phrase in line.casefold() for phrase in phrases) for line in lines]


def _repeated_lines(anywhere: bool, lines: list[str]) -> list[bool]:
    seen = Seen(anywhere)
    return [bool(line.strip()) and seen.again(line.strip()) for line in lines]


def _repeated_paragraphs(anywhere: bool, text: str) -> Edited | None:
    # Paragraphs at the even places, what separates them at the odd ones.
    parts = _PARAGRAPH.split(text)
    seen = Seen(anywhere)
    kept, lines, found, sample = parts[:1], 0, 0, ""
    seen.again(parts[0].strip())
    for between, paragraph in zip(parts[1::2], parts[2::2], strict=True):
        if paragraph.strip() and seen.again(paragraph.strip()):
            lines += paragraph.count("\n") + 1
            found += 1
            sample = sample or paragraph
        else:
            kept += [between, paragraph]
    if not found:
        return None
    return Edited("repeated.paragraphs", "".join(kept), lines, found, sample)


class Seen:
    """Whether something came before: anywhere, or just before."""

    def __init__(self, anywhere: bool) -> None:
        self._anywhere = anywhere
        self._seen: set[str] = set()

    def again(self, text: str) -> bool:
        before = text in self._seen
        if not self._anywhere:
            self._seen.clear()
        self._seen.add(text)
        return before
