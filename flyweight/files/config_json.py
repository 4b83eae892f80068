"""A Hugging Face folder's config.json as a spec: what the folder says it is, and no guessing.

Every key is read, known to be harmless, or reported; a setting that the decoder does not have is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nextafter
from typing import Any, NamedTuple

from flyweight.files import t5
from flyweight.files.config_keys import Keys
from flyweight.files.config_rope import rope_position
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import nearest

# Under this key our own exports say which copies are one body.
SHARE = "flyweight_share"


class Described(NamedTuple):
    """What config.json says: a spec, whose names its tensors have, and keys that were not used."""

    spec: ModelSpec
    layout: str
    unused: tuple[str, ...]


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
    config = Keys(values, path)
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


def _heads(config: Keys, width: int) -> dict[str, Any]:
    heads = config.whole("num_attention_heads")
    attention: dict[str, Any] = {"heads": heads}
    attention["kv_heads"] = config.whole("num_key_value_heads", default=heads)
    if config.values.get("head_dim") is not None:
        head = config.whole("head_dim")
        if head * heads != width:
            attention["head_dim"] = head
    config.read.add("head_dim")
    return attention


def _llama(config: Keys) -> dict[str, Any]:
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
        "position": rope_position(config, context),
        "attention": attention,
        "feedforward": feedforward,
        "tie_embeddings": config.flag("tie_word_embeddings"),
    }


def _window(config: Keys, spec: dict[str, Any], on: bool) -> dict[str, Any]:
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


def _all_slide(config: Keys) -> bool:
    """Qwen's layers from ``max_window_layers`` on have the window, Mistral's all."""
    if config.values.get("model_type") in ("qwen2", "qwen3"):
        return config.values.get("max_window_layers", 28) == 0
    return True


def _mistral(config: Keys) -> dict[str, Any]:
    return _window(config, _llama(config), on=True)


def _qwen2(config: Keys) -> dict[str, Any]:
    spec = _llama(config)
    spec["attention"] |= {"bias": True, "output_bias": False}
    return _window(config, spec, on=config.flag("use_sliding_window"))


def _qwen3(config: Keys) -> dict[str, Any]:
    spec = _llama(config)
    # Its configuration class has 128 where config.json says nothing.
    if config.values.get("head_dim") is None and spec["width"] != 128 * spec["attention"]["heads"]:
        spec["attention"]["head_dim"] = 128
    spec["attention"] |= {"qk_norm": True, "qk_gain": True}
    return _window(config, spec, on=config.flag("use_sliding_window"))


def _glm(config: Keys) -> dict[str, Any]:
    # What its configuration class has where config.json says nothing.
    defaults = {"partial_rotary_factor": 0.5, "attention_bias": True, "head_dim": 128}
    config.values = {**defaults, **config.values}
    spec = _llama(config)
    spec["position"]["layout"] = "interleaved"
    if spec["attention"].get("bias"):
        spec["attention"]["output_bias"] = False
    return spec


def _phi3(config: Keys) -> dict[str, Any]:
    return _window(config, _llama(config), on=True)


def _minicpm(config: Keys) -> dict[str, Any]:
    spec = _llama(config)
    depth, width = spec["depth"], spec["width"]
    spec["scale"] = {
        "embedding": config.number("scale_emb"),
        "residual": config.number("scale_depth") / depth**0.5,
        "logits": config.number("dim_model_base") / width,
    }
    spec["tie_embeddings"] = config.flag("tie_word_embeddings", default=True)
    return spec


def _mobilellm(config: Keys) -> dict[str, Any]:
    spec = _llama(config)
    # What its code obeys is share_embedding, whatever tie_word_embeddings says.
    spec["tie_embeddings"] = config.flag("share_embedding", default=spec["tie_embeddings"])
    if config.flag("layer_sharing"):
        spec["share"] = {"block": "adjacent", "repeat": 2}
    return spec


def _mobillama(config: Keys) -> dict[str, Any]:
    spec = _llama(config)
    # Its code ignores num_key_value_heads: keys and values have all heads.
    spec["attention"]["kv_heads"] = spec["attention"]["heads"]
    spec["share"] = {"feedforward": "all"}
    return spec


def _gpt2(config: Keys) -> dict[str, Any]:
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


def _mup(config: Keys, spec: dict[str, Any]) -> dict[str, Any]:
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


def _gelu(config: Keys) -> str:
    kinds = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu-exact"}
    return kinds[config.only("activation_function", *kinds) or "gelu_new"]


def _codegen(config: Keys) -> dict[str, Any]:
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


def _btlm(config: Keys) -> dict[str, Any]:
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
            inner = Keys(scaling, f"{config.path}: alibi_scaling")
            inner.only("type", "linear")
            name, key = ("original", "train_seq_len")
            if scaling.get("factor") is not None:
                name, key = ("factor", "factor")
            value = inner.number(key) if name == "factor" else inner.whole(key)
            spec["position"]["scaling"] = {"kind": "linear", name: value}
    return spec


def _geb(config: Keys) -> dict[str, Any]:
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
READERS: dict[str, tuple[str, Callable[[Keys], dict[str, Any]]]] = {
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
