"""A Hugging Face folder's config.json as a spec: what the folder says it is, and no guessing.

Every key is read, known to be harmless, or reported; a setting that the decoder does not have is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nextafter
from typing import Any, NamedTuple

from flyweight.files import t5
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.position import longrope_gain
from flyweight.spec.table import nearest

# Under this key our own exports say which copies are one body.
SHARE = "flyweight_share"
# What training, generation and bookkeeping leave behind; none of it changes a logit.
_HARMLESS = {
    "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "_name_or_path",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout",
    "resid_dropout", "initializer_range", "pretraining_tp", "task_specific_params",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "gradient_checkpointing", "max_window_layers", "n_ctx",
    "reorder_and_upcast_attn", "_attn_implementation", "attn_implementation", "tokenizer_class",
    "chunk_size_feed_forward", "max_sequence_length", "_commit_hash", "dropout_rate",
    "classifier_dropout", "initializer_factor", "output_past",
}  # fmt: skip
_MOST = 1 << 31


class Described(NamedTuple):
    """What config.json says: a spec, whose names its tensors have, and keys that were not used."""

    spec: ModelSpec
    layout: str
    unused: tuple[str, ...]


class _Config:
    """config.json's keys, each checked and marked as read when it is taken."""

    def __init__(self, values: dict[str, Any], path: str) -> None:
        self.values, self.path, self.read = values, path, set(_HARMLESS)

    def _find(self, names: tuple[str, ...]) -> Any:
        self.read.update(names)
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def whole(self, *names: str, default: int | None = None) -> int:
        """A positive whole number, under the first of ``names`` that is there."""
        value = self._find(names)
        value = default if value is None else value
        if value is None:
            raise FlyweightError(f"{self.path} does not say `{names[0]}`")
        if type(value) is not int or not 0 < value < _MOST:
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r} is no size")
        return value

    def id(self, *names: str, default: int = 0) -> int:
        """The number of a token, under the first of ``names`` that is there."""
        value = self._find(names)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < _MOST:
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r} is no token's number")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        value = self._find(names)
        value = default if value is None else value
        if value is None:
            raise FlyweightError(f"{self.path} does not say `{names[0]}`")
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r}: more than 0 is wanted")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        value = self._find(names)
        value = default if value is None else value
        if type(value) is not bool:
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r}: true or false")
        return value

    def table(self, *names: str) -> dict[str, Any]:
        value = self._find(names)
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r}: a table is wanted")
        return dict(value or {})

    def words(self, name: str) -> set[str]:
        """The different words of a list that may be absent."""
        value = self._find((name,))
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, str) for each in value)
        ):
            raise ConfigurationError(f"{self.path}: {name} = {value!r}: a list of words is wanted")
        return set(value or ())

    def only(self, name: str, *allowed: Any) -> Any:
        """A key that may be absent or have one of these values; any other is refused."""
        value = self._find((name,))
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            shown = " or ".join(repr(a) for a in allowed)
            raise FlyweightError(
                f"{self.path}: {name} = {value!r} is not supported; this decoder has {shown}"
            )
        return value

    def unused(self) -> tuple[str, ...]:
        """Keys that were not read and are not off."""
        left = sorted(self.values.keys() - self.read)
        return tuple(k for k in left if not _off(self.values[k]))


def _off(value: Any) -> bool:
    """Whether a value says that there is nothing: null, false, an empty list or table."""
    return value is None or value is False or value in ([], {}, "")


