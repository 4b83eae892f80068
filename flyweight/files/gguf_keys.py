"""What the keys of an ordinary GGUF file say of its model, as a spec.

Every key of the architecture is read, known to change nothing, or reported; a setting that the
decoder does not have is refused by its name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from flyweight.files.formats import FORMATS
from flyweight.files.gguf import GgufFile
from flyweight.files.gguf_architectures import ARCHITECTURES
from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import nearest

_MOST = 1 << 31
# Of a file's description and of other programs' bookkeeping; no logit depends on them.
_HARMLESS = {"vocab_size", "tensor_data_layout", "attention.causal", "rope.scaling.finetuned"}


def described(architecture: str, file: GgufFile) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec, and notes on keys that were not used.

    Raises FlyweightError for an architecture or a setting that the decoder does not have,
    CorruptFileError for a value that is none.
    """
    read = _READERS.get(architecture)
    if read is None:
        raise FlyweightError(
            f"the architecture {architecture!r} is not supported"
            f"{nearest(architecture, [*ARCHITECTURES, 'flyweight'])}"
        )
    keys = _Keys(architecture, file)
    try:
        spec = ModelSpec.parse(read(keys))
    except ConfigurationError as error:
        raise CorruptFileError(str(error)) from None
    return spec, keys.notes()


