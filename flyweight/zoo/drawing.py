"""A model drawn as text, from the tokens down to the logits, block by block.

The line on the left is the stream of hidden states; what stands right of a bend is a branch, added
to the stream where it comes back. A double border is one body of weights that is used many times.
"""

from __future__ import annotations

from itertools import groupby

from flyweight.spec.model import ModelSpec, PatchInput, SlotInput
from flyweight.spec.position import DynamicScaling, LinearScaling, Llama3Scaling, LongRope
from flyweight.zoo.shapes import (
    bytes_per_format,
    cache_bytes_per_token,
    parameters,
    tensors,
)

WIDTH = 96
# For terminals that cannot show the others.
ASCII = str.maketrans(dict(zip("│┊─╭╮╰╯├┼⊕▼║═╔╗╚╝×→·–", "|:-..''|++v|=####x>--", strict=True)))
_SINGLE, _DOUBLE = tuple("╭─╮│╰╯"), tuple("╔═╗║╚╝")
_FEEDFORWARDS = {
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
    "gelu": "GELU",
    "gelu-exact": "GELU",
    "relu": "ReLU",
    "relu2": "squared ReLU",
}
_SCORES = {"1/sqrt(d)": "q·k / sqrt(d)", "1/d": "q·k / d", "1": "q·k"}


def draw(name: str, paper: str, spec: ModelSpec) -> str:
    """The architecture, its totals and memory; no line is wider than ``WIDTH``."""
    return "\n".join([f"{name} · {paper}", "", *_Drawing(spec).lines, "", *_totals(spec)])


