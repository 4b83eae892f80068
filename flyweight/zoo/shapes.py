"""The tensors of a model, by name and shape, and how many parameters and bytes they come to."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from flyweight.spec.model import ModelSpec, PatchInput, SlotInput


class Tensor(NamedTuple):
    """A stored tensor: the decoder's name for it, its shape, and its uses in one forward pass.

    ``uses`` counts the blocks that read the same body. ``lookup``: a table of rows or the head,
    what the field leaves out of "parameters without embeddings".
    """

    name: str
    shape: tuple[int, ...]
    uses: int = 1
    lookup: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)


class Counts(NamedTuple):
    """Parameters of a model.

    ``unique``: what is stored, a shared body counted once (a tied head adds nothing).
    ``total``: as if every use of a shared body were one of its own, what a format that knows no
    sharing stores (a tied head still adds nothing).
    ``embeddings``: the part of ``unique`` in tables of rows and in the head.
    """

    unique: int
    total: int
    embeddings: int

    @property
    def without_embeddings(self) -> int:
        return self.unique - self.embeddings


# Bytes a weight: a block of 32 with one half-precision scale is 34 bytes at 8 bits, 18 at 4.
_BYTES = {"f32": 4.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
FORMATS = tuple(_BYTES)
_BLOCK = 32
# What a slot holds: 256 bytes, a pad, and <eot>.
SLOT_SYMBOLS = 258


def parameters(spec: ModelSpec) -> Counts:
    """How many parameters ``spec`` describes."""
    found = list(tensors(spec))
    return Counts(
        unique=sum(tensor.size for tensor in found),
        total=sum(tensor.size * tensor.uses for tensor in found),
        embeddings=sum(tensor.size for tensor in found if tensor.lookup),
    )


def bytes_per_format(spec: ModelSpec) -> dict[str, int]:
    """Bytes of the weights in each format, each shared body stored once.

    Matrices take the format; vectors stay float32; a matrix whose rows are no multiple of a
    quantised format's block of 32 stays in 16 bits.
    """
    sizes = dict.fromkeys(FORMATS, 0.0)
    for tensor in tensors(spec):
        for name in FORMATS:
            per = _BYTES[name]
            if len(tensor.shape) < 2:
                per = _BYTES["f32"]
            elif tensor.shape[-1] % _BLOCK:
                per = max(per, _BYTES["bf16"])
            sizes[name] += tensor.size * per
    return {name: round(size) for name, size in sizes.items()}


def cache_bytes_per_token(spec: ModelSpec) -> int:
    """Bytes of keys and values that a token leaves in 16 bits, one slot per use of a block.

    Models that pool bytes leave as much for each patch. In an encoder-decoder a token that the
    decoder wrote leaves them, and every token of the source leaves as much again.
    """
    return spec.uses * 2 * spec.kv_heads * spec.head_dim * 2


def tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """Every tensor of the decoder that ``spec`` describes, shared ones once.

    Matrices are (outputs, inputs), as torch's ``Linear`` keeps them.
    """
    yield from _embedding(spec)
    if spec.encoder is not None:
        for tensor in _encoder(spec, spec.encoder.depth):
            yield tensor._replace(name=f"encoder.{tensor.name}")
    yield from _position_bias(spec)
    shared = spec.shared_layers
    for i in range(spec.depth):
        for tensor in _block(spec, i in shared, cross=spec.encoder is not None):
            yield tensor._replace(name=f"blocks.{i}.{tensor.name}", uses=spec.share.repeat)
    if shared:
        uses = len(shared) * spec.share.repeat
        gated, hidden, bias = _feedforward(spec)
        for tensor in _feedforward_tensors(gated, spec.width, hidden, bias):
            yield tensor._replace(name=f"shared_feedforward.{tensor.name}", uses=uses)
    if isinstance(spec.input, PatchInput):
        yield from _patches(spec, spec.input)
    if isinstance(spec.input, SlotInput):
        yield from _slots(spec, spec.input)
    yield from _norm(spec, "norm", spec.embedding_width)
    if not spec.tie_embeddings and not isinstance(spec.input, SlotInput):
        yield Tensor("head.weight", (spec.vocab_size, spec.embedding_width), lookup=True)
        if spec.logit_bias:
            yield Tensor("head.bias", (spec.vocab_size,), lookup=True)
    for k in range(spec.ahead):
        for tensor in _ahead(spec):
            yield tensor._replace(name=f"ahead.steps.{k}.{tensor.name}")


def _ahead(spec: ModelSpec) -> Iterator[Tensor]:
    """One module of the cascade that predicts further tokens."""
    for name in ("embedding_norm", "hidden_norm"):
        yield from _norm(spec, name, spec.width)
    yield from _linear("join", 2 * spec.width, spec.width)
    for tensor in _block(spec, shared=False, cross=False):
        yield tensor._replace(name=f"block.{tensor.name}")


def _embedding(spec: ModelSpec) -> Iterator[Tensor]:
    width = spec.embedding_width
    if not isinstance(spec.input, SlotInput):
        yield Tensor("embedding.weight", (spec.vocab_size, width), lookup=True)
    if spec.ngrams:
        orders, dim = len(spec.ngrams.orders), spec.ngrams.dim
        table = (orders * spec.ngrams.rows, dim)
        yield Tensor("embedding.ngrams.table", table, lookup=True)
        yield Tensor("embedding.ngrams.project.weight", (width, orders * dim))
    if spec.matches:
        rows = len(spec.matches.lengths) * (spec.vocab_size + 1)
        yield Tensor("embedding.matches", (rows, width), lookup=True)
    if spec.position.kind == "learned":
        yield Tensor("embedding.positions", (spec.context, spec.width), lookup=True)


def _position_bias(spec: ModelSpec) -> Iterator[Tensor]:
    if spec.position.kind == "relative":
        yield Tensor("positions.bias", (spec.position.buckets, spec.attention.heads))


def _encoder(spec: ModelSpec, depth: int) -> Iterator[Tensor]:
    yield from _position_bias(spec)
    for i in range(depth):
        for tensor in _block(spec, shared=False, cross=False):
            yield tensor._replace(name=f"blocks.{i}.{tensor.name}")
    yield from _norm(spec, "norm", spec.width)


def _block(spec: ModelSpec, shared: bool, cross: bool) -> Iterator[Tensor]:
    width = spec.width
    gated, hidden, feedforward_bias = _feedforward(spec)
    for name in ("attention", "cross_attention") if cross else ("attention",):
        yield from _norm(spec, f"{name}_norm", width)
        yield from _attention(spec, name)
    if spec.branches == "sequential":
        yield from _norm(spec, "feedforward_norm", width)
    if not shared:
        for tensor in _feedforward_tensors(gated, width, hidden, feedforward_bias):
            yield tensor._replace(name=f"feedforward.{tensor.name}")
    elif rank := spec.share.lora_rank:
        for name in ("gate", "up", "down") if gated else ("up", "down"):
            inputs, outputs = (hidden, width) if name == "down" else (width, hidden)
            yield from _linear(f"update.{name}.down", inputs, rank)
            yield from _linear(f"update.{name}.up", rank, outputs)


def _attention(spec: ModelSpec, name: str) -> Iterator[Tensor]:
    bias = spec.attention.bias
    queries, keys = spec.attention.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    output_bias = bias if spec.attention.output_bias is None else spec.attention.output_bias
    yield from _linear(f"{name}.qkv", spec.width, queries + 2 * keys, bias)
    yield from _linear(f"{name}.output", queries, spec.width, output_bias)
    if spec.attention.qk_gain:
        yield Tensor(f"{name}.query_norm.weight", (spec.head_dim,))
        yield Tensor(f"{name}.key_norm.weight", (spec.head_dim,))


def _feedforward(spec: ModelSpec) -> tuple[bool, int, bool]:
    return spec.feedforward.gated, spec.feedforward.hidden, spec.feedforward.bias


def _feedforward_tensors(gated: bool, width: int, hidden: int, bias: bool) -> Iterator[Tensor]:
    if gated:
        yield from _linear("gate_up", width, 2 * hidden, bias)
    else:
        yield from _linear("up", width, hidden, bias)
    yield from _linear("down", hidden, width, bias)


def _patches(spec: ModelSpec, patches: PatchInput) -> Iterator[Tensor]:
    width = patches.width
    yield from _norm(spec, "patches.norm", width)
    yield from _linear("patches.to_core", 2 * width, spec.width)
    yield from _norm(spec, "patches.core_norm", spec.width)
    yield from _linear("patches.from_core", spec.width, width)
    yield Tensor("patches.offset", (patches.size, width), lookup=True)
    for part, depth in (("front", patches.front_depth), ("decoder", patches.decoder_depth)):
        for i in range(depth):
            yield from _norm(spec, f"patches.{part}.{i}.norm", width)
            gated = spec.feedforward.gated
            for tensor in _feedforward_tensors(gated, width, patches.hidden, False):
                yield tensor._replace(name=f"patches.{part}.{i}.feedforward.{tensor.name}")


def _slots(spec: ModelSpec, slots: SlotInput) -> Iterator[Tensor]:
    width = slots.width
    yield Tensor("slots.embedding", (SLOT_SYMBOLS, width), lookup=True)
    yield Tensor("slots.front_offset", (slots.slots, width), lookup=True)
    fronts = slots.front_widths or (width,) * slots.front_depth
    for i, (inputs, outputs) in enumerate(zip((width, *fronts), fronts, strict=False)):
        yield from _slot_block(spec, slots, f"slots.front.{i}", inputs, outputs)
    if not slots.front_widths:
        yield from _linear("slots.to_core", width, spec.width)
    yield from _linear("slots.from_core", spec.width, slots.slots * width)
    yield Tensor("slots.back_offset", (slots.slots, width), lookup=True)
    for i in range(slots.decoder_depth):
        yield from _slot_block(spec, slots, f"slots.back.{i}", width, width)
    yield from _norm(spec, "slots.back_norm", width)
    yield Tensor("slots.head.weight", (SLOT_SYMBOLS, width), lookup=True)


def _slot_block(
    spec: ModelSpec, slots: SlotInput, name: str, width: int, output: int
) -> Iterator[Tensor]:
    hidden = slots.hidden * width // slots.width
    yield from _norm(spec, f"{name}.attention_norm", width)
    yield from _linear(f"{name}.attention.qkv", width, 3 * width)
    yield from _linear(f"{name}.attention.output", width, width)
    yield from _norm(spec, f"{name}.feedforward_norm", width)
    yield from _linear(f"{name}.feedforward.up", width, hidden)
    yield from _linear(f"{name}.feedforward.down", hidden, output)


def _norm(spec: ModelSpec, name: str, width: int) -> Iterator[Tensor]:
    if spec.norm.gain:
        yield Tensor(f"{name}.weight", (width,))
    if spec.norm.bias:
        yield Tensor(f"{name}.bias", (width,))


def _linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (outputs, inputs))
    if bias:
        yield Tensor(f"{name}.bias", (outputs,))