def describe(values: dict[str, Any], path: str = "config.json") -> Described:
    """The spec that a parsed config.json describes.

    Raises FlyweightError for a model type or a setting that the decoder does not have, and
    ConfigurationError for a value that is none.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise FlyweightError(f"{path} does not say `model_type`; name the model with --like")
    if kind not in READERS:
        raise FlyweightError(
            f"{path}: model_type = {kind!r} is not known{nearest(kind, list(READERS))};"
            " name a model of the same architecture with --like"
        )
    config = _Config(values, path)
    quantised = config.table("quantization_config")
    if quantised:
        raise FlyweightError(
            f"{path}: the weights are quantised ({quantised.get('quant_method', 'unknown')});"
            " take the checkpoint in 16 or 32 bits"
        )
    layout, read = READERS[kind]
    # CodeGen2 goes by CodeGen's model_type and brings code that lays out heads in its own way.
    if kind == "codegen" and config.table("auto_map"):
        layout = "codegen2"
    spec = read(config)
    share = config.table(SHARE)
    if share:
        # The copies that an export of ours wrote for each use; they are compared on import.
        repeat = share.get("repeat", 1)
        if type(repeat) is not int or repeat < 1 or spec["depth"] % repeat:
            raise ConfigurationError(f"{path}: {SHARE} does not divide {spec['depth']} layers")
        spec |= {"depth": spec["depth"] // repeat, "share": share}
    try:
        parsed = ModelSpec.parse(spec)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return Described(parsed, layout, config.unused())


def _heads(config: _Config, width: int) -> dict[str, Any]:
    heads = config.whole("num_attention_heads")
    attention: dict[str, Any] = {"heads": heads}
    attention["kv_heads"] = config.whole("num_key_value_heads", default=heads)
    if config.values.get("head_dim") is not None:
        head = config.whole("head_dim")
        if head * heads != width:
            attention["head_dim"] = head
    config.read.add("head_dim")
    return attention


def _llama(config: _Config) -> dict[str, Any]:
    """What Llama and those that follow it have in common."""
    width = config.whole("hidden_size")
    config.only("hidden_act", "silu", "swish")
    context = config.whole("max_position_embeddings")
    attention = _heads(config, width)
    if config.flag("attention_bias"):
        attention["bias"] = True
    feedforward: dict[str, Any] = {"kind": "swiglu", "hidden": config.whole("intermediate_size")}
    if config.flag("mlp_bias"):
        feedforward["bias"] = True
    return {
        "vocab_size": config.whole("vocab_size"),
        "width": width,
        "depth": config.whole("num_hidden_layers"),
        "context": context,
        "norm": {"kind": "rms", "eps": config.number("rms_norm_eps", default=1e-6)},
        "position": _rope(config, context),
        "attention": attention,
        "feedforward": feedforward,
        "tie_embeddings": config.flag("tie_word_embeddings"),
    }


def _rope(config: _Config, context: int) -> dict[str, Any]:
    """``rope_parameters``, or, before transformers 5, ``rope_theta`` beside ``rope_scaling``."""
    newer, older = config.table("rope_parameters"), config.table("rope_scaling")
    both = {**older, **newer}
    inner = _Config(both, f"{config.path}: rope_parameters")
    theta = config.number("rope_theta", default=10_000.0)
    fraction = config.number("partial_rotary_factor", default=1.0)
    position: dict[str, Any] = {"kind": "rope", "theta": inner.number("rope_theta", default=theta)}
    fraction = inner.number("partial_rotary_factor", default=fraction)
    if fraction != 1.0:
        position["fraction"] = fraction
    kind = inner._find(("rope_type", "type")) or "default"
    before = config.values.get("original_max_position_embeddings")
    config.read.add("original_max_position_embeddings")
    read = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise FlyweightError(
            f"{config.path}: rope_type = {kind!r} is not supported; known: {', '.join(_SCALINGS)}"
        )
    scaling = read(inner, context, before)
    left = inner.unused()
    if left:
        raise FlyweightError(f"{inner.path}: {', '.join(left)} is not known for rope_type {kind}")
    return position | ({"scaling": scaling} if scaling else {})


def _original(rope: _Config, before: Any) -> int:
    """Phi-3's configuration says the original length outside of the table, others within it."""
    if rope.values.get("original_max_position_embeddings") is None and before is not None:
        rope.values["original_max_position_embeddings"] = before
    return rope.whole("original_max_position_embeddings")


