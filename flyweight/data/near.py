"""Near-duplicates: MinHash with banding finds the candidates, the exact sets of n-grams decide.

Broder 1997 ("On the resemblance and containment of documents"): for a random order of all n-grams,
two sets have the same least element with the probability of their Jaccard similarity
J = |A ∩ B| / |A ∪ B|. b bands of r such hashes each agree somewhere with probability
1 - (1 - J^r)^b: with 20 bands of 5, 0.9996 at J = 0.8, 0.47 at 0.5, 0.05 at 0.3. What agrees is
compared exactly, so that what is dropped has the similarity it is dropped for.

Which copy stays: the first in the order of the documents. A document goes where it is like an
earlier one that stays; so a chain of small changes keeps each link that differs enough from all
that stayed, and nothing is dropped for a document that was itself dropped.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flyweight.data.words import Hashes, mix, ngrams_of_each, odd_numbers, words
from flyweight.spec.cleaning import NearDuplicates

# n-grams hashed at a time: buffers that fit a processor's cache.
_BLOCK = 1 << 14
# Documents that stay and share a band's hash are compared up to this many.
_COMPARED = 64
# N-grams of documents kept in memory for the next comparison.
_REMEMBERED = 1 << 22
_SAMPLES = 5


@dataclass(frozen=True)
class Found:
    """``drop`` (documents,); ``of`` (documents,): the document that stays for it, or -1.

    ``compared`` pairs had their sets compared; ``samples``: (dropped, kept, similarity) of the
    first few.
    """

    drop: npt.NDArray[np.bool_]
    of: npt.NDArray[np.int64]
    compared: int
    samples: list[tuple[int, int, float]] = field(default_factory=list)


def signatures(texts: Sequence[str], table: NearDuplicates) -> Hashes:
    """(bands, texts): equal numbers in a band make two texts candidates.

    A text of fewer words than an n-gram has one n-gram, all its words; one of no words is a
    candidate to its exact copies alone.
    """
    grams, offsets = ngrams_of_each(words(texts), table.ngram)
    result = np.empty((table.bands, len(texts)), np.uint64)
    hashes = table.bands * table.rows
    factors, terms = odd_numbers(hashes), odd_numbers(hashes, start=hashes)
    for first, last in _blocks(offsets):
        least = _least(grams[offsets[first] : offsets[last]], offsets[first : last + 1], factors)
        for band in range(table.bands):
            total = np.full(last - first, np.uint64(band))
            for row in range(band * table.rows, (band + 1) * table.rows):
                total = mix(total + least[row] * terms[row])
            result[band, first:last] = total
    for text in np.flatnonzero(offsets[1:] == offsets[:-1]).tolist():
        digest = hashlib.sha256(texts[text].encode("utf-8", "surrogatepass")).digest()
        result[:, text] = int.from_bytes(digest[:8], "little")
    return result


def _blocks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of documents of some ``_BLOCK`` n-grams, one document at least."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _least(grams: Hashes, offsets: npt.NDArray[np.int64], factors: Hashes) -> Hashes:
    """(hashes, documents): the least of each hash a·x over each document's n-grams.

    x is mixed already, so a·x mod 2^64, a odd, orders all x anew by its high bits.
    """
    begins = (offsets[:-1] - offsets[0]).astype(np.int64)
    empty = offsets[1:] == offsets[:-1]
    result = np.zeros((len(factors), len(begins)), np.uint64)
    if len(grams):
        full = begins[~empty]
        product = np.empty_like(grams)
        for i, factor in enumerate(factors):
            np.multiply(grams, factor, out=product)
            result[i, ~empty] = np.minimum.reduceat(product, full)
    return result


def near_duplicates(
    table: NearDuplicates,
    files: Sequence[Path],
    read: Callable[[int], str],
    skip: npt.NDArray[np.bool_] | None = None,
    protected: int = 0,
) -> Found:
    """Which documents are near-duplicates of an earlier one that stays.

    ``files``: the signatures of consecutive parts of the corpus (`signatures`, saved by np.save),
    documents being numbered from 0 through all of them; ``read`` gives a document's text; those in
    ``skip`` count as absent, the first ``protected`` ones are never dropped. A document is compared
    with 64 that stay, at most, for each band that it shares. Memory: some 50 bytes a document, and
    16 a band for those that share one.
    """
    parts = [np.load(file, mmap_mode="r") for file in files]
    count = sum(part.shape[1] for part in parts)
    skipped = np.zeros(count, np.bool_) if skip is None else skip
    documents, groups = _candidates(parts, skipped, table.bands)
    drop, of = np.zeros(count, np.bool_), np.full(count, -1, np.int64)
    staying: dict[int, list[int]] = defaultdict(list)
    sets = _Sets(read, table.ngram)
    compared = 0
    samples: list[tuple[int, int, float]] = []
    borders = [*np.flatnonzero(np.diff(documents, prepend=-1)).tolist(), len(documents)]
    for begin, end in pairwise(borders):
        document, mine = int(documents[begin]), groups[begin:end].tolist()
        if document >= protected:
            others = {other for group in mine for other in staying[group][:_COMPARED]}
            for other in sorted(others):
                compared += 1
                similarity = sets.jaccard(document, other, table.similarity)
                if similarity >= table.similarity:
                    drop[document], of[document] = True, other
                    if len(samples) < _SAMPLES:
                        samples.append((document, other, similarity))
                    break
        if not drop[document]:
            for group in mine:
                staying[group].append(document)
    return Found(drop, of, compared, samples)


def _candidates(
    parts: Sequence[Hashes], skip: npt.NDArray[np.bool_], bands: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(documents, groups), sorted by document: who shares a band's hash with whom."""
    documents, groups, known = [], [], 0
    present = np.flatnonzero(~skip)
    for band in range(bands if len(present) else 0):
        keys = np.concatenate([part[band] for part in parts])[present]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        shared = ~(new & np.concatenate([new[1:], [True]]))
        documents.append(present[order[shared]])
        groups.append(np.cumsum(new[shared]) - 1 + known)
        known += int(np.count_nonzero(new[shared]))
    if not documents:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    whole, group = np.concatenate(documents), np.concatenate(groups)
    order = np.argsort(whole, kind="stable")
    return whole[order], group[order]


class _Sets:
    """The sets of n-grams of documents, the last used ones remembered."""

    def __init__(self, read: Callable[[int], str], ngram: int) -> None:
        self._read = read
        self._ngram = ngram
        self._sets: OrderedDict[int, Hashes] = OrderedDict()
        self._size = 0

    def jaccard(self, a: int, b: int, least: float) -> float:
        """The Jaccard similarity of two documents; 0 where their sizes rule out ``least``."""
        one, other = self._of(a), self._of(b)
        small, large = sorted((len(one), len(other)))
        # J is at most small / large. Two texts without words have nothing in common.
        if not small or small < least * large:
            return 0.0
        common = len(np.intersect1d(one, other, assume_unique=True))
        return common / (small + large - common)

    def _of(self, document: int) -> Hashes:
        if document in self._sets:
            self._sets.move_to_end(document)
            return self._sets[document]
        found = ngram_set(self._read(document), self._ngram)
        self._sets[document] = found
        self._size += len(found)
        while self._size > _REMEMBERED and len(self._sets) > 2:
            self._size -= len(self._sets.popitem(last=False)[1])
        return found


def ngram_set(text: str, n: int) -> Hashes:
    """The different n-grams of words of a text, as sorted hashes."""
    return np.unique(ngrams_of_each(words([text]), n)[0])
