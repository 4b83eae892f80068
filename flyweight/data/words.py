"""Words and word n-grams of texts as 64-bit hashes, in numpy: what the rules and filters compare.

A word is a run of letters, marks and digits. Case and width are folded character by character. In
the scripts that write no spaces (Han, Kana, Thai, Lao, Khmer, Myanmar) each character is a word,
marks apart; so a 5-gram of words is, there, one of characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

# Above these planes are private use, tags and variation selectors: no words.
_TABLE = 0x40000
_BLOCK = 1 << 18
_SEPARATOR, _LETTER, _ALONE, _MARK = 0, 1, 2, 3
# Whether a word starts, by 4·(kind of the character before) + kind: a mark goes with what it
# follows, a letter not with a character that stands alone.
_STARTS = np.array([0, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0], np.bool_)
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Han's signs for repetition and zero
    (0x3040, 0x30FF),  # Kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text or of several: W words, in characters from the start of all the text.

    ``hashes`` (W,); ``starts`` and ``ends`` (W,) in characters; ``offsets`` (texts + 1,): text i
    has the words offsets[i] to offsets[i + 1].
    """

    hashes: Hashes
    starts: Places
    ends: Places
    offsets: Places

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def counts(self) -> Places:
        """Words of each text."""
        return np.diff(self.offsets)


def words(texts: Sequence[str]) -> Words:
    """The words of each of ``texts``; none runs from one text into the next."""
    found, counts, at = [], np.zeros(len(texts), np.int64), 0
    for first, last, joined in _blocks(texts):
        hashes, starts, ends, lengths = _words(joined, texts[first:last])
        found.append((hashes, starts + at, ends + at))
        counts[first:last] += lengths
        at += len(joined)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if not found:
        empty = np.zeros(0, np.int64)
        return Words(empty.astype(np.uint64), empty, empty, offsets)
    hashes, starts, ends = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Words(hashes, starts, ends, offsets)


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(first text, last text + 1, their text, each with a newline): what fits a processor's cache.

    A long text is cut, at a newline or a space where there is one, the same way in any company.
    """
    first, size = 0, 0
    for i, text in enumerate(texts):
        if size and size + len(text) >= _BLOCK:
            yield first, i, "\n".join(texts[first:i]) + "\n"
            first, size = i, 0
        if len(text) >= _BLOCK:
            for piece in pieces(text, _BLOCK):
                yield i, i + 1, piece
            yield i, i + 1, "\n"
            first = i + 1
        else:
            size += len(text) + 1
    if first < len(texts):
        yield first, len(texts), "\n".join(texts[first:]) + "\n"


def pieces(text: str, size: int) -> Iterator[str]:
    """``text`` cut into pieces of at most ``size`` characters, after a newline, else after a space,
    else anywhere."""
    at = 0
    while len(text) - at > size:
        cut = 1 + text.rfind("\n", at + size // 2, at + size)
        cut = cut or 1 + text.rfind(" ", at + size // 2, at + size) or at + size
        yield text[at:cut]
        at = cut
    yield text[at:]


def _words(joined: str, texts: Sequence[str]) -> tuple[Hashes, Places, Places, Places]:
    """(hashes, starts, ends, words in each text) of a block; ``texts`` are those it is made of."""
    kinds, mixed = _tables()
    codes = np.minimum(code_points(joined), _TABLE - 1)
    kind = kinds[codes]
    pair = np.empty(len(kind) + 1, np.uint8)
    pair[0], pair[1:] = 0, kind << 2
    pair[:-1] |= kind
    is_start = _STARTS[pair[:-1]]
    is_end = np.empty(len(kind), np.bool_)
    is_end[:-1] = is_start[1:] | (kind[1:] == _SEPARATOR)
    is_end[-1] = True
    is_end &= kind != _SEPARATOR
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end) + 1
    # Σ mix(character)·base^place as differences of running sums, each word's from its own start.
    powers, inverses = _powers(_BLOCK + 1)
    sums = np.empty(len(codes) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(mixed[codes] * powers[: len(codes)], out=sums[1:])
    hashes = mix((sums[ends] - sums[starts]) * inverses[starts])
    if len(texts) == 1:
        return hashes, starts, ends, np.array([len(starts)])
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    borders = np.concatenate([[0], np.cumsum(lengths)])
    return hashes, starts, ends, np.diff(np.searchsorted(starts, borders))


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """The hash of each run of ``n`` words: (W,) to (max(0, W - n + 1),)."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(n):
        total += hashes[place : place + count] * _ODD[place % len(_ODD)]
    return mix(total)


