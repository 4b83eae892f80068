"""The decoder: embedding, blocks, norm, head, and the sharing between blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flyweight.model.ahead import Ahead
from flyweight.model.attention import Positions
from flyweight.model.block import Block
from flyweight.model.cache import Cache, Memory
from flyweight.model.encoder import Encoder
from flyweight.model.features import Embedding
from flyweight.model.feedforward import FeedForward
from flyweight.model.layers import Linear, Norm, dropped
from flyweight.model.patches import Patches
from flyweight.model.positions import positions_in_document
from flyweight.model.slots import Slots
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec, PatchInput, SlotInput
from flyweight.spec.position import LongRope


class Decoder(nn.Module):
    """Any model that a ModelSpec describes.

    ``hidden`` turns tokens (B, T) into final hidden states (B, T, E) in ``dtype``; ``logits``
    turns those into float32 logits (B, T, V). Weights stay in their own precision.

    With an encoder, ``encode`` reads the sources, and the ``memory`` that it returns goes into
    every call: ``decoder(tokens_BT, memory=decoder.encode(source_BS))``.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec)
        self.positions = Positions(spec)
        self.encoder = Encoder(spec, spec.encoder.depth) if spec.encoder else None
        lent, cross = spec.shared_layers, spec.encoder is not None
        self.blocks = nn.ModuleList(Block(spec, i in lent, cross) for i in range(spec.depth))
        self.shared_feedforward = FeedForward(spec.feedforward, spec.width) if lent else None
        patches = spec.input if isinstance(spec.input, PatchInput) else None
        self.patches = Patches(spec, patches) if patches else None
        self.slots = Slots(spec, spec.input) if isinstance(spec.input, SlotInput) else None
        self.norm = Norm(spec.norm, spec.embedding_width)
        headless = spec.tie_embeddings or self.slots is not None
        width, vocab = spec.embedding_width, spec.vocab_size
        self.head = None if headless else Linear(width, vocab, spec.logit_bias)
        self.ahead = Ahead(spec) if spec.ahead else None
        self.dropout: Tensor | None = None

    def drop(self, share: float) -> None:
        """From now on, while training, drop this share of every branch's output and of the first
        block's input."""
        # A tensor, so that compiled blocks serve every share.
        self.dropout = torch.tensor(share) if share else None

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        dtype: torch.dtype = torch.float32,
        memory: Memory | None = None,
    ) -> Tensor:
        """Logits of the next token at every position. (B, T, V), float32."""
        return self.logits(self.hidden(tokens_BT, documents_BT, cache, dtype, memory))

    def encode(
        self,
        source_BS: Tensor,
        real_BS: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Memory:
        """What the encoder makes of source tokens; ``real_BS`` is False where they are padding.

        A source of a padded batch comes out as it does alone. Each needs one token at least.
        """
        if self.encoder is None:
            raise FlyweightError("this model is a decoder alone: it has no encoder")
        x = self.embedding(source_BS, None, None, dtype)
        if self.spec.scale.embedding != 1.0:
            x = x * self.spec.scale.embedding
        mask = None
        if real_BS is not None:
            mask = torch.zeros_like(real_BS, dtype=dtype).masked_fill(~real_BS, float("-inf"))
            mask = mask[:, None, None, :]
        return Memory(self.encoder(x, real_BS), mask)

    def hidden(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        dtype: torch.dtype = torch.float32,
        memory: Memory | None = None,
        prefix_B: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states, normalised. ``cache`` (one sequence) is read and extended.

        ``memory`` is what an encoder-decoder answers; a cache brings its own. The first
        ``prefix_B`` positions of a row see each other, those behind them too, within a document.
        """
        memory = cache.memory if memory is None and cache is not None else memory
        if (memory is None) != (self.encoder is None):
            raise FlyweightError(
                "this model is an encoder-decoder: its decoder needs a source that was encoded"
                if memory is None
                else "this model is a decoder alone: it answers no encoded source"
            )
        known_BT, new = tokens_BT, slice(None)
        if cache is not None:
            assert tokens_BT.shape[0] == 1, "a cache holds one sequence"
            if self._turns_stale(cache, tokens_BT.shape[1]):
                whole = torch.tensor([cache.tokens], device=tokens_BT.device)
                cache.forget()
                both = torch.cat((whole, tokens_BT), dim=1)
                return self.hidden(both, documents_BT, cache, dtype)[:, whole.shape[1] :]
            new = slice(len(cache.tokens), None)
            cache.tokens += tokens_BT[0].tolist()
            known_BT = torch.tensor([cache.tokens], device=tokens_BT.device)
        if self.slots is not None:
            x = self.slots.embed(tokens_BT, dtype)
        else:
            ngrams, matches = self.embedding.features(known_BT, documents_BT)
            ngrams = None if ngrams is None else ngrams[:, new]
            matches = None if matches is None else matches[:, new]
            x = self.embedding(tokens_BT, ngrams, matches, dtype)
        if self.patches is not None:
            return self.norm(self._through_patches(x, known_BT, new, documents_BT, cache))
        if self.embedding.positions is not None:
            start = new.start or 0
            index = torch.arange(start, start + x.shape[1], device=x.device)
            if documents_BT is not None:
                index = positions_in_document(documents_BT)
            x = x + self.embedding.positions[index].to(dtype)
        if self.spec.scale.embedding != 1.0:
            x = x * self.spec.scale.embedding
        return self.norm(self.core(x, documents_BT, cache, memory, prefix_B))

    def further(
        self, hidden_BTD: Tensor, tokens_BT: Tensor, documents_BT: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What the cascade of ``ahead`` makes of final hidden states and the tokens they are of:
        for k = 1, 2, ... hidden states (B, T - k, D) that predict x_{t+k+1} through the head, and
        whether x_{t+k} is of position t's document (B, T - k).
        """
        assert self.ahead is not None
        scale = self.spec.scale.embedding

        def embed(tokens: Tensor) -> Tensor:
            x = self.embedding(tokens, None, None, hidden_BTD.dtype)
            return x if scale == 1.0 else x * scale

        cascade = self.ahead(hidden_BTD, tokens_BT, documents_BT, embed, self.positions, self.norm)
        yield from cascade

    def core(
        self,
        h: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
        prefix_B: Tensor | None = None,
    ) -> Tensor:
        """The blocks, each run as often as sharing says, each run with its own cache slot."""
        past = 0 if cache is None else cache.length
        reach = 0 if cache is None else cache.reach
        scene = self.positions.scene(
            h.shape[1], past, documents_BT, h.dtype, h.device, reach, prefix_B
        )
        scene.memory = memory
        if self.training and self.dropout is not None:
            scene.dropout = self.dropout.to(h.device)
            h = dropped(h, scene.dropout)
        repeat = self.spec.share.repeat
        for i, block in enumerate(self.blocks):
            for r in range(repeat):
                slot = None if cache is None else cache.slots[i * repeat + r]
                h = block(h, scene, self.shared_feedforward, slot)
        return h

    def _through_patches(
        self,
        x_BTE: Tensor,
        known_BT: Tensor,
        new: slice,
        documents_BT: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        patches = self.patches
        assert patches is not None
        x = patches.norm(x_BTE)
        for block in patches.front:
            x = block(x)
        end_BT, offset_BT = patches.cut(known_BT)
        end_BT, offset_BT = end_BT[:, new], offset_BT[:, new]
        pooled_from, carried = x, 0
        if cache is not None and cache.open_patch_1ND is not None:
            carried = cache.open_patch_1ND.shape[1]
            pooled_from = torch.cat((cache.open_patch_1ND, x), dim=1)
            end_BT = torch.cat((end_BT.new_zeros(1, carried), end_BT), dim=1)
        tokens_BT = known_BT[:, known_BT.shape[1] - end_BT.shape[1] :]
        core, complete_BT = patches.pool(pooled_from, end_BT, tokens_BT)
        core_documents = None
        if documents_BT is not None:
            core_documents = patches.at_end(documents_BT, end_BT, core.shape[1])
        if core.shape[1]:
            core = self.core(core, core_documents, cache)
        before = None if cache is None else cache.core_output_11D
        out = patches.spread(core, complete_BT, before)[:, carried:]
        if cache is not None:
            if core.shape[1]:
                cache.core_output_11D = core[:, -1:]
            ended = end_BT[0].nonzero()
            begin = int(ended[-1]) + 1 if len(ended) else 0
            cache.open_patch_1ND = pooled_from[:, begin:]
        h = x + out + patches.offset[offset_BT].to(x.dtype)
        for block in patches.decoder:
            h = block(h)
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., V) from hidden states (..., E)."""
        if self.slots is not None:
            flat = self.slots.token_logits(hidden.reshape(-1, hidden.shape[-1]))
            return flat.view(*hidden.shape[:-1], -1)
        if self.head is None:
            assert self.embedding.weight is not None
            logits = nn.functional.linear(hidden, self.embedding.weight.to(hidden.dtype))
        else:
            logits = self.head(hidden)
        scale = self.spec.scale.logits
        return logits.float() if scale == 1.0 else logits.float() * scale

    def new_cache(self, reach: int = 0, memory: Memory | None = None) -> Cache:
        """An empty cache. ``reach``: the length that the sequence will come to, where known.

        ``memory``: the one source that an encoder-decoder answers; its keys and values are
        computed once.

        It matters where scaling depends on the length (``spec.position.original``). LongRoPE's
        keys change once, when the sequence outgrows the original context: the cache is then
        computed anew from its tokens, at the cost of one forward pass, unless ``reach`` says from
        the beginning that the long factors serve. Dynamic NTK and interpolated ALiBi change with
        every position; keys and values stay as they were computed, as in the published code, so
        that decoding equals the full forward pass of ``reach`` positions only when that is given.
        """
        return Cache(self.spec.uses, reach, memory)

    def _turns_stale(self, cache: Cache, new: int) -> bool:
        """Whether ``new`` more tokens switch LongRoPE's factors under the keys of a cache."""
        scaling, past = self.spec.position.scaling, len(cache.tokens)
        if not isinstance(scaling, LongRope):
            return False
        before = max(past, cache.reach)
        return past > 0 and before <= scaling.original < past + new
