"""Where a passage is in a split, and at which steps of a run it was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flyweight.data.batches import Batches
from flyweight.data.shards import Split
from flyweight.spec.errors import ConfigurationError
from flyweight.text.tokenizer import Tokenizer, utf8

Ints = npt.NDArray[np.int64]
# Tokens searched at a time.
CHUNK = 1 << 22
# In no UTF-8 text, so that no passage crosses it.
_BORDER = 0xFF


class Hits(NamedTuple):
    """Occurrences of a passage, (hits,) each: its tokens are ``starts`` to ``stops`` of the
    stream (the outermost may hold more than the passage), its bytes begin at ``at`` of the text
    of ``documents``."""

    starts: Ints
    stops: Ints
    documents: Ints
    at: Ints


class Readings(NamedTuple):
    """(readings,) each, by step: ``hits`` numbers an occurrence, ``steps`` count from 1, ``rows``
    of the step's batch from 0. An occurrence that lies in two rows is read in both."""

    hits: Ints
    steps: Ints
    rows: Ints


def find(
    stream: Split, tokenizer: Tokenizer, eot_id: int, passage: str, chunk: int = CHUNK
) -> Hits:
    """Every occurrence of ``passage``, overlapping ones too, in the texts as the tokenizer gives
    them back. One pass: the tokens' bytes, laid one after the other, are searched as bytes."""
    wanted = utf8(passage, "the passage")
    if not wanted:
        raise ConfigurationError("an empty passage is everywhere: --find needs some text")
    expand, hidden = _expander(tokenizer, eot_id), _hidden_front(stream, tokenizer)
    found: list[tuple[Ints, ...]] = []
    # `carry`: bytes of the open document before `at`. `seen`: bytes from `at` searched already.
    at = carry = seen = 0
    while at < stream.tokens:
        stop = min(at + chunk, stream.tokens)
        data, ends = expand(stream.read(at, stop))
        begins = np.concatenate(([0], ends))
        first, last = np.searchsorted(stream.starts[:-1] + 1, (at, stop))
        for document in range(int(first), int(last)):
            begin = int(begins[stream.starts[document] + 1 - at])
            data[begin : begin + hidden(document)] = _BORDER
        places = np.array(_positions(data.tobytes(), wanted, seen - len(wanted) + 1), np.int64)
        starts = at + np.searchsorted(ends, places, side="right")
        stops = at + np.searchsorted(ends, places + len(wanted) - 1, side="right") + 1
        documents = np.searchsorted(stream.starts, starts, side="right") - 1
        text = stream.starts[documents] + 1
        bases = np.where(text >= at, begins[np.maximum(text - at, 0)], -carry)
        bases += np.array([hidden(d) for d in documents.tolist()], np.int64)
        found.append((starts, stops, documents, places - bases))
        if stop == stream.tokens:
            break
        # On from the token that holds the first byte of what may begin a passage cut here.
        on = int(np.searchsorted(ends, len(data) - len(wanted) + 1, side="right"))
        chunk = chunk if on else 2 * chunk
        seen = len(data) - int(begins[on])
        text_at = int(stream.starts[np.searchsorted(stream.starts, at + on, side="right") - 1]) + 1
        if text_at >= at + on:
            carry = 0
        elif text_at < at:
            carry += int(begins[on])
        else:
            carry = int(begins[on] - begins[text_at - at])
        at += on
    columns = zip(*found, strict=True) if found else ([np.zeros(0, np.int64)],) * 4
    return Hits(*(np.concatenate(column) for column in columns))


class Taken(NamedTuple):
    """Steps that were taken with the same ``batches``, (steps,) each: ``steps[i]`` (from 1) read
    the ``counts[i]`` windows from running number ``firsts[i]`` on. All rise."""

    batches: Batches
    steps: Ints
    firsts: Ints
    counts: Ints


def readings(hits: Hits, stretches: Sequence[Taken]) -> Readings:
    """The steps of the ``stretches`` that read the hits."""
    found = [np.zeros((3, 0), np.int64)]
    for batches, steps, firsts, counts in stretches:
        if not len(steps):
            continue
        end = int(firsts[-1] + counts[-1])
        which, windows = batches.places_of(hits.starts, hits.stops, end)
        at = np.searchsorted(firsts, windows, side="right") - 1
        rows = windows - firsts[at]
        # Windows that were skipped lie between one step's and the next's.
        read = (at >= 0) & (rows < counts[at])
        found.append(np.stack((which[read], steps[at[read]], rows[read])))
    hit, step, row = np.concatenate(found, axis=1)
    order = np.lexsort((hit, row, step))
    return Readings(hit[order], step[order], row[order])


def _positions(data: bytes, wanted: bytes, begin: int) -> list[int]:
    places = []
    at = data.find(wanted, max(0, begin))
    while at >= 0:
        places.append(at)
        at = data.find(wanted, at + 1)
    return places


def _expander(
    tokenizer: Tokenizer, eot_id: int
) -> Callable[[Ints], tuple[npt.NDArray[np.uint8], Ints]]:
    """A function from ids to their bytes in a row and where each id's end; <eot> is a border."""
    pieces = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    pieces[eot_id] = bytes([_BORDER])
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    flat = np.frombuffer(b"".join(pieces), np.uint8)

    def expand(ids: Ints) -> tuple[npt.NDArray[np.uint8], Ints]:
        sizes = lengths[ids]
        ends = np.cumsum(sizes)
        source = np.repeat(offsets[ids] - (ends - sizes), sizes)
        source += np.arange(len(source))
        return flat[source], ends

    return expand


def _hidden_front(stream: Split, tokenizer: Tokenizer) -> Callable[[int], int]:
    """How many of a document's first bytes its tokens have and its text has not: the space that
    some tokenizers put in front of a text."""
    if not getattr(tokenizer, "strips_first_space", False):
        return lambda document: 0

    def hidden(document: int) -> int:
        begin, end = (int(at) for at in stream.starts[document : document + 2])
        ids = stream.read(begin + 1, min(begin + 9, end)).tolist()
        return sum(len(tokenizer.token_bytes(id)) for id in ids) - len(tokenizer.decode_bytes(ids))

    return hidden