def _default_rope(rope: _Config, context: int, before: Any) -> dict[str, Any]:
    rope.read.add("original_max_position_embeddings")
    return {}


def _linear_rope(rope: _Config, context: int, before: Any) -> dict[str, Any]:
    return {"kind": "linear", "factor": rope.number("factor")}


def _dynamic_rope(rope: _Config, context: int, before: Any) -> dict[str, Any]:
    # transformers counts from the configuration's context, whatever the table says besides.
    rope.read.add("original_max_position_embeddings")
    return {"kind": "dynamic", "factor": rope.number("factor"), "original": context}


def _llama3_rope(rope: _Config, context: int, before: Any) -> dict[str, Any]:
    return {
        "kind": "llama3",
        "factor": rope.number("factor"),
        "low": rope.number("low_freq_factor"),
        "high": rope.number("high_freq_factor"),
        "original": _original(rope, before),
    }


def _longrope(rope: _Config, context: int, before: Any) -> dict[str, Any]:
    scaling: dict[str, Any] = {"kind": "longrope", "original": _original(rope, before)}
    for name in ("short", "long"):
        factors = rope._find((f"{name}_factor",))
        if not isinstance(factors, list):
            raise FlyweightError(f"{rope.path} does not have the list `{name}_factor`")
        scaling[name] = factors
    if rope.values.get("attention_factor") is not None:
        scaling["attention"] = rope.number("attention_factor")
    elif rope.values.get("factor") is not None:
        # A factor beside the lists is the lengthening that the attention's gain follows from.
        factor = rope.number("factor")
        if factor != context / scaling["original"]:
            scaling["attention"] = longrope_gain(factor, scaling["original"])
    rope.read.update(("attention_factor", "factor"))
    for name in ("short_mscale", "long_mscale"):
        if rope.values.get(name) is not None:
            raise FlyweightError(f"{rope.path}: {name} is not supported")
    return scaling


_SCALINGS: dict[str, Callable[[_Config, int, Any], dict[str, Any]]] = {
    "default": _default_rope,
    "linear": _linear_rope,
    "dynamic": _dynamic_rope,
    "llama3": _llama3_rope,
    "longrope": _longrope,
    # What Phi-3 called it first.
    "su": _longrope,
}


def _window(config: _Config, spec: dict[str, Any], on: bool) -> dict[str, Any]:
    """The sliding window, where every layer has it."""
    kinds = config.words("layer_types")
    if config.values.get("sliding_window") is not None and on:
        window = config.whole("sliding_window")
        if kinds - {"sliding_attention"} or (not kinds and not _all_slide(config)):
            raise FlyweightError(
                f"{config.path}: a sliding window in some layers alone (layer_types) is not"
                " supported; this decoder has it in all or none"
            )
        spec["attention"]["window"] = window
    elif kinds - {"full_attention"}:
        raise FlyweightError(f"{config.path}: layer_types = {sorted(kinds)} is not known")
    config.read.add("sliding_window")
    return spec


def _all_slide(config: _Config) -> bool:
    """Qwen's layers from ``max_window_layers`` on have the window, Mistral's all."""
    if config.values.get("model_type") in ("qwen2", "qwen3"):
        return config.values.get("max_window_layers", 28) == 0
    return True


def _mistral(config: _Config) -> dict[str, Any]:
    return _window(config, _llama(config), on=True)


def _qwen2(config: _Config) -> dict[str, Any]:
    spec = _llama(config)
    spec["attention"] |= {"bias": True, "output_bias": False}
    return _window(config, spec, on=config.flag("use_sliding_window"))


