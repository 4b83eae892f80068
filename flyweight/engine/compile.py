"""From a spec and its tensors to the flat program that runs them.

What the program computes is what flyweight/model computes; the tests hold the two side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flyweight.engine import patches, slots
from flyweight.engine.emit import Emitter, Tensors
from flyweight.engine.plan import plan
from flyweight.engine.program import Index, Kind, Program, Rows, Spelling
from flyweight.spec.errors import FlyweightError
from flyweight.spec.frequencies import alibi_slopes
from flyweight.spec.model import ModelSpec, Norm, PatchInput, SlotInput
from flyweight.text.spelling import PAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def uncovered(spec: ModelSpec) -> str | None:
    """What of ``spec`` the engine cannot run; None where it runs it."""
    if spec.encoder is not None:
        return "encoders (encoder-decoder models)"
    if spec.position.kind == "relative":
        return 'relative positions (position.kind = "relative")'
    return None


def compile_model(
    spec: ModelSpec, tensors: Tensors, spelling: NDArray[np.int32] | None = None
) -> Program:
    """The program of ``spec`` with the weights of ``tensors`` (our names), memory planned.

    ``spelling`` (vocabulary, slots): flyweight.text.spelling's, for a model of byte slots.

    Raises FlyweightError where the engine does not know a part of the spec, CorruptFileError
    where a tensor is missing or has another shape.
    """
    if reason := uncovered(spec):
        raise FlyweightError(f"the native engine has no {reason}; take --engine torch")
    emit = Emitter(spec, tensors)
    if isinstance(spec.input, SlotInput):
        assert spelling is not None and spelling.shape == (spec.vocab_size, spec.input.slots)
        emit.program.spelling = Spelling(spelling, PAD)
    x = _embedding(emit)
    if isinstance(spec.input, PatchInput):
        patches.through_patches(emit, spec.input, x, core)
    else:
        core(emit, Rows.TOKENS, x)
    _head(emit, x)
    if spec.position.kind == "rope":
        emit.program.frequencies = spec.rotary_dim // 2
    plan(emit.program)
    return emit.program


def _embedding(emit: Emitter) -> int:
    """The tokens' vectors with all that is added to them, in a new buffer."""
    spec, rows, width = emit.spec, Rows.TOKENS, emit.spec.embedding_width
    if isinstance(spec.input, SlotInput):
        x = slots.read_symbols(emit, spec.input)
        if spec.position.kind == "learned":
            table = emit.table("embedding.positions", spec.context, width)
            emit.op(Kind.EMBED, rows, [], [x], [table], [Index.POSITION, 1], [1.0])
        if spec.scale.embedding != 1.0:
            emit.op(Kind.SCALE, rows, [x], [x], floats=[spec.scale.embedding])
        return x
    x = emit.buffer("stream", rows, width)
    featured = spec.ngrams is not None or spec.matches is not None
    scale = spec.scale.embedding
    matrix = emit.matrix if spec.tie_embeddings else emit.table
    own = matrix("embedding.weight", spec.vocab_size, width)
    first = 1.0 if featured else scale
    emit.op(Kind.EMBED, rows, [], [x], [own], [Index.TOKEN, 0], [first])
    if spec.ngrams is not None:
        orders, size, dim = spec.ngrams.orders, spec.ngrams.rows, spec.ngrams.dim
        looked_up = emit.buffer("ngrams", rows, len(orders) * dim)
        table = emit.table("embedding.ngrams.table", len(orders) * size, dim)
        emit.op(Kind.NGRAMS, rows, [], [looked_up], [table], [size, *orders])
        emit.linear(rows, "embedding.ngrams.project", looked_up, x, add=True)
    if spec.matches is not None:
        lengths, vocab = spec.matches.lengths, spec.vocab_size
        table = emit.table("embedding.matches", len(lengths) * (vocab + 1), width)
        emit.op(Kind.MATCHES, rows, [], [x], [table], [vocab, *lengths])
    if spec.position.kind == "learned":
        table = emit.table("embedding.positions", spec.context, spec.width)
        emit.op(Kind.EMBED, rows, [], [x], [table], [Index.POSITION, 1], [first])
    if featured and scale != 1.0:
        emit.op(Kind.SCALE, rows, [x], [x], floats=[scale])
    return x


def core(emit: Emitter, rows: Rows, h: int) -> None:
    """The blocks, each as often as sharing says, on ``rows``; ``h`` is the stream."""
    for i in range(emit.spec.depth):
        for _ in range(emit.spec.share.repeat):
            _block(emit, rows, h, i)