class _Drawing:
    """The lines of one drawing. What is drawn is taken from the list of the spec's tensors."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.lines: list[str] = []
        self.sizes = {tensor.name: tensor.size for tensor in tensors(spec)}
        # Borders around what is drawn at the moment: their left and right edges.
        self.left, self.right = "", ""
        # What the names of the stack's tensors begin with.
        self.stack = ""
        if spec.encoder is not None:
            self._encoder(spec.encoder.depth)
        self._input()
        self._core()
        self._output()
        assert not self.sizes, f"not drawn: {sorted(self.sizes)}"

    def _take(self, name: str, layers: range | None = None) -> int:
        """The parameters whose names begin so; of one layer, where all of ``layers`` are alike."""
        prefixes = [f"{self.stack}{name}"]
        if layers is not None:
            prefixes = [f"{self.stack}blocks.{i}.{name}" for i in layers]
        counts = []
        for prefix in prefixes:
            found = [n for n in self.sizes if n == prefix or n.startswith(prefix + ".")]
            counts.append(sum(self.sizes.pop(n) for n in found))
        assert len(set(counts)) == 1, f"{name} differs between the layers {layers}"
        return counts[0]

    def _row(self, text: str = "", shape: str = "", count: int = 0) -> None:
        inner = WIDTH - len(self.left) - len(self.right)
        end = f"{shape:<22}{amount(count) if count else '':>8}" if shape or count else ""
        room = inner - len(end) - 1
        text = text if len(text) <= room else text[: room - 1] + "…"
        self.lines.append(f"{self.left}{text:<{inner - len(end)}}{end}{self.right}".rstrip())

    def _open(self, title: str, rail: str = "┼", shared: bool = False, inset: str = "") -> None:
        """Begin a box; ``rail`` is where the stream enters its border."""
        a, b, c, side, _, _ = _DOUBLE if shared else _SINGLE
        inner = WIDTH - len(self.left) - len(self.right) - len(inset)
        top = f"{a}{b * 3}{rail or b}{b} {title} "
        self.lines.append(f"{self.left}{inset}{top}{b * (inner - len(top) - 1)}{c}{self.right}")
        self.left, self.right = self.left + inset + side + " ", " " + side + self.right

    def _close(self, rail: str = "┼", shared: bool = False, inset: int = 0) -> None:
        _, b, _, _, e, f = _DOUBLE if shared else _SINGLE
        self.left, self.right = self.left[:-2], self.right[2:]
        outer = self.left[: len(self.left) - inset] if inset else self.left
        inner = WIDTH - len(self.left) - len(self.right)
        bottom = f"{e}{b * 3}{rail or b}{b * (inner - 6)}{f}"
        self.lines.append(f"{self.left}{bottom}{self.right}".rstrip())
        self.left = outer

    def _stream(self, text: str = "", shape: str = "", count: int = 0) -> None:
        pad = "    " if not self.left else "  "
        self._row(f"{pad}│ {text}", shape, count)

    def _encoder(self, depth: int) -> None:
        spec = self.spec
        self._row(f"    tokens of the source, of {spec.vocab_size:,} kinds")
        self._stream()
        self._embedding()
        self.stack = "encoder."
        self._position_bias()
        self._stream()
        where = f"encoder blocks 1–{depth}" if depth > 1 else "encoder block 1"
        self._blocks(range(depth), False, where, None)
        self._stream()
        self._stream(self._norm(), f"{spec.width}", self._take("norm"))
        self._row("    ▼")
        self._row("    what every block of the decoder attends to")
        self._row()
        self.stack = ""

    def _embedding(self) -> None:
        spec = self.spec
        shape, count = f"{spec.vocab_size} × {spec.embedding_width}", self._take("embedding.weight")
        users = ["decoder's"] if spec.encoder is not None else []
        users += ["head"] if spec.tie_embeddings else []
        tied = f", the {' and '.join(users)} too" if users else ""
        self._stream(f"embedding{tied}{_times(spec.scale.embedding)}", shape, count)

    def _position_bias(self) -> None:
        position = self.spec.position
        if position.kind == "relative":
            shape = f"{position.buckets} × {self.spec.attention.heads}"
            text = f"relative positions, a bias a head for distances up to {position.max_distance}"
            self._stream(text, shape, self._take("positions.bias"))

    def _input(self) -> None:
        spec = self.spec
        unit = "bytes" if isinstance(spec.input, PatchInput) else "tokens"
        self._row(f"    {unit}, up to {spec.context:,} of {spec.vocab_size:,} kinds")
        self._stream()
        if isinstance(spec.input, SlotInput):
            self._slots_in(spec.input)
            return
        width = spec.embedding_width
        if spec.encoder is None:
            self._embedding()
        else:
            self._stream(f"embedding of the encoder{_times(spec.scale.embedding)}")
        if spec.ngrams:
            orders = ", ".join(map(str, spec.ngrams.orders))
            shape = f"{len(spec.ngrams.orders) * spec.ngrams.rows} × {spec.ngrams.dim}"
            count = self._take("embedding.ngrams.table")
            self._stream(f"+ hashed n-grams of {orders}", shape, count)
            shape = f"{len(spec.ngrams.orders) * spec.ngrams.dim} → {width}"
            self._stream("  projected", shape, self._take("embedding.ngrams.project"))
        if spec.matches:
            lengths = ", ".join(map(str, spec.matches.lengths))
            rows = len(spec.matches.lengths) * (spec.vocab_size + 1)
            count = self._take("embedding.matches")
            self._stream(f"+ what followed a match of {lengths}", f"{rows} × {width}", count)
        if spec.position.kind == "learned":
            count = self._take("embedding.positions")
            self._stream(
                f"+ learned positions{_times(spec.scale.embedding)}",
                f"{spec.context} × {spec.width}",
                count,
            )
        if isinstance(spec.input, PatchInput):
            self._patches_in(spec.input)

    def _patches_in(self, patches: PatchInput) -> None:
        if count := self._take("patches.norm"):
            self._stream(self._norm(), f"{patches.width}", count)
        self._byte_blocks("front", patches, patches.front_depth)
        ends = f"every {patches.size} bytes"
        if patches.patch == "word":
            ends = f"at words' ends, at most {patches.size} bytes"
        count = self._take("patches.to_core") + self._take("patches.core_norm")
        shape = f"{2 * patches.width} → {self.spec.width}"
        self._stream(f"pooled into patches, {ends}", shape, count)

    def _byte_blocks(self, part: str, patches: PatchInput, depth: int) -> None:
        if not depth:
            return
        counts = {self._take(f"patches.{part}.{i}") for i in range(depth)}
        kind = _FEEDFORWARDS[self.spec.feedforward.kind]
        shape = f"{patches.width} → {patches.hidden} →"
        text = f"{depth} feed-forward blocks on bytes, {kind}, each"
        self._stream(text, shape, counts.pop())
        assert not counts

    def _slots_in(self, slots: SlotInput) -> None:
        width = slots.width
        count = self._take("slots.embedding")
        self._stream(f"spelled in {slots.slots} bytes, each embedded", f"258 × {width}", count)
        self._stream(
            "+ place in the token", f"{slots.slots} × {width}", self._take("slots.front_offset")
        )
        fronts = slots.front_widths or (width,) * slots.front_depth
        for i, (inputs, outputs) in enumerate(zip((width, *fronts), fronts, strict=False)):
            hidden = slots.hidden * inputs // width
            text = f"block over a token's bytes, both ways, {slots.heads} heads"
            shape = f"{inputs} → {hidden} → {outputs}"
            self._stream(text, shape, self._take(f"slots.front.{i}"))
        if not slots.front_widths:
            shape, count = f"{width} → {self.spec.width}", self._take("slots.to_core")
            self._stream("averaged over the token's bytes", shape, count)
        else:
            self._stream("averaged over the token's bytes")
        if self.spec.position.kind == "learned":
            count = self._take("embedding.positions")
            shape = f"{self.spec.context} × {self.spec.width}"
            self._stream("+ learned positions", shape, count)

    def _core(self) -> None:
        spec = self.spec
        drawn: dict[bool, str] = {}
        self._position_bias()
        for lent, group in groupby(range(spec.depth), spec.shared_layers.__contains__):
            numbers = list(group)
            layers = range(numbers[0], numbers[-1] + 1)
            where = f"block {layers.stop}"
            if len(layers) > 1:
                where = f"blocks {layers.start + 1}–{layers.stop}"
            self._stream()
            self._blocks(layers, lent, where, drawn.get(lent))
            drawn[lent] = where
        self._stream()

    def _blocks(self, layers: range, lent: bool, where: str, alike: str | None) -> None:
        own = [n for n in self.sizes if n.startswith(f"{self.stack}blocks.{layers.start}.")]
        title = f"{where}, {amount(sum(self.sizes[n] for n in own))}"
        title += " each" if len(layers) > 1 else ""
        repeat = self.spec.share.repeat
        if repeat > 1:
            title += f", one body of weights, {repeat} uses in a row"
        self._open(f"{title}, like {alike}" if alike else title, shared=repeat > 1)
        if alike:
            for part in dict.fromkeys(n.split(".")[2] for n in own):
                self._take(part, layers)
        else:
            self._block(layers, lent)
        self._close(shared=repeat > 1)

    def _block(self, layers: range, lent: bool) -> None:
        spec = self.spec
        scale = _times(spec.scale.residual)
        self._row("  ├─╮")
        self._branch(self._norm(), f"{spec.width}", self._take("attention_norm", layers))
        if spec.branches == "parallel":
            self._branch("then side by side, added together:")
        self._attention(layers)
        if spec.encoder is not None and not self.stack:
            self._row(f"  ⊕─╯{scale}")
            self._row("  ├─╮")
            count = self._take("cross_attention_norm", layers)
            self._branch(self._norm(), f"{spec.width}", count)
            self._attention(layers, cross=True)
        if spec.branches == "sequential":
            self._row(f"  ⊕─╯{scale}")
            self._row("  ├─╮")
            self._branch(self._norm(), f"{spec.width}", self._take("feedforward_norm", layers))
        self._feedforward(layers, lent)
        self._row(f"  ⊕─╯{scale}")

    def _branch(self, text: str, shape: str = "", count: int = 0) -> None:
        self._row(f"  │ │ {text}", shape, count)

    def _attention(self, layers: range, cross: bool = False) -> None:
        spec, attention = self.spec, self.spec.attention
        name = "cross_attention" if cross else "attention"
        queries, keys = attention.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        heads = f"{attention.heads} heads of {spec.head_dim}"
        if spec.kv_heads != attention.heads:
            heads += f" on {spec.kv_heads} for keys and values"
        window = f", the last {attention.window} positions" if attention.window else ""
        self._branch(f"attention{' to the encoder' if cross else ''}: {heads}{window}")
        bias = " + bias" if attention.bias else ""
        shape = f"{spec.width} → {queries} + 2 × {keys}"
        self._branch(f"  queries, keys, values{bias}", shape, self._take(f"{name}.qkv", layers))
        if attention.qk_norm:
            count = self._take(f"{name}.query_norm", layers)
            count += self._take(f"{name}.key_norm", layers)
            shape = f"2 × {spec.head_dim}" if attention.qk_gain else ""
            self._branch("  RMS norm of queries and keys", shape, count)
        if not cross:
            self._branch(f"  {'every position sees all' if self.stack else _position(spec)}")
        bias = " + bias" if spec.position.kind == "relative" and not cross else ""
        self._branch(f"  softmax({_SCORES[attention.scale]}{bias}) v")
        biased = attention.bias if attention.output_bias is None else attention.output_bias
        shape = f"{queries} → {spec.width}"
        text = "  output + bias" if biased else "  output"
        self._branch(text, shape, self._take(f"{name}.output", layers))

    def _feedforward(self, layers: range, lent: bool) -> None:
        spec = self.spec
        kind, hidden = spec.feedforward.kind, spec.feedforward.hidden
        title = f"feed-forward: {_FEEDFORWARDS[kind]}"
        if lent:
            uses = len(layers) * spec.share.repeat
            self._open(
                f"one body of weights, {uses} uses · {title}", rail="", shared=True, inset="  │ │ "
            )
        else:
            self._branch(title)
        bias = " + bias" if spec.feedforward.bias else ""
        shapes = {"up": ("up", f"{spec.width} → {hidden}")}
        if spec.feedforward.gated:
            shapes = {"gate_up": ("gate and up", f"{spec.width} → 2 × {hidden}")}
        shapes["down"] = ("down", f"{hidden} → {spec.width}")
        for name, (text, shape) in shapes.items():
            if lent:
                count = self._take(f"shared_feedforward.{name}")
                self._row(f"{text}{bias}", shape, count)
            else:
                count = self._take(f"feedforward.{name}", layers)
                self._branch(f"  {text}{bias}", shape, count)
        if lent:
            self._close(rail="", shared=True, inset=len("  │ │ "))
        if lent and spec.share.lora_rank:
            count = self._take("update", layers)
            text = "+ this layer's own low-rank update of each matrix"
            self._branch(text, f"rank {spec.share.lora_rank}", count)

    def _output(self) -> None:
        spec = self.spec
        if isinstance(spec.input, PatchInput):
            shape = f"{spec.width} → {spec.input.width}"
            count = self._take("patches.from_core")
            self._stream("to the bytes after each patch, beside their own features", shape, count)
            shape, count = f"{spec.input.size} × {spec.input.width}", self._take("patches.offset")
            self._stream("+ place in the patch", shape, count)
            self._byte_blocks("decoder", spec.input, spec.input.decoder_depth)
        self._stream(self._norm(), f"{spec.embedding_width}", self._take("norm"))
        if isinstance(spec.input, SlotInput):
            self._slots_out(spec.input)
        else:
            tied = spec.tie_embeddings
            text = "head: the embedding again" if tied else "head"
            text += " + bias" if spec.logit_bias else ""
            shape = f"{spec.embedding_width} → {spec.vocab_size}"
            count = 0 if tied else self._take("head")
            self._stream(f"{text}{_times(spec.scale.logits)}", shape, count)
        self._row("    ▼")
        self._row("    logits of the next byte" if self._bytes else "    logits of the next token")

    def _slots_out(self, slots: SlotInput) -> None:
        width = slots.width
        shape = f"{self.spec.width} → {slots.slots} × {width}"
        self._stream("to the next token's bytes, all at once", shape, self._take("slots.from_core"))
        shape, count = f"{slots.slots} × {width}", self._take("slots.back_offset")
        self._stream("+ place in the token", shape, count)
        for i in range(slots.decoder_depth):
            text = f"block over the token's bytes, both ways, {slots.heads} heads"
            shape = f"{width} → {slots.hidden} → {width}"
            self._stream(text, shape, self._take(f"slots.back.{i}"))
        if count := self._take("slots.back_norm"):
            self._stream(self._norm(), f"{width}", count)
        self._stream("head", f"{width} → 258", self._take("slots.head"))

    @property
    def _bytes(self) -> bool:
        return isinstance(self.spec.input, PatchInput)

    def _norm(self) -> str:
        return "RMS norm" if self.spec.norm.kind == "rms" else "layer norm"


def _position(spec: ModelSpec) -> str:
    position, scaling = spec.position, spec.position.scaling
    match position.kind:
        case "rope":
            text = f"RoPE, theta {position.theta:,.0f}"
            if position.fraction < 1:
                text += f", {spec.rotary_dim} of {spec.head_dim} dimensions"
            if position.layout == "interleaved":
                text += ", in neighbouring pairs"
        case "alibi":
            text = "ALiBi"
        case other:
            text = "learned positions" if other == "learned" else "no positions"
            return f"{text}, causal" if other == "none" else "causal"
    match scaling:
        case LongRope():
            text += f"; LongRoPE beyond {scaling.original:,}, rotated × {spec.rope_gain:.4f}"
        case Llama3Scaling():
            text += f"; slow ones / {scaling.factor:g} (Llama 3)"
        case DynamicScaling():
            text += f"; NTK × {scaling.factor:g} beyond {scaling.original:,}"
        case LinearScaling() if scaling.original is not None:
            text += f"; interpolated beyond {scaling.original:,}"
        case LinearScaling():
            text += f"; / {scaling.factor:g}"
    return text


def _totals(spec: ModelSpec) -> list[str]:
    counts, sizes = parameters(spec), bytes_per_format(spec)
    lines = [
        f"parameters   {counts.unique:,}; without embeddings {counts.without_embeddings:,}",
    ]
    if counts.total != counts.unique:
        lines.append(f"             {counts.total:,} if every use had weights of its own")
    lines.append("weights      " + ", ".join(f"{n} {volume(size)}" for n, size in sizes.items()))
    per, unit = cache_bytes_per_token(spec), "patch" if spec.input.kind == "patches" else "token"
    lines.append(
        f"cache        {volume(per)} a {unit} at 16 bits:"
        f" {spec.uses} slots × 2 × {spec.kv_heads} heads × {spec.head_dim}"
    )
    if unit == "token" and spec.attention.window is None:
        lines[-1] += f"; {volume(per * spec.context)} for {spec.context:,}"
    if spec.encoder is not None:
        lines.append(f"             and {volume(per)} a token of the source")
    return lines


def _times(scale: float) -> str:
    return "" if scale == 1.0 else f" × {scale:.4g}"


def amount(count: int) -> str:
    """A number of parameters in about four signs: 2048, 23.1 M, 1.35 B."""
    if count < 10_000:
        return str(count)
    size = count / 1000
    for unit in ("k", "M", "B"):
        if size < 999.5 or unit == "B":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"


def volume(size: float) -> str:
    """Bytes in about four signs: 576 B, 90.1 kB, 2.14 GB (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
