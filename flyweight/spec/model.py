"""What a model is: shapes, positions, sharing and scalings, without a line of torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from flyweight.spec.position import (
    DynamicScaling,
    LongRope,
    Position,
    longrope_gain,
)
from flyweight.spec.reading import Count, Positive, PositiveFloat, Within
from flyweight.spec.table import Table


class Norm(Table):
    """Normalisation before each branch and before the head."""

    kind: Literal["rms", "layer"] = "rms"
    eps: PositiveFloat = 1e-5
    # A gain vector per norm; quickstart's models leave it out, the published ones have it.
    gain: bool = True
    bias: bool = False

    def _check(self) -> None:
        if self.bias and not (self.kind == "layer" and self.gain):
            raise ValueError("bias needs kind = 'layer' with gain = true")


class Attention(Table):
    """Grouped-query attention (arXiv:2305.13245); kv_heads == heads is multi-head attention."""

    heads: Positive
    kv_heads: Positive | None = None
    head_dim: Positive | None = None
    bias: bool = False
    output_bias: bool | None = None
    # Scores are multiplied by 1/sqrt(head_dim), by 1/head_dim (muP, arXiv:2203.03466), or by 1
    # (T5, whose queries start smaller instead).
    scale: Literal["1/sqrt(d)", "1/d", "1"] = "1/sqrt(d)"
    # Sliding window (arXiv:2310.06825): position i sees the `window` positions up to itself.
    window: Positive | None = None
    # RMS-normalised queries and keys (arXiv:2302.05442), each with a gain per dimension of a head
    # or without (Qwen3 has it).
    qk_norm: bool = False
    qk_gain: bool = False

    def _check(self) -> None:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}")
        if self.qk_gain and not self.qk_norm:
            raise ValueError("qk_gain belongs to qk_norm = true")


class FeedForward(Table):
    """SwiGLU and GEGLU (arXiv:2002.05202), GELU, ReLU, or squared ReLU (arXiv:2109.08668).

    "gelu" is the tanh form of GPT-2, "gelu-exact" the one by the error function; "geglu" gates
    with the tanh form.
    """

    kind: Literal["swiglu", "geglu", "gelu", "gelu-exact", "relu", "relu2"] = "swiglu"
    hidden: Positive
    bias: bool = False

    @property
    def gated(self) -> bool:
        """Whether a second matrix, the gate, goes through the non-linearity."""
        return self.kind in ("swiglu", "geglu")


class Encoder(Table):
    """Makes the model an encoder-decoder (arXiv:1706.03762), as T5 (arXiv:1910.10683).

    The encoder reads a source with ``depth`` blocks of the decoder's shape, each position seeing
    all others; it has the decoder's embeddings, and a position table and a last norm of its own.
    Every block of the decoder then attends to its output, between attention to what the decoder
    itself has written and the feed-forward. ``start`` is the token that the decoder begins with.
    """

    depth: Positive
    start: Count = 0


class Share(Table):
    """Which weights are one body used many times.

    ``feedforward = "all"``: one feed-forward for every layer (MobiLlama, arXiv:2402.16840).
    ``feedforward = "interior"``: one for all but the first and last ``ends`` layers, each use with
    its own low-rank update of ``lora_rank`` per matrix (Super Tiny Language Models,
    arXiv:2405.14159).
    ``block = "adjacent"``: each block runs ``repeat`` times in a row (MobileLLM, arXiv:2402.14905).
    """

    feedforward: Literal["none", "all", "interior"] = "none"
    ends: Positive = 1
    lora_rank: Count = 0
    block: Literal["none", "adjacent"] = "none"
    repeat: Positive = 1

    def _check(self) -> None:
        if self.lora_rank and self.feedforward != "interior":
            raise ValueError("lora_rank belongs to feedforward = 'interior'")
        if self.ends != 1 and self.feedforward != "interior":
            raise ValueError("ends belongs to feedforward = 'interior'")
        if (self.repeat > 1) != (self.block == "adjacent"):
            raise ValueError("block = 'adjacent' goes with repeat of 2 or more, and only then")


class Scale(Table):
    """Multipliers of the forward pass (muP and MiniCPM): embeddings (learned positions among
    them), residual branches, logits."""

    embedding: PositiveFloat = 1.0
    residual: PositiveFloat = 1.0
    logits: PositiveFloat = 1.0


class NGrams(Table):
    """Hashed n-gram embeddings: the last n tokens are hashed to a row of a table, per order n.

    The rows of all orders (each ``dim`` wide) are concatenated, projected to the width of the
    token embedding and added to it. Byte n-grams as in BLT (arXiv:2412.09871, eq. 3 and 4).

    ``dropout``: the share of training's tokens whose longer n-grams are hidden, from a random
    order on, as those of unseen text are unknown: without it a table knows by heart what it
    sees twice.
    """

    orders: tuple[Annotated[int, Within(ge=2, le=32)], ...] = (2, 3, 4, 5, 6)
    rows: Positive = 32_768
    dim: Positive = 64
    dropout: Annotated[float, Within(ge=0, lt=1)] = 0.0

    def _check(self) -> None:
        if not self.orders or len(set(self.orders)) != len(self.orders):
            raise ValueError(f"orders must be distinct and not empty (got {list(self.orders)})")


class Matches(Table):
    """Embeddings of what followed the last time: a match model (as in PAQ) as an input feature.

    For each length m, the token that followed the most recent earlier occurrence of the last m
    tokens within the same document and context is embedded and added to the token's embedding.
    """

    lengths: tuple[Annotated[int, Within(ge=1, le=64)], ...] = (4, 6, 12)

    def _check(self) -> None:
        if not self.lengths or len(set(self.lengths)) != len(self.lengths):
            raise ValueError(f"lengths must be distinct and not empty (got {list(self.lengths)})")


class TokenInput(Table):
    """One embedding row per token: bytes, BPE, unigram."""

    kind: Literal["tokens"] = "tokens"


class PatchInput(Table):
    """Bytes pooled into patches: a front, the core on patches, and a causal byte decoder.

    ``patch``: "fixed" cuts every ``size`` bytes; "word" ends a patch after the first byte that
    is no letter or digit following one that is, after the first newline of a run, and at ``size``
    bytes. ``width`` is that of the byte-level parts; the core has the model's own.
    """

    kind: Literal["patches"] = "patches"
    patch: Literal["fixed", "word"] = "word"
    size: Annotated[int, Within(ge=2, le=64)] = 16
    width: Positive = 192
    front_depth: Count = 0
    decoder_depth: Count = 2
    hidden: Positive = 384


class SlotInput(Table):
    """Super Tiny Language Models' byte input (arXiv:2405.14159): a tokenizer's token is a patch.

    Each token is spelled in ``slots`` byte slots, embedded by ``front_depth`` bidirectional
    blocks at ``width``, averaged over its bytes into one vector; the decoder predicts all slots
    of the next token in parallel with ``decoder_depth`` bidirectional blocks. ``reconstruction``
    weighs the auxiliary loss that spells a token out of its own pooled vector.

    ``front_widths``: the paper's front instead, a block for each, whose feed-forward leads to the
    next width without a residual, and is wider as its input is (``hidden`` at ``width``).
    """

    kind: Literal["slots"] = "slots"
    slots: Annotated[int, Within(ge=2, le=64)] = 12
    width: Positive = 128
    hidden: Positive = 512
    heads: Positive = 8
    front_depth: Count = 4
    front_widths: tuple[Positive, ...] = ()
    decoder_depth: Count = 7
    reconstruction: Annotated[float, Within(ge=0)] = 1.0

    def _check(self) -> None:
        odd = [w for w in (self.width, *self.front_widths[:-1]) if w % self.heads]
        if odd:
            raise ValueError(f"a width of {odd[0]} is no multiple of heads = {self.heads}")
        if self.front_widths and self.front_depth != len(self.front_widths):
            raise ValueError(
                f"front_depth = {self.front_depth}, but front_widths has"
                f" {len(self.front_widths)} entries"
            )


Input = TokenInput | PatchInput | SlotInput


class Init(Table):
    """How weights start.

    "normal": every matrix N(0, std²), the branches' output matrices divided by sqrt(2 L) (GPT-2).
    "zero-outputs": N(0, 1/(2 fan_in)), the branches' output matrices and the head zero, so that
    every block starts as the identity (as in the Muon speed runs and muP's zero read-out).
    "mup": the maximal-update parametrisation (arXiv:2203.03466). With m = width / base_width, the
    blocks' matrices start from N(0, std²/m), all else as in "normal", and AdamW moves those
    matrices at 1/m of its rate. Outputs are divided by sqrt(2 L) as in BTLM (arXiv:2309.11568),
    unless scale.residual does that part (MiniCPM, arXiv:2404.06395).

    ``truncate``: no number lies beyond so many deviations (BTLM: 2); it is drawn again.
    """

    kind: Literal["normal", "zero-outputs", "mup"] = "normal"
    std: PositiveFloat = 0.02
    base_width: Positive | None = None
    truncate: PositiveFloat | None = None

    def _check(self) -> None:
        if (self.kind == "mup") != (self.base_width is not None):
            raise ValueError("base_width goes with kind = 'mup', and only with it")


class Mup(Table):
    """What a run's ``[model] mup`` stands for: a width's scalings, from those found at another.

    With m = width / base_width and L blocks: ``scale.embedding`` is ``embedding``,
    ``scale.logits`` is ``logits`` / m, ``scale.residual`` is ``residual`` / sqrt(L) where it is
    set, and ``init`` has the kind "mup", this ``std`` and this ``truncate``.
    """

    base_width: Positive
    std: PositiveFloat = 0.02
    embedding: PositiveFloat = 1.0
    logits: PositiveFloat = 1.0
    residual: PositiveFloat | None = None
    truncate: PositiveFloat | None = None

    def tables(self, width: int, uses: int) -> dict[str, dict[str, Any]]:
        """``scale`` and ``init`` of a model of this width, with ``uses`` of blocks per token."""
        residual = 1.0 if self.residual is None else self.residual / math.sqrt(uses)
        logits = self.logits * self.base_width / width
        init = {"kind": "mup", "std": self.std, "base_width": self.base_width}
        return {
            "scale": {"embedding": self.embedding, "residual": residual, "logits": logits},
            "init": init if self.truncate is None else {**init, "truncate": self.truncate},
        }


class ModelSpec(Table):
    """A decoder, whole, or an ``encoder`` with it. Widths in features, context in tokens (bytes for
    byte models).
    """

    vocab_size: Positive
    width: Positive
    depth: Positive
    context: Positive
    norm: Norm = Norm()
    position: Position = Position()
    attention: Attention
    feedforward: FeedForward
    encoder: Encoder | None = None
    share: Share = Share()
    scale: Scale = Scale()
    input: Input = TokenInput()
    ngrams: NGrams | None = None
    matches: Matches | None = None
    # "parallel": attention and feed-forward of a block read one norm's output (GPT-J, CodeGen).
    branches: Literal["sequential", "parallel"] = "sequential"
    tie_embeddings: bool = False
    # A bias per token on the head.
    logit_bias: bool = False
    # Modules that predict the tokens after the next, in a cascade (VITA-Audio's MCTP,
    # arXiv:2505.03739). They are trained along; the model runs without them.
    ahead: Annotated[int, Within(ge=0, le=8)] = 0
    init: Init = Init()

    def _check(self) -> None:
        if self.attention.head_dim is None and self.width % self.attention.heads:
            raise ValueError(
                f"width = {self.width} is no multiple of attention.heads = {self.attention.heads};"
                " set attention.head_dim or change one of them"
            )
        if self.position.kind == "rope" and self.rotary_dim % 2:
            raise ValueError(f"RoPE turns pairs of dimensions; {self.rotary_dim} of them is odd")
        if self.share.feedforward == "interior" and self.depth <= 2 * self.share.ends:
            least = 2 * self.share.ends + 1
            raise ValueError(f"share.feedforward = 'interior' needs a depth of {least} or more")
        if self.init.kind == "mup" and self.input.kind != "tokens":
            raise ValueError(
                f"init.kind = 'mup' does not apply to input.kind = '{self.input.kind}', whose"
                " byte-level parts do not grow with the width; take 'normal' or 'zero-outputs'"
            )
        if self.logit_bias and self.tie_embeddings:
            raise ValueError("logit_bias needs a head of its own: tie_embeddings = false")
        if self.ahead and (self.input.kind != "tokens" or self.encoder is not None):
            raise ValueError("ahead applies to decoders with input.kind = 'tokens'; leave it out")
        self._check_scaling()
        self._check_encoder()
        if self.input.kind == "patches" and self.vocab_size < 258:
            raise ValueError("a patch model reads bytes: vocab_size must be 258 (256, pad, eot)")
        if self.input.kind == "patches":
            if self.position.kind == "learned":
                raise ValueError(
                    "position.kind = 'learned' does not apply to input.kind = 'patches';"
                    " take 'rope', 'alibi' or 'none'"
                )
            if self.scale.embedding != 1.0:
                raise ValueError(
                    "scale.embedding does not apply to input.kind = 'patches': the bytes'"
                    " embeddings are normalised; leave it out"
                )
        if self.input.kind == "slots":
            unused = [k for k in ("ngrams", "matches") if getattr(self, k) is not None]
            unused += [k for k in ("tie_embeddings", "logit_bias") if getattr(self, k)]
            if unused:
                raise ValueError(f"{unused[0]} does not apply to input.kind = 'slots'")
            if self.input.front_widths and self.input.front_widths[-1] != self.width:
                raise ValueError(
                    f"input.front_widths ends with {self.input.front_widths[-1]}, which must be"
                    f" width = {self.width}"
                )

    def _check_encoder(self) -> None:
        if self.encoder is None:
            return
        if self.position.kind != "relative":
            raise ValueError(
                f"position.kind = '{self.position.kind}' does not apply to an encoder-decoder; it"
                " takes 'relative'"
            )
        if self.encoder.start >= self.vocab_size:
            raise ValueError(
                f"encoder.start = {self.encoder.start} is no token of vocab_size ="
                f" {self.vocab_size}"
            )
        settings = {
            "input": self.input == TokenInput(),
            "ngrams": self.ngrams is None,
            "matches": self.matches is None,
            "share": self.share == Share(),
            "attention.window": self.attention.window is None,
            "branches": self.branches == "sequential",
        }
        for name, left_out in settings.items():
            if not left_out:
                raise ValueError(f"{name} does not apply to an encoder-decoder; leave it out")

    def _check_scaling(self) -> None:
        scaling, half = self.position.scaling, self.rotary_dim // 2
        if isinstance(scaling, LongRope):
            for name in ("short", "long"):
                factors = getattr(scaling, name)
                if factors is not None and len(factors) != half:
                    raise ValueError(
                        f"position.scaling.{name} has {len(factors)} factors; half of the"
                        f" {2 * half} rotating dimensions are wanted"
                    )
        if isinstance(scaling, DynamicScaling) and self.rotary_dim < 4:
            raise ValueError(
                "position.scaling.kind = 'dynamic' needs 4 rotating dimensions or more"
            )
        if self.position.original is not None and self.input.kind == "patches":
            raise ValueError(
                "position.scaling.original counts tokens; it does not apply to"
                " input.kind = 'patches', whose positions are patches"
            )

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.width // self.attention.heads

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads or self.attention.heads

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.position.fraction)

    @property
    def rope_gain(self) -> float:
        """What rotated queries and keys are multiplied by (LongRoPE's attention factor)."""
        scaling = self.position.scaling
        if not isinstance(scaling, LongRope):
            return 1.0
        if scaling.attention is not None:
            return scaling.attention
        return longrope_gain(self.context / scaling.original, scaling.original)

    @property
    def width_multiplier(self) -> float:
        """muP's m: how many times as wide as the model whose settings these are."""
        return self.width / self.init.base_width if self.init.base_width else 1.0

    @property
    def shared_layers(self) -> range:
        """The layers that the shared feed-forward serves."""
        ends = {"none": self.depth, "all": 0, "interior": self.share.ends}[self.share.feedforward]
        return range(ends, max(ends, self.depth - ends))

    @property
    def uses(self) -> int:
        """Blocks executed per token: depth, times repeat where blocks are shared. One cache
        slot each."""
        return self.depth * self.share.repeat

    @property
    def embedding_width(self) -> int:
        """Width of the token embedding and of the head's input."""
        return self.input.width if isinstance(self.input, PatchInput) else self.width