def _block(emit: Emitter, rows: Rows, h: int, i: int) -> None:
    """h += s attention(norm(h)); h += s feedforward(norm(h)), or both from one norm."""
    spec, name = emit.spec, f"blocks.{i}"
    lent = i in spec.shared_layers
    scale, rank = spec.scale.residual, spec.share.lora_rank if lent else 0
    x = emit.buffer("normed", rows, spec.width)
    emit.norm(rows, spec.norm, f"{name}.attention_norm", h, x)
    _attention(emit, rows, f"{name}.attention", x, h, scale)
    if spec.branches == "sequential":
        x = emit.buffer("normed", rows, spec.width)
        emit.norm(rows, spec.norm, f"{name}.feedforward_norm", h, x)
    body = "shared_feedforward" if lent else f"{name}.feedforward"
    update = f"{name}.update"
    emit.feedforward(rows, spec.feedforward, body, x, h, scale=scale, update=update, rank=rank)


def _attention(emit: Emitter, rows: Rows, name: str, x: int, h: int, scale: float) -> None:
    """h += scale output(attention(x)), with a cache slot of its own."""
    spec, attention = emit.spec, emit.spec.attention
    heads, kv_heads, dim = attention.heads, spec.kv_heads, spec.head_dim
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
    keys, values = sizes[0], sizes[0] + sizes[1]
    ints: tuple[int, ...]
    qkv = emit.buffer("qkv", rows, sum(sizes))
    if f"{name}.qkv.weight" in emit.tensors:
        emit.linear(rows, f"{name}.qkv", x, qkv, attention.bias)
    else:
        matrices = emit.parts(name, "qkv", "qkv", sizes, spec.width)
        biases = emit.part_biases(name, "qkv", "qkv", sizes) if attention.bias else None
        emit.product(rows, x, qkv, matrices, biases)
    if attention.qk_norm:
        gained = Norm(kind="rms", eps=spec.norm.eps, gain=attention.qk_gain)
        if attention.qk_gain:
            for part, begin, count in (("query", 0, heads), ("key", keys, kv_heads)):
                gain = emit.vector(f"{name}.{part}_norm.weight", dim)
                ints = (0, dim, begin, count * dim)
                emit.op(Kind.NORM, rows, [qkv], [qkv], [gain, -1], ints, [gained.eps])
        else:
            ints = (0, dim, 0, values)
            emit.op(Kind.NORM, rows, [qkv], [qkv], [-1, -1], ints, [gained.eps])
    if spec.position.kind == "rope" and spec.rotary_dim:
        layout = int(spec.position.layout == "interleaved")
        ints = (0, heads + kv_heads, dim, spec.rotary_dim, layout)
        emit.op(Kind.ROTATE, rows, [qkv], [qkv], ints=ints)
    slot = emit.slot(rows)
    emit.op(Kind.STORE, rows, [qkv], ints=(slot, keys, values, kv_heads, dim))
    slopes = -1
    if spec.position.kind == "alibi":
        slopes = emit.constant("slopes", alibi_slopes(heads))
    y = emit.buffer("attended", rows, heads * dim)
    factor = {"1/sqrt(d)": dim**-0.5, "1/d": 1 / dim, "1": 1.0}[attention.scale]
    ints = (slot, 0, heads, kv_heads, dim, attention.window or 0)
    emit.op(Kind.ATTENTION, rows, [qkv], [y], [slopes], ints, [factor])
    bias = attention.bias if attention.output_bias is None else attention.output_bias
    emit.linear(rows, f"{name}.output", y, h, bias, add=True, scale=scale)


def _head(emit: Emitter, x: int) -> None:
    """The logits of the rows that are asked for."""
    spec, rows = emit.spec, Rows.WANTED
    hidden = emit.buffer("wanted", rows, spec.embedding_width)
    emit.op(Kind.SELECT, rows, [x], [hidden])
    emit.norm(rows, spec.norm, "norm", hidden, hidden)
    if isinstance(spec.input, SlotInput):
        emit.program.logits = slots.spell(emit, spec.input, hidden)
        return
    logits = emit.buffer("logits", rows, spec.vocab_size)
    scale = spec.scale.logits
    if spec.tie_embeddings:
        tied = emit.matrix("embedding.weight", spec.vocab_size, spec.embedding_width)
        emit.product(rows, hidden, logits, [tied], scale=scale)
    else:
        emit.linear(rows, "head", hidden, logits, spec.logit_bias, scale=scale)
    emit.program.logits = logits
