"""A SentencePiece model's normaliser: its compiled rules, and what it does to spaces.

The rules are a double-array trie (Darts-clone) from UTF-8 to places in a block of texts that
zeros end. Where several rules match, the longest is taken; a result is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from flyweight.spec.errors import CorruptFileError

SPACE = "▁"
# A rule longer than this many bytes is no rule of a character's.
_LONGEST_RULE = 1024


class Longest:
    """Finds texts of a fixed set within a text: the leftmost, and there the longest."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._lengths: dict[str, list[int]] = {}
        self._wanted = frozenset(wanted) - {""}
        seconds: set[str] = set()
        alone: set[str] = set()
        for text in self._wanted:
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))
            if len(text) == 1:
                alone.add(text)
            else:
                seconds.add(text[1])
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)
        # A place where a match can begin, told by its first two characters.
        self._place: re.Pattern[str] | None = None
        if self._wanted:
            longer = _one_of(self._lengths.keys() - alone) + f"(?={_one_of(seconds)})"
            self._place = re.compile(f"{_one_of(alone)}|{longer}")

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def at(self, text: str, at: int) -> int:
        """The length of the longest wanted text at ``at``; 0 where there is none."""
        for length in self._lengths.get(text[at : at + 1], ()):
            if text[at : at + length] in self._wanted:
                return length
        return 0

    def find(self, text: str, at: int = 0) -> tuple[int, int] | None:
        """(start, stop) of the first match from ``at`` on."""
        while self._place is not None and (place := self._place.search(text, at)):
            start = place.start()
            if length := self.at(text, start):
                return start, start + length
            at = start + 1
        return None


def _one_of(characters: Iterable[str]) -> str:
    inside = "".join(re.escape(character) for character in sorted(characters))
    return f"[{inside}]" if inside else "(?!)"


@dataclass
class Normalizer:
    """Text to the form that the pieces are written in: spaces as ▁.

    ``rules`` replace texts; ``kept`` texts (user-defined pieces) are not touched by them.
    ``suffix`` puts the dummy space behind the text instead of before it.
    """

    rules: Mapping[str, str] = field(default_factory=dict)
    kept: Iterable[str] = ()
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True
    suffix: bool = False

    def __post_init__(self) -> None:
        kept = tuple(self.kept)
        self._kept = Longest(kept)
        # A rule may begin within a kept text that begins before it, so both are looked for at once.
        self._matcher = Longest([*self.rules, *kept])

    def __call__(self, text: str) -> str:
        if not text:
            return ""
        if self.remove_extra_whitespaces:
            normal = self._squeezed(text)
            if normal is None:
                return ""
        else:
            parts: list[str] = []
            self._pieces(text, parts.append, parts.append)
            normal = "".join(parts)
        space = " "
        if self.escape_whitespaces:
            space = SPACE
            normal = normal.replace(" ", SPACE)
        if self.add_dummy_prefix and not self.suffix:
            normal = space + normal
        if self.remove_extra_whitespaces:
            normal = normal.rstrip(space)
        if self.add_dummy_prefix and self.suffix:
            normal += space
        return normal

    def _pieces(self, text: str, run: Callable[[str], None], piece: Callable[[str], None]) -> None:
        """Hand over ``text`` in order: runs that nothing touches, and results of rules."""
        at = 0
        while found := self._matcher.find(text, at):
            start, stop = found
            if start > at:
                run(text[at:start])
            if kept := self._kept.at(text, start):
                stop = start + kept
                piece(text[start:stop])
            else:
                piece(self.rules[text[start:stop]])
            at = stop
        if at < len(text):
            run(text[at:])

    def _squeezed(self, text: str) -> str | None:
        """Without spaces at the front and after other spaces; None where nothing but spaces is.

        A piece may end in a space of its own and may hold several inside: those stay.
        """
        parts: list[str] = []
        after_space = True
        only_spaces = True

        def run(stretch: str) -> None:
            nonlocal after_space, only_spaces
            only_spaces = only_spaces and not stretch.strip(" ")
            stretch = _SPACES.sub(" ", stretch)
            if after_space:
                stretch = stretch.removeprefix(" ")
            if stretch:
                parts.append(stretch)
                after_space = stretch.endswith(" ")

        def piece(result: str) -> None:
            nonlocal after_space, only_spaces
            only_spaces = only_spaces and result == " "
            if after_space:
                result = result.lstrip(" ")
            if result:
                parts.append(result)
                after_space = result.endswith(" ")

        self._pieces(text, run, piece)
        return None if only_spaces else "".join(parts)


_SPACES = re.compile("  +")


@lru_cache(maxsize=4)  # half a second each; models of one family have the same
def read_charsmap(blob: bytes) -> Mapping[str, str]:
    """The rules of a precompiled_charsmap. Raises CorruptFileError.

    uint32 size of the trie in bytes, the trie, the texts. A unit of the trie is a uint32: bits
    0-7 its label, bit 8 "a key ends here", bits 9-30 the offset to its children; or, bit 31 set,
    a value. (Darts-clone, https://github.com/s-yata/darts-clone.)
    """
    if not blob:
        return {}
    size = int.from_bytes(blob[:4], "little")
    if len(blob) <= 4 or size % 4 or not 0 < size <= len(blob) - 4:
        raise CorruptFileError(f"the charsmap of {len(blob)} bytes claims a trie of {size} bytes")
    import numpy as np

    units = np.frombuffer(blob, dtype="<u4", count=size // 4, offset=4)
    texts = blob[4 + size :]
    index = np.arange(len(units), dtype=np.int64)
    # A unit's place is its family's base xor its label; so the families, without trying labels.
    inner = np.flatnonzero(units >> 31 == 0)
    bases = index[inner] ^ (units[inner] & 0xFF).astype(np.int64)
    families: dict[int, list[int]] = {}
    for base, child in zip(bases.tolist(), inner.tolist(), strict=True):
        families.setdefault(base, []).append(child)
    values = units.tolist()

    def below(place: int) -> int:
        unit = values[place]
        return place ^ ((unit >> 10) << ((unit & 0x200) >> 6))

    rules: dict[str, str] = {}
    # Endings that keys share are stored once, so places can be met again, but not without end.
    left = 32 * len(values) + 1024
    waiting = [(b"", 0)]
    while waiting:
        key, place = waiting.pop()
        base = below(place)
        if values[place] & 0x100 and key:
            rules[_utf8(key)] = _text(texts, values, base)
        for child in families.get(base, ()):
            label = values[child] & 0xFF
            if label == 0 or child == 0:
                continue
            left -= 1
            if left < 0 or len(key) >= _LONGEST_RULE:
                raise CorruptFileError("the charsmap's trie has no end: it is damaged")
            waiting.append((key + bytes([label]), child))
    return rules


def _text(texts: bytes, values: list[int], place: int) -> str:
    if place >= len(values) or not values[place] >> 31:
        raise CorruptFileError("a rule of the charsmap has no value: it is damaged")
    start = values[place] & 0x7FFFFFFF
    stop = texts.find(b"\0", start)
    if start >= len(texts) or stop < 0:
        raise CorruptFileError("a rule of the charsmap leads out of it: it is damaged")
    return _utf8(texts[start:stop])


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFileError(f"{data!r} in the charsmap is not UTF-8: it is damaged") from None
