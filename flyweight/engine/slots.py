"""The byte-slot model's front and back: a token's bytes to one vector, and the next token's
probability from its spelling.

As flyweight/model/slots.py computes it, in one program with the core.
"""

from __future__ import annotations

from flyweight.engine.emit import Emitter
from flyweight.engine.program import Index, Kind, Rows
from flyweight.spec.model import FeedForward, SlotInput
from flyweight.text.spelling import SYMBOLS


def read_symbols(emit: Emitter, slots: SlotInput) -> int:
    """The tokens' vectors from their bytes, in a new buffer."""
    spec, rows, width = emit.spec, Rows.SYMBOLS, slots.width
    h = emit.buffer("symbols", rows, width)
    table = emit.table("slots.embedding", SYMBOLS, width)
    emit.op(Kind.EMBED, rows, [], [h], [table], [Index.SYMBOL, 0], [1.0])
    offset = emit.table("slots.front_offset", slots.slots, width)
    emit.op(Kind.EMBED, rows, [], [h], [offset], [Index.OFFSET, 1], [1.0])
    x = emit.buffer("stream", Rows.TOKENS, spec.width)
    if slots.front_widths:
        for i, output in enumerate(slots.front_widths):
            h = _block(emit, slots, rows, f"slots.front.{i}", h, widened=output)
        emit.op(Kind.MEAN, Rows.TOKENS, [h], [x])
        return x
    for i in range(slots.front_depth):
        _block(emit, slots, rows, f"slots.front.{i}", h)
    mean = emit.buffer("mean", Rows.TOKENS, width)
    emit.op(Kind.MEAN, Rows.TOKENS, [h], [mean])
    emit.linear(Rows.TOKENS, "slots.to_core", mean, x)
    return x


def spell(emit: Emitter, slots: SlotInput, hidden: int) -> int:
    """The vocabulary's log probabilities, up to a constant, from the final hidden states."""
    rows = Rows.SPELLED
    whole = emit.buffer("unspelled", Rows.WANTED, slots.slots * slots.width)
    emit.linear(Rows.WANTED, "slots.from_core", hidden, whole)
    h = emit.buffer("slots", rows, slots.width)
    emit.op(Kind.CUT, rows, [whole], [h])
    offset = emit.table("slots.back_offset", slots.slots, slots.width)
    emit.op(Kind.EMBED, rows, [], [h], [offset], [Index.OFFSET, 1], [1.0])
    for i in range(slots.decoder_depth):
        _block(emit, slots, rows, f"slots.back.{i}", h)
    normed = emit.buffer("normed", rows, slots.width)
    emit.norm(rows, emit.spec.norm, "slots.back_norm", h, normed)
    symbols = emit.buffer("symbol logits", rows, SYMBOLS)
    emit.linear(rows, "slots.head", normed, symbols)
    emit.op(Kind.LOGS, rows, [symbols], [symbols])
    logits = emit.buffer("logits", Rows.WANTED, emit.spec.vocab_size)
    emit.op(Kind.SPELL, Rows.WANTED, [symbols], [logits])
    return logits


def _block(emit: Emitter, slots: SlotInput, rows: Rows, name: str, h: int, widened: int = 0) -> int:
    """Attention within a token, then a feed-forward: added to ``h``, or, where it leads to another
    width, ``widened``, in a new buffer."""
    width = emit.width(h)
    normed = emit.buffer("normed", rows, width)
    emit.norm(rows, emit.spec.norm, f"{name}.attention_norm", h, normed)
    qkv = emit.buffer("qkv", rows, 3 * width)
    emit.linear(rows, f"{name}.attention.qkv", normed, qkv)
    y = emit.buffer("attended", rows, width)
    dim = width // slots.heads
    ints = (slots.heads, dim, rows == Rows.SYMBOLS)
    emit.op(Kind.WITHIN, rows, [qkv], [y], ints=ints, floats=[dim**-0.5])
    emit.linear(rows, f"{name}.attention.output", y, h, add=True)
    normed = emit.buffer("normed", rows, width)
    emit.norm(rows, emit.spec.norm, f"{name}.feedforward_norm", h, normed)
    hidden = slots.hidden * width // slots.width
    inner = FeedForward(kind="gelu", hidden=hidden)
    if not widened:
        emit.feedforward(rows, inner, f"{name}.feedforward", normed, h)
        return h
    out = emit.buffer("widened", rows, widened)
    emit.feedforward(rows, inner, f"{name}.feedforward", normed, out, add=False)
    return out