def ngrams_of_lengths(hashes: Hashes, lengths: Sequence[int]) -> Iterator[Hashes]:
    """`ngrams` for each of the ascending ``lengths``, each from the one before."""
    total, n = np.zeros(len(hashes) + 1, np.uint64), 0
    for length in lengths:
        while n < length:
            count = max(0, len(hashes) - n)
            total = total[:count]
            total += hashes[n:] * _ODD[n % len(_ODD)]
            n += 1
        yield mix(total)


def ngrams_of_each(found: Words, n: int) -> tuple[Hashes, Places]:
    """(hashes, offsets): the n-grams within each text, text i's being offsets[i]:offsets[i + 1].

    A text of 1 to n - 1 words has one: all its words.
    """
    counts = found.counts
    many = np.where(counts >= n, counts - n + 1, (counts > 0).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(many)]).astype(np.int64)
    all_grams = ngrams(found.hashes, n)
    result = np.empty(int(offsets[-1]), np.uint64)
    whole = counts >= n
    text_of = np.repeat(np.arange(len(counts)), many)
    place = np.arange(len(result)) - offsets[text_of] + found.offsets[text_of]
    long = whole[text_of]
    result[long] = all_grams[place[long]]
    for text in np.flatnonzero((counts > 0) & ~whole).tolist():
        begin, end = found.offsets[text], found.offsets[text + 1]
        result[offsets[text]] = ngrams(found.hashes[begin:end], int(end - begin))[0]
    return result, offsets


def stand_alone(text: str, found: Words) -> npt.NDArray[np.bool_]:
    """Which of the words ``found`` in ``text`` are characters of a script without spaces."""
    codes = code_points(text)[found.starts]
    return _tables()[0][np.minimum(codes, _TABLE - 1)] == _ALONE


def word_characters(text: str) -> int:
    """How many characters of ``text`` are letters, marks or digits."""
    codes = np.minimum(code_points(text), _TABLE - 1)
    return int(np.count_nonzero(_tables()[0][codes]))


def code_points(text: str) -> Codes:
    """The characters of ``text`` as numbers, (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def mix(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers that spreads every bit over all (splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def odd_numbers(count: int, start: int = 0) -> Hashes:
    """``count`` fixed odd 64-bit numbers, alike on every machine."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    return mix((np.arange(start + 1, start + count + 1, dtype=np.uint64)) * golden) | np.uint64(1)


_ODD = odd_numbers(64)


@lru_cache(maxsize=1)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The powers 0, 1, ... of an odd number and of its inverse, mod 2^64."""
    base = int(_ODD[-1])
    both = []
    for number in (base, pow(base, -1, 2**64)):
        powers = np.full(count, np.uint64(number))
        powers[:1] = 1
        both.append(np.cumprod(powers, dtype=np.uint64))
    return both[0], both[1]


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], Hashes]:
    """(what each character is to a word, a hash of what it is folded to)."""
    kinds = np.zeros(_TABLE, np.uint8)
    folded = np.arange(_TABLE, dtype=np.uint64)
    for code in range(0x20000):
        character = chr(code)
        category = unicodedata.category(character)[0]
        if category in "LMN":
            kinds[code] = _MARK if category == "M" else _LETTER
        plain = unicodedata.normalize("NFKC", character) if code > 0x7F else character
        plain = plain.casefold()
        if len(plain) == 1:
            folded[code] = ord(plain)
    for first, last in _WITHOUT_SPACES:
        here = kinds[first : last + 1]
        here[here == _LETTER] = _ALONE
    kinds[0x20000:0x3FFFE] = _ALONE
    return kinds, mix(folded)
