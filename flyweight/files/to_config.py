"""A spec as a class of `transformers`: which one computes the same, and its config.json.

What no class computes is refused by name. MiniCPM's multipliers go into the weights, as its
authors do for Llama's format; a shared body is written once for each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flyweight.files import t5
from flyweight.files.config_json import SHARE
from flyweight.files.ordinary import expand, ours_alone
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.position import DynamicScaling, LinearScaling, Llama3Scaling, LongRope


class Target(NamedTuple):
    """What an export becomes: config.json, the layout of its names, and the spec that it stands
    for there. ``expanded`` has no sharing; ``folded`` says that multipliers went into weights."""

    config: dict[str, Any]
    layout: str
    expanded: ModelSpec
    folded: bool


def target(spec: ModelSpec, family: str = "") -> Target:
    """The class of `transformers` for ``spec``; ``family``'s own where it is one of several.

    Raises FlyweightError naming what none has.
    """
    never = list(_in_no_class(spec))
    if never:
        raise FlyweightError(_refusal(never))
    expanded = expand(spec)
    folded = expanded.scale != type(expanded.scale)() and not t5.scales_its_head(expanded)
    if folded:
        values = expanded.values()
        values["scale"] = {}
        # The head reads unscaled embeddings: it needs a matrix of its own.
        scale = expanded.scale
        if scale.embedding != 1.0 or scale.logits != 1.0:
            values["tie_embeddings"] = False
        expanded = ModelSpec.parse(values)
    both = spec.encoder is not None
    if both and not t5.scales_its_head(expanded):
        # Its class scales what goes into a tied head: one that is not gets a matrix of its own.
        expanded = ModelSpec.parse({**expanded.values(), "tie_embeddings": False})
    classes = {n: c for n, c in _CLASSES.items() if (n in _ENCODER_DECODERS) == both}
    tried = {name: list(differs(expanded)) for name, (differs, _, _) in classes.items()}
    fitting = [name for name, reasons in tried.items() if not reasons]
    chosen = family if family in fitting else next(iter(fitting), None)
    if chosen is None:
        raise FlyweightError(_refusal(min(tried.values(), key=len)))
    _, config, layout = _CLASSES[chosen]
    values = {"model_type": chosen, "architectures": [_ARCHITECTURES[chosen]], **config(expanded)}
    share = {k: v for k, v in spec.share.values().items() if v != getattr(type(spec.share)(), k)}
    if share:
        values[SHARE] = share
    return Target(values, layout, expanded, folded)


def _refusal(reasons: list[str]) -> str:
    return (
        f"no class of transformers computes this model: {'; '.join(reasons)}. Use it with"
        " Flyweight as it is"
    )


def _in_no_class(spec: ModelSpec) -> Iterator[str]:
    yield from ours_alone(spec)
    if spec.encoder is None and spec.attention.scale != "1/sqrt(d)":
        yield f"attention.scale = '{spec.attention.scale}'"
    relative = spec.position.kind == "relative" and spec.encoder is None
    if spec.position.kind in ("alibi", "none") or relative:
        yield f"position.kind = '{spec.position.kind}'"


def _sequential(spec: ModelSpec) -> Iterator[str]:
    """What CodeGen alone has."""
    if spec.branches != "sequential":
        yield f"branches = '{spec.branches}'"
    if spec.logit_bias:
        yield "a bias of the logits"


def _llama_family(spec: ModelSpec, layout: str = "half") -> Iterator[str]:
    """What keeps a spec from every class that follows Llama, with this layout of RoPE."""
    yield from _sequential(spec)
    if spec.norm.kind != "rms":
        yield "norm.kind = 'layer' without learned positions and gelu"
    if spec.position.kind != "rope":
        yield f"position.kind = '{spec.position.kind}' with RMS norms"
    if spec.position.layout != layout:
        yield f"position.layout = '{spec.position.layout}'"
    if spec.feedforward.kind != "swiglu":
        yield f"feedforward.kind = '{spec.feedforward.kind}' with RMS norms"


def _biases(spec: ModelSpec) -> tuple[bool, bool]:
    """(queries, keys and values; output)."""
    bias, output = spec.attention.bias, spec.attention.output_bias
    return bias, bias if output is None else output


def _plain(spec: ModelSpec, name: str, window: bool = False, biased: bool = False) -> Iterator[str]:
    yield from _llama_family(spec)
    if spec.position.fraction != 1.0:
        yield f"position.fraction = {spec.position.fraction} in {name}"
    if isinstance(spec.position.scaling, LongRope):
        yield f"position.scaling.kind = 'longrope' in {name}"
    if spec.attention.window is not None and not window:
        yield f"attention.window in {name}"
    if spec.attention.qk_norm:
        yield f"attention.qk_norm in {name}"
    if not biased and (any(_biases(spec)) or spec.feedforward.bias):
        yield f"biases in {name}"


def _not_llama(spec: ModelSpec) -> Iterator[str]:
    yield from _plain(spec, "Llama", biased=True)
    if len(set(_biases(spec))) > 1:
        yield "attention.output_bias unlike attention.bias in Llama"


def _not_mistral(spec: ModelSpec) -> Iterator[str]:
    yield from _plain(spec, "Mistral", window=True)


def _not_qwen2(spec: ModelSpec) -> Iterator[str]:
    yield from _plain(spec, "Qwen2", window=True, biased=True)
    if _biases(spec) != (True, False) or spec.feedforward.bias:
        yield "biases other than those of queries, keys and values in Qwen2"


def _not_qwen3(spec: ModelSpec) -> Iterator[str]:
    yield from _llama_family(spec)
    if not spec.attention.qk_gain:
        yield "attention.qk_norm without gains"
    if spec.position.fraction != 1.0:
        yield f"position.fraction = {spec.position.fraction} in Qwen3"
    if len(set(_biases(spec))) > 1 or spec.feedforward.bias:
        yield "biases in Qwen3"


def _not_phi3(spec: ModelSpec) -> Iterator[str]:
    yield from _llama_family(spec)
    if spec.attention.qk_norm:
        yield "attention.qk_norm in Phi-3"
    if any(_biases(spec)) or spec.feedforward.bias:
        yield "biases in Phi-3"
    if spec.attention.head_dim is not None:
        yield "attention.head_dim in Phi-3"
    if spec.position.scaling is not None and not isinstance(spec.position.scaling, LongRope):
        yield f"position.scaling.kind = '{spec.position.scaling.kind}' in Phi-3"


def _not_glm(spec: ModelSpec) -> Iterator[str]:
    yield from _llama_family(spec, "interleaved")
    if _biases(spec)[1] or spec.feedforward.bias:
        yield "biases of outputs in GLM"
    if spec.attention.window is not None or spec.attention.qk_norm:
        yield "attention.window or qk_norm in GLM"
    if spec.position.scaling is not None:
        yield f"position.scaling.kind = '{spec.position.scaling.kind}' in GLM"


def _not_gpt2(spec: ModelSpec) -> Iterator[str]:
    yield from _sequential(spec)
    yield from _gpt_family(spec, "GPT-2")
    if spec.position.kind != "learned":
        yield f"position.kind = '{spec.position.kind}' in GPT-2"
    if _biases(spec) != (True, True):
        yield "attention without biases in GPT-2"


def _gpt_family(spec: ModelSpec, name: str) -> Iterator[str]:
    """What keeps a spec from GPT-2 and from CodeGen."""
    if spec.norm.kind != "layer" or not spec.norm.bias:
        yield f"norms without biases in {name}"
    if spec.feedforward.kind not in ("gelu", "gelu-exact"):
        yield f"feedforward.kind = '{spec.feedforward.kind}' in {name}"
    if not spec.feedforward.bias:
        yield f"feed-forward without biases in {name}"
    if spec.kv_heads != spec.attention.heads or spec.head_dim * spec.attention.heads != spec.width:
        yield f"kv_heads or head_dim in {name}"
    if spec.attention.window is not None or spec.attention.qk_norm:
        yield f"attention.window or qk_norm in {name}"


def _not_codegen(spec: ModelSpec) -> Iterator[str]:
    yield from _gpt_family(spec, "CodeGen")
    if spec.branches != "parallel" or not spec.logit_bias:
        yield "sequential branches, or logits without a bias, in CodeGen"
    position = spec.position
    if (position.kind, position.layout, position.theta) != ("rope", "interleaved", 10_000.0):
        yield "positions other than interleaved RoPE with theta = 10000 in CodeGen"
    if position.scaling is not None:
        yield f"position.scaling.kind = '{position.scaling.kind}' in CodeGen"
    if any(_biases(spec)):
        yield "biases of attention in CodeGen"
    if spec.attention.heads % 4:
        yield f"{spec.attention.heads} heads, which are no multiple of 4, in CodeGen"


def _llama_config(spec: ModelSpec) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.feedforward.hidden,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.attention.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm.eps,
        "tie_word_embeddings": spec.tie_embeddings,
        **_rope(spec),
    }


def _rope(spec: ModelSpec) -> dict[str, Any]:
    """Both spellings: transformers reads ``rope_parameters`` from 5 on, the other before."""
    position = spec.position
    rope: dict[str, Any] = {}
    match position.scaling:
        case None:
            rope["rope_type"] = "default"
        case LinearScaling():
            rope |= {"rope_type": "linear", "factor": position.scaling.factor}
        case DynamicScaling():
            rope |= {"rope_type": "dynamic", "factor": position.scaling.factor}
            if position.scaling.original != spec.context:
                raise FlyweightError(
                    _refusal(["position.scaling.original other than the context, kind 'dynamic'"])
                )
        case Llama3Scaling():
            scaling = position.scaling
            rope |= {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.original,
            }
        case LongRope():
            ones = [1.0] * (spec.rotary_dim // 2)
            rope |= {
                "rope_type": "longrope",
                "short_factor": list(position.scaling.short or ones),
                "long_factor": list(position.scaling.long or ones),
                "original_max_position_embeddings": position.scaling.original,
            }
            if position.scaling.attention is not None:
                rope["attention_factor"] = position.scaling.attention
    values: dict[str, Any] = {"rope_theta": position.theta}
    if isinstance(position.scaling, LongRope):
        # Beside the table, where Phi-3's class looks for it.
        values["original_max_position_embeddings"] = position.scaling.original
        older = {k: v for k, v in rope.items() if k != "original_max_position_embeddings"}
        values["rope_scaling"] = older | {"type": "longrope"}
    elif position.scaling is not None:
        values["rope_scaling"] = dict(rope)
    if position.fraction != 1.0 or position.layout == "interleaved":
        values["partial_rotary_factor"] = position.fraction
        rope["partial_rotary_factor"] = position.fraction
    return values | {"rope_parameters": rope | {"rope_theta": position.theta}}


def _biased_llama(spec: ModelSpec) -> dict[str, Any]:
    biases = {"attention_bias": spec.attention.bias, "mlp_bias": spec.feedforward.bias}
    return _llama_config(spec) | biases


def _glm_config(spec: ModelSpec) -> dict[str, Any]:
    return _llama_config(spec) | {"attention_bias": spec.attention.bias}


def _windowed(spec: ModelSpec) -> dict[str, Any]:
    return _llama_config(spec) | {"sliding_window": spec.attention.window}


def _qwen(spec: ModelSpec) -> dict[str, Any]:
    window = spec.attention.window
    kind = "full_attention" if window is None else "sliding_attention"
    return _llama_config(spec) | {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": spec.depth if window is None else 0,
        "layer_types": [kind] * spec.depth,
    }


def _qwen3_config(spec: ModelSpec) -> dict[str, Any]:
    return _qwen(spec) | {"attention_bias": spec.attention.bias}


def _gpt2_config(spec: ModelSpec) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocab_size,
        "n_embd": spec.width,
        "n_layer": spec.depth,
        "n_head": spec.attention.heads,
        "n_inner": spec.feedforward.hidden,
        "n_positions": spec.context,
        "n_ctx": spec.context,  # its old name, which llama.cpp's converter asks for
        "activation_function": "gelu_new" if spec.feedforward.kind == "gelu" else "gelu",
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": spec.tie_embeddings,
    }


def _codegen_config(spec: ModelSpec) -> dict[str, Any]:
    return _gpt2_config(spec) | {"n_ctx": spec.context, "rotary_dim": spec.rotary_dim}


_ENCODER_DECODERS = ("t5",)
# The first that fits is taken: what keeps a spec from it, its configuration, its layout.
_CLASSES: dict[
    str, tuple[Callable[[ModelSpec], Iterator[str]], Callable[[ModelSpec], dict[str, Any]], str]
] = {
    "llama": (_not_llama, _biased_llama, "llama"),
    "mistral": (_not_mistral, _windowed, "llama"),
    "qwen2": (_not_qwen2, _qwen, "llama"),
    "qwen3": (_not_qwen3, _qwen3_config, "llama"),
    "phi3": (_not_phi3, _windowed, "phi3"),
    "glm": (_not_glm, _glm_config, "glm"),
    "gpt2": (_not_gpt2, _gpt2_config, "gpt2"),
    "codegen": (_not_codegen, _codegen_config, "codegen"),
    "t5": (t5.differs, t5.config, "t5"),
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "glm": "GlmForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "codegen": "CodeGenForCausalLM",
    "t5": "T5ForConditionalGeneration",
}