class _Keys:
    """The keys of one architecture, each checked and marked as read when it is taken."""

    def __init__(self, architecture: str, file: GgufFile) -> None:
        self.prefix = architecture + "."
        self.file, self.read = file, set(_HARMLESS)
        self.values = {
            key.removeprefix(self.prefix): value
            for key, value in file.metadata.items()
            if key.startswith(self.prefix)
        }
        self.tensors = {name: tensor.shape for name, tensor in file.tensors.items()}

    def _take(self, name: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        self.read.add(name)
        value = self.values.get(name)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one for each layer, all the same
        elif isinstance(value, list):
            raise FlyweightError(
                f"{self.prefix}{name} differs between layers; this decoder has one for all"
            )
        if value is None:
            if default is None:
                raise CorruptFileError(f"it does not say {self.prefix}{name}")
            return default
        if type(value) not in kinds:
            raise CorruptFileError(f"{self.prefix}{name} is {value!r}: {what} is wanted")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._take(name, (int,), "a whole number", default)
        if not 0 < value < _MOST:
            raise CorruptFileError(f"{self.prefix}{name} is {value}, which is no size")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0, the shortest that is this one in single precision."""
        value = self._take(name, (int, float), "a number", default)
        if not 0 < value < float("inf"):
            raise CorruptFileError(f"{self.prefix}{name} is {value}: more than 0 is wanted")
        return _shortest(value)

    def absent(self, name: str, *allowed: Any) -> None:
        """A setting that is not supported, unless it has one of the values that mean nothing."""
        self.read.add(name)
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise FlyweightError(f"{self.prefix}{name} = {value!r} is not supported")

    def has(self, name: str) -> bool:
        return name in self.values

    def notes(self) -> tuple[str, ...]:
        left = sorted(self.values.keys() - self.read)
        return tuple(f"{self.prefix}{key} is not known and was not used" for key in left)

    def vectors(self, name: str) -> tuple[float, ...] | None:
        """A tensor of positive numbers, if it is there."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            return None
        if len(tensor.shape) != 1 or tensor.shape[0] > 1 << 16:
            raise CorruptFileError(f"tensor {name!r} is {list(tensor.shape)}: a list is wanted")
        if tensor.form is not FORMATS["f32"]:
            raise CorruptFileError(f"tensor {name!r} is in {tensor.form.name}: f32 is wanted")
        values: tuple[float, ...] = struct.unpack(f"<{tensor.shape[0]}f", tensor.flat)
        if not all(0 < value < math.inf for value in values):
            raise CorruptFileError(f"tensor {name!r} holds numbers that are not positive")
        return values

    def width_of(self, name: str) -> int:
        """The rows of a matrix."""
        shape = self.tensors.get(name)
        if shape is None or len(shape) != 2:
            raise CorruptFileError(f"it has no matrix {name!r}")
        return shape[0]


def _shortest(value: float) -> float:
    """The number with the fewest digits that is ``value`` in single precision."""
    bits = single(value)
    (exact,) = struct.unpack("<f", bits)
    tries = (float(f"{exact:.{digits}g}") for digits in range(1, 10))
    return next(number for number in tries if single(number) == bits)


def single(value: float) -> bytes:
    """The number in single precision, which has none beyond its largest but infinity."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _sizes(keys: _Keys) -> dict[str, Any]:
    keys.absent("expert_count", 0)
    keys.absent("expert_used_count", 0)
    keys.absent("attention.scale")
    keys.absent("use_parallel_residual", False)
    heads = keys.whole("attention.head_count")
    return {
        "vocab_size": keys.width_of("token_embd.weight"),
        "width": keys.whole("embedding_length"),
        "depth": keys.whole("block_count"),
        "context": keys.whole("context_length"),
        "attention": {
            "heads": heads,
            "kv_heads": keys.whole("attention.head_count_kv", default=heads),
        },
        "feedforward": {"hidden": keys.whole("feed_forward_length")},
        "tie_embeddings": "output.weight" not in keys.tensors,
    }


def _llama(keys: _Keys) -> dict[str, Any]:
    """What llama and those that follow it have in common; all dimensions of a head turn."""
    spec = _sizes(keys)
    attention = spec["attention"]
    head = keys.whole("attention.key_length", default=max(1, spec["width"] // attention["heads"]))
    if keys.whole("attention.value_length", default=head) != head:
        raise FlyweightError("keys and values of different lengths are not supported")
    if head * attention["heads"] != spec["width"]:
        attention["head_dim"] = head
    turning = keys.whole("rope.dimension_count", default=head)
    spec["norm"] = {"kind": "rms", "eps": keys.number("attention.layer_norm_rms_epsilon")}
    spec["position"] = {"kind": "rope", "theta": keys.number("rope.freq_base", default=10_000.0)}
    if turning != head:
        if turning > head:
            raise CorruptFileError(f"{turning} dimensions of heads of {head} turn")
        fraction = turning / head
        # So that head times fraction, rounded down, is what turns.
        spec["position"]["fraction"] = (
            fraction if int(head * fraction) == turning else math.nextafter(fraction, 1)
        )
    keys.absent("attention.layer_norm_epsilon")
    _biases(keys, spec)
    _scaling(keys, spec)
    return spec


def _biases(keys: _Keys, spec: dict[str, Any]) -> None:
    found = {name.removeprefix("blk.0.") for name in keys.tensors if name.startswith("blk.0.")}
    bias, output = "attn_q.bias" in found, "attn_output.bias" in found
    if bias:
        spec["attention"]["bias"] = True
    if output != bias:
        spec["attention"]["output_bias"] = output
    if "ffn_down.bias" in found:
        spec["feedforward"]["bias"] = True


def _scaling(keys: _Keys, spec: dict[str, Any]) -> None:
    keys.absent("rope.scale_linear", 1.0)
    kind = keys._take("rope.scaling.type", (str,), "a word", "none")
    factor = keys.number("rope.scaling.factor", default=1.0)
    divisors = keys.vectors("rope_freqs.weight")
    original = keys.whole("rope.scaling.original_context_length", default=spec["context"])
    if kind == "linear" and divisors is None:
        if factor != 1.0:
            spec["position"]["scaling"] = {"kind": "linear", "factor": factor}
    elif kind not in ("none", "longrope"):
        raise FlyweightError(f"{keys.prefix}rope.scaling.type = {kind!r} is not supported")
    short, long = (keys.vectors(f"rope_factors_{n}.weight") for n in ("short", "long"))
    if divisors is not None:
        short = long = divisors
    if short is not None or long is not None:
        spec["position"]["scaling"] = {
            "kind": "longrope",
            "original": original,
            "short": short or long,
            "long": long or short,
            "attention": keys.number("rope.scaling.attn_factor", default=1.0),
        }


def _minicpm(keys: _Keys) -> dict[str, Any]:
    spec = _llama(keys)
    # Files from before these keys were written have what MiniCPM's first models have.
    spec["scale"] = {
        "embedding": keys.number("embedding_scale", default=12.0),
        "residual": keys.number("residual_scale", default=1.4 / spec["depth"] ** 0.5),
        "logits": 1.0 / keys.number("logit_scale", default=spec["width"] / 256),
    }
    return spec


def _qwen3(keys: _Keys) -> dict[str, Any]:
    spec = _llama(keys)
    spec["attention"] |= {"qk_norm": True, "qk_gain": True}
    return spec


def _phi3(keys: _Keys) -> dict[str, Any]:
    spec = _llama(keys)
    if keys.has("attention.sliding_window"):
        window = keys._take("attention.sliding_window", (int,), "a whole number", 0)
        if 0 < window < spec["context"]:
            spec["attention"]["window"] = window
    return spec


def _gpt2(keys: _Keys) -> dict[str, Any]:
    spec = _sizes(keys)
    spec["norm"] = {
        "kind": "layer",
        "eps": keys.number("attention.layer_norm_epsilon"),
        "bias": True,
    }
    spec["position"] = {"kind": "learned"}
    spec["attention"]["bias"] = True
    if spec["attention"]["kv_heads"] == spec["attention"]["heads"]:
        del spec["attention"]["kv_heads"]
    spec["feedforward"] |= {"kind": "gelu", "bias": True}
    return spec


def _jais(keys: _Keys) -> dict[str, Any]:
    spec = _gpt2(keys)
    steepness = keys.number("attention.max_alibi_bias", default=8.0)
    if steepness != 8.0:
        raise FlyweightError(f"{keys.prefix}attention.max_alibi_bias = {steepness}: 8 is supported")
    spec["position"] = {"kind": "alibi"}
    spec["attention"]["scale"] = "1/d"
    spec["feedforward"]["kind"] = "swiglu"
    return spec


_READERS: dict[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "minicpm": _minicpm,
    "qwen2": _llama,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "jais": _jais,
}