def _qwen3(config: _Config) -> dict[str, Any]:
    spec = _llama(config)
    # Its configuration class has 128 where config.json says nothing.
    if config.values.get("head_dim") is None and spec["width"] != 128 * spec["attention"]["heads"]:
        spec["attention"]["head_dim"] = 128
    spec["attention"] |= {"qk_norm": True, "qk_gain": True}
    return _window(config, spec, on=config.flag("use_sliding_window"))


def _glm(config: _Config) -> dict[str, Any]:
    # What its configuration class has where config.json says nothing.
    defaults = {"partial_rotary_factor": 0.5, "attention_bias": True, "head_dim": 128}
    config.values = {**defaults, **config.values}
    spec = _llama(config)
    spec["position"]["layout"] = "interleaved"
    if spec["attention"].get("bias"):
        spec["attention"]["output_bias"] = False
    return spec


def _phi3(config: _Config) -> dict[str, Any]:
    return _window(config, _llama(config), on=True)


def _minicpm(config: _Config) -> dict[str, Any]:
    spec = _llama(config)
    depth, width = spec["depth"], spec["width"]
    spec["scale"] = {
        "embedding": config.number("scale_emb"),
        "residual": config.number("scale_depth") / depth**0.5,
        "logits": config.number("dim_model_base") / width,
    }
    spec["tie_embeddings"] = config.flag("tie_word_embeddings", default=True)
    return spec


def _mobilellm(config: _Config) -> dict[str, Any]:
    spec = _llama(config)
    # What its code obeys is share_embedding, whatever tie_word_embeddings says.
    spec["tie_embeddings"] = config.flag("share_embedding", default=spec["tie_embeddings"])
    if config.flag("layer_sharing"):
        spec["share"] = {"block": "adjacent", "repeat": 2}
    return spec


def _mobillama(config: _Config) -> dict[str, Any]:
    spec = _llama(config)
    # Its code ignores num_key_value_heads: keys and values have all heads.
    spec["attention"]["kv_heads"] = spec["attention"]["heads"]
    spec["share"] = {"feedforward": "all"}
    return spec


def _gpt2(config: _Config) -> dict[str, Any]:
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    width = config.whole("n_embd")
    spec: dict[str, Any] = {
        "vocab_size": config.whole("vocab_size"),
        "width": width,
        "depth": config.whole("n_layer"),
        "context": config.whole("n_positions"),
        "norm": {
            "kind": "layer",
            "eps": config.number("layer_norm_epsilon", default=1e-5),
            "bias": True,
        },
        "position": {"kind": "learned"},
        "attention": {"heads": config.whole("n_head"), "bias": True},
        "feedforward": {
            "kind": _gelu(config),
            "hidden": config.whole("n_inner", default=4 * width),
            "bias": True,
        },
        "tie_embeddings": config.flag("tie_word_embeddings", default=True),
    }
    return spec | _mup(config, spec)


def _mup(config: _Config, spec: dict[str, Any]) -> dict[str, Any]:
    """muP's multipliers, where a model of GPT-2's kind has them (Cerebras-GPT, BTLM, Jais)."""
    attention = spec["attention"]
    if config.flag("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d"):
        attention = attention | {"scale": "1/d"}
    logits = config.number("mup_output_alpha", default=1.0)
    logits *= config.number("mup_width_scale", default=1.0)
    # Earlier configurations have the product, the first Jais under the name of its second factor.
    logits = config.number("output_logits_scale", "width_scale", default=logits)
    embedding = config.number("mup_embeddings_scale", "embeddings_scale", default=1.0)
    return {"attention": attention, "scale": {"embedding": embedding, "logits": logits}}


def _gelu(config: _Config) -> str:
    kinds = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu-exact"}
    return kinds[config.only("activation_function", *kinds) or "gelu_new"]


