"""Documents that hold evaluation text: found by n-grams of words, dropped or cut.

As GPT-3 did it (arXiv:2005.14165, appendix C), with n = 13 words: an item is found in a document
where they share an n-gram. A text of an item that has fewer words is looked for as a whole, from
``min_words`` words on; an item of shorter texts alone by its first text with each other one behind
it. Words are those of `flyweight.data.words`: case, width and punctuation aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from flyweight.data.document import Document
from flyweight.data.evaluation import Item, items
from flyweight.data.tally import Finding, Tally
from flyweight.data.words import Hashes, ngrams, ngrams_of_lengths, words
from flyweight.files.atomic import write_text
from flyweight.spec.cleaning import Decontaminate
from flyweight.spec.errors import FlyweightError

RULE = "contaminated"
_INDEX = "items.json"
_ITEMS = 1024
_PASSAGE = 120
_WORD = 32
# Documents are searched together up to so many characters.
_SEARCHED = 1 << 17
_SPACE = re.compile(r"\s")


# In characters from the text's start.
Span = tuple[int, int]
# By an item's number: how many of its n-grams are there, and the first one's start and end.
Hits = dict[int, tuple[int, int, int]]


class Decontaminator:
    """A stage of a build: drops or cuts documents that hold text of evaluation items.

    Decontaminator.prepare(table, folder)    once: reads the evaluation files, writes an index
    stage = Decontaminator.open(table, folder)      in each worker: maps it
    for kept in stage(documents, tally): ...
    """

    def __init__(self, table: Decontaminate, names: list[tuple[str, str]], grams: list[_Grams]):
        self._table = table
        self._names = names
        self._grams = grams

    @classmethod
    def prepare(cls, table: Decontaminate, folder: Path) -> None:
        """Write the index of the table's files to ``folder``, items.json last."""
        names: list[tuple[str, str]] = []
        found: dict[int, list[tuple[Hashes, npt.NDArray[np.int32]]]] = {}
        short = 0
        for chunk in _chunks(items(table.files)):
            texts, owners = [], []
            for item in chunk:
                mine = _looked_for(item, table.min_words)
                short += not mine
                texts += mine
                owners += [len(names)] * len(mine)
                names.append((item.file, item.id))
            for n, hashes, text in _grams_of(texts, table.ngram):
                owner = np.array(owners, np.int32)[text]
                found.setdefault(n, []).append((hashes, owner))
        if not found:
            raise FlyweightError(
                f"data.decontaminate.files = {table.files}: no item has a text of"
                f" {table.min_words} words; name other files, or lower min_words"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for n, parts in found.items():
            hashes = np.concatenate([part[0] for part in parts])
            owners_N = np.concatenate([part[1] for part in parts])
            order = np.lexsort((owners_N, hashes))
            hashes, owners_N = hashes[order], owners_N[order]
            new = np.ones(len(hashes), np.bool_)
            new[1:] = (hashes[1:] != hashes[:-1]) | (owners_N[1:] != owners_N[:-1])
            np.save(folder / f"hashes-{n}.npy", hashes[new])
            np.save(folder / f"items-{n}.npy", owners_N[new])
            np.save(folder / f"bits-{n}.npy", _bits_of(hashes[new]))
        index = {"lengths": sorted(found), "items": names, "short": short, "min": table.min_words}
        write_text(folder / _INDEX, json.dumps(index))

    @classmethod
    def open(cls, table: Decontaminate, folder: Path) -> Self:
        """The stage with the index in ``folder``, which is mapped, not read."""
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        grams = [_Grams(n, folder) for n in index["lengths"]]
        return cls(table, [(file, id) for file, id in index["items"]], grams)

    def __call__(self, documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        """The documents that stay, as they are or cut. Takes and gives some at a time."""
        for some in _batches(documents):
            found = self._search([document.text for document in some])
            for document, (spans, hits) in zip(some, found, strict=True):
                kept = self._judged(document, spans, hits, tally) if spans else document
                if kept is not None:
                    yield kept

    def _judged(
        self, document: Document, spans: list[Span], hits: Hits, tally: Tally
    ) -> Document | None:
        """What is left of a document in which something was found, or None."""
        text = document.text
        for item, (count, start, end) in hits.items():
            passage = text[start : min(end, start + _PASSAGE)]
            tally.finding(Finding(document.name, *self._names[item], count, passage))
        first = self._names[min(hits, key=lambda item: hits[item][1])]
        why = f"{first[0]}, {first[1]}"
        left = "" if self._table.action == "drop" else self._cut(text, spans)
        if not left.strip():
            tally.drop(RULE, document.name, text, why)
            return None
        shown = f"{why}: {text[spans[0][0] : spans[0][1]]}"
        lines = text.count("\n") - left.count("\n")
        tally.edit(RULE, document.name, text, left, max(0, lines), len(hits), shown)
        return replace(document, text=left)

    def _search(self, texts: list[str]) -> list[tuple[list[Span], Hits]]:
        """For each text the passages found, in order, and the items."""
        found = words(texts)
        # The words' places count from the first text on, with a newline after each.
        begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
        results: list[tuple[list[Span], Hits]] = [([], {}) for _ in texts]
        lengths = [grams.n for grams in self._grams]
        for grams, hashes in zip(
            self._grams, ngrams_of_lengths(found.hashes, lengths), strict=True
        ):
            places = grams.places(hashes)
            which = np.searchsorted(found.offsets, places, side="right") - 1
            # None runs from one text into the next.
            inside = places + grams.n <= found.offsets[which + 1]
            places, which = places[inside], which[inside]
            items = grams.items_of(hashes[places])
            for place, text, owners in zip(places.tolist(), which.tolist(), items, strict=True):
                begin = begins[text]
                last = place + grams.n - 1
                span = (int(found.starts[place] - begin), int(found.ends[last] - begin))
                spans, hits = results[text]
                spans.append(span)
                for item in owners:
                    count, start, end = hits.get(item, (0, *span))
                    first = min((start, end), span)
                    hits[item] = (count + 1, first[0], first[1])
        for spans, _ in results:
            spans.sort()
        return results

    def _cut(self, text: str, spans: list[Span]) -> str:
        """``text`` without the passages and the margin about them, until none is left: a seam
        could make a new one."""
        while spans:
            kept, at = [], 0
            for start, end in spans:
                begin, stop = self._with_margin(text, start, end)
                if begin > at:
                    kept.append(text[at:begin])
                at = max(at, stop)
            kept.append(text[at:])
            text = "\n\n".join(part.strip() for part in kept if part.strip())
            ((spans, _),) = self._search([text])
        return text

    def _with_margin(self, text: str, start: int, end: int) -> tuple[int, int]:
        """A passage with its margin. The words that the margin's ends run through go too, where
        they are words by their length: some scripts write no spaces."""
        begin = max(0, start - self._table.margin)
        stop = min(len(text), end + self._table.margin)
        before = text[max(0, begin - _WORD) : begin]
        behind = text[stop : stop + _WORD]
        if begin < start and (spaces := _SPACE.findall(before)):
            begin -= len(before) - before.rindex(spaces[-1]) - 1
        if stop > end and (space := _SPACE.search(behind)):
            stop += space.start()
        return begin, stop


def is_prepared(folder: Path) -> bool:
    return (folder / _INDEX).is_file()


def passed_over(folder: Path) -> list[str]:
    """A notice about the items that were too short to be looked for, if there are any."""
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    if not index["short"]:
        return []
    return [
        f"decontamination passes over {index['short']:,} of {len(index['items']):,} evaluation"
        f" items: no text of {index['min']} words"
    ]


class _Grams:
    """The n-grams of one length in all evaluation items, mapped from files."""

    def __init__(self, n: int, folder: Path) -> None:
        self.n = n
        # Plain arrays over the maps: slicing a np.memmap costs ten times as much.
        self._hashes, self._items, self._bits = (
            np.asarray(np.load(folder / f"{name}-{n}.npy", mmap_mode="r"))
            for name in ("hashes", "items", "bits")
        )

    def places(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Where in ``hashes`` one of these is."""
        # One bit each, in a table that a cache can hold, rules most out.
        maybe = np.flatnonzero(_bit(self._bits, hashes))
        at = np.searchsorted(self._hashes, hashes[maybe])
        at = np.minimum(at, len(self._hashes) - 1)
        return maybe[self._hashes[at] == hashes[maybe]]

    def items_of(self, hashes: Hashes) -> list[list[int]]:
        """The items that have each of ``hashes``."""
        first = np.searchsorted(self._hashes, hashes, side="left").tolist()
        last = np.searchsorted(self._hashes, hashes, side="right").tolist()
        return [self._items[a:b].tolist() for a, b in zip(first, last, strict=True)]


def _bits_of(hashes: Hashes) -> npt.NDArray[np.uint8]:
    """A table of 2^k bits, 16 or more for each hash, set at each hash's low k bits."""
    size = 1 << max(10, len(hashes).bit_length() + 4)
    marks = np.zeros(size, np.bool_)
    marks[hashes & np.uint64(size - 1)] = True
    return np.packbits(marks, bitorder="little")


def _bit(bits: npt.NDArray[np.uint8], hashes: Hashes) -> npt.NDArray[np.uint8]:
    low = hashes & np.uint64(len(bits) * 8 - 1)
    return (bits[low >> np.uint64(3)] >> (low & np.uint64(7)).astype(np.uint8)) & np.uint8(1)


def _chunks(source: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    for item in source:
        chunk.append(item)
        if len(chunk) == _ITEMS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _SEARCHED:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _looked_for(item: Item, min_words: int) -> list[str]:
    """The texts of an item that have enough words; else its first with each other one behind."""
    texts = [text for text in item.texts if text.strip()]
    if long := _of_words(texts, min_words):
        return long
    return _of_words([f"{texts[0]} {other}" for other in texts[1:]], min_words)


def _of_words(texts: list[str], least: int) -> list[str]:
    if not texts:
        return []
    counts = words(texts).counts.tolist()
    return [text for text, count in zip(texts, counts, strict=True) if count >= least]


def _grams_of(texts: list[str], n: int) -> Iterator[tuple[int, Hashes, npt.NDArray[np.int64]]]:
    """(length, hashes, the text of each): all n-grams, and shorter texts as a whole."""
    if not texts:
        return
    found = words(texts)
    text_of = np.repeat(np.arange(len(texts)), found.counts)
    hashes = ngrams(found.hashes, n)
    inside = text_of[: len(hashes)] == text_of[n - 1 :][: len(hashes)]
    if inside.any():
        yield n, hashes[inside], text_of[: len(hashes)][inside]
    for length in np.unique(found.counts[found.counts < n]).tolist():
        these = np.flatnonzero(found.counts == length)
        whole = [
            ngrams(found.hashes[found.offsets[i] : found.offsets[i + 1]], length) for i in these
        ]
        yield length, np.concatenate(whole), these
