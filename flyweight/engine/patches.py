"""The byte model's front and back: bytes pooled into patches, the core's output spread to them.

As flyweight/model/patches.py computes it, in one program with the core.
"""

from __future__ import annotations

from collections.abc import Callable

from flyweight.engine.emit import Emitter
from flyweight.engine.program import Index, Kind, Rows
from flyweight.spec.model import FeedForward, PatchInput

Core = Callable[[Emitter, Rows, int], None]


def through_patches(emit: Emitter, patches: PatchInput, x: int, core: Core) -> None:
    """x, the bytes' embeddings, becomes the bytes' last hidden state."""
    spec = emit.spec
    emit.norm(Rows.TOKENS, spec.norm, "patches.norm", x, x)
    for i in range(patches.front_depth):
        _byte_block(emit, patches, f"patches.front.{i}", x)
    pooled = emit.buffer("pooled", Rows.PATCHES, 2 * patches.width)
    word = patches.patch == "word"
    emit.op(Kind.POOL, Rows.PATCHES, [x], [pooled], ints=(word, patches.size))
    h = emit.buffer("core", Rows.PATCHES, spec.width)
    emit.linear(Rows.PATCHES, "patches.to_core", pooled, h)
    emit.norm(Rows.PATCHES, spec.norm, "patches.core_norm", h, h)
    core(emit, Rows.PATCHES, h)
    emit.norm(Rows.PATCHES, spec.norm, "patches.core_norm", h, h)
    out = emit.buffer("spread", Rows.PATCHES, patches.width)
    emit.linear(Rows.PATCHES, "patches.from_core", h, out)
    emit.op(Kind.SPREAD, Rows.TOKENS, [out], [x])
    offset = emit.table("patches.offset", patches.size, patches.width)
    emit.op(Kind.EMBED, Rows.TOKENS, [], [x], [offset], [Index.OFFSET, 1], [1.0])
    for i in range(patches.decoder_depth):
        _byte_block(emit, patches, f"patches.decoder.{i}", x)


def _byte_block(emit: Emitter, patches: PatchInput, name: str, x: int) -> None:
    normed = emit.buffer("normed", Rows.TOKENS, patches.width)
    emit.norm(Rows.TOKENS, emit.spec.norm, f"{name}.norm", x, normed)
    inner = FeedForward(kind=emit.spec.feedforward.kind, hidden=patches.hidden)
    emit.feedforward(Rows.TOKENS, inner, f"{name}.feedforward", normed, x)