def _codegen(config: _Config) -> dict[str, Any]:
    config.only("scale_attn_weights", True)
    width, heads = config.whole("n_embd"), config.whole("n_head")
    head, rotary = max(1, width // heads), config.whole("rotary_dim", default=64)
    config.only("head_dim", head)
    fraction = rotary / head
    # The head's dimensions times it, rounded down, are to be rotary again.
    if int(head * fraction) < rotary:
        fraction = nextafter(fraction, 2.0)
    return {
        "vocab_size": config.whole("vocab_size"),
        "width": width,
        "depth": config.whole("n_layer"),
        "context": config.whole("n_positions"),
        "norm": {
            "kind": "layer",
            "eps": config.number("layer_norm_epsilon", default=1e-5),
            "bias": True,
        },
        "position": {"fraction": fraction, "layout": "interleaved"},
        "attention": {"heads": heads},
        "feedforward": {
            "kind": _gelu(config),
            "hidden": config.whole("n_inner", default=4 * width),
            "bias": True,
        },
        "branches": "parallel",
        "logit_bias": True,
        "tie_embeddings": config.flag("tie_word_embeddings"),
    }


def _btlm(config: _Config) -> dict[str, Any]:
    swiglu = config.only("activation_function", "swiglu", "gelu", "gelu_new") or "gelu_new"
    if swiglu == "swiglu":
        del config.values["activation_function"]
    spec = _gpt2(config)
    if swiglu == "swiglu":
        spec["feedforward"]["kind"] = "swiglu"
    if config.only("position_embedding_type", "alibi", "learned") == "alibi":
        spec["position"] = {"kind": "alibi"}
        scaling = config.table("alibi_scaling")
        if scaling:
            inner = _Config(scaling, f"{config.path}: alibi_scaling")
            inner.only("type", "linear")
            name, key = ("original", "train_seq_len")
            if scaling.get("factor") is not None:
                name, key = ("factor", "factor")
            value = inner.number(key) if name == "factor" else inner.whole(key)
            spec["position"]["scaling"] = {"kind": "linear", name: value}
    return spec


def _geb(config: _Config) -> dict[str, Any]:
    """ChatGLM's keys, from whose code the model comes."""
    config.only("rmsnorm", True)
    config.only("post_layer_norm", True)
    config.only("apply_residual_connection_post_layernorm", False)
    config.only("add_bias_linear", False)
    config.only("add_qkv_bias", False)
    width = config.whole("hidden_size")
    heads = config.whole("num_attention_heads")
    attention: dict[str, Any] = {"heads": heads}
    attention["kv_heads"] = config.whole("multi_query_group_num", "num_key_value_heads")
    head = config.whole("kv_channels", default=width // heads)
    if head * heads != width:
        attention["head_dim"] = head
    return {
        "vocab_size": config.whole("padded_vocab_size", "vocab_size"),
        "width": width,
        "depth": config.whole("num_layers", "num_hidden_layers"),
        "context": config.whole("seq_length", "max_position_embeddings"),
        "norm": {"kind": "rms", "eps": config.number("layernorm_epsilon", default=1e-5)},
        "attention": attention,
        "feedforward": {
            "kind": "swiglu",
            "hidden": config.whole("ffn_hidden_size", "intermediate_size"),
        },
        "tie_embeddings": config.flag("tie_word_embeddings"),
    }


# By model_type: the layout of the names, and who reads the configuration.
READERS: dict[str, tuple[str, Callable[[_Config], dict[str, Any]]]] = {
    "btlm": ("btlm", _btlm),
    "codegen": ("codegen", _codegen),
    "geblm": ("geb", _geb),
    "glm": ("glm", _glm),
    "gpt2": ("gpt2", _gpt2),
    "jais": ("btlm", _btlm),
    "llama": ("llama", _llama),
    "minicpm": ("minicpm", _minicpm),
    "mistral": ("llama", _mistral),
    "mobilellm": ("mobilellm", _mobilellm),
    "mobillama": ("mobillama", _mobillama),
    "phi3": ("phi3", _phi3),
    "qwen2": ("llama", _qwen2),
    "qwen3": ("llama", _qwen3),
    "t5": ("t5", t5.read),
}
