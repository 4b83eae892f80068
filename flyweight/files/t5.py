"""T5's config.json, both ways: T5 1.0, 1.1 and FLAN (arXiv:1910.10683, arXiv:2210.11416).

Versions differ in the feed-forward, and in the head: 1.0 ties it to the embedding and scales what
goes into it, 1.1 does neither. transformers 5 writes ``tie_word_embeddings = true`` always, and
whether to scale under a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flyweight.files.config_keys import Keys
from flyweight.spec.model import ModelSpec, Scale

# feed_forward_proj: our name, and that of the activation; "gated-gelu" is GELU's tanh form.
_FEED_FORWARDS = {
    "gated-gelu": ("geglu", "gelu_new"),
    "gated-silu": ("swiglu", "silu"),
    "relu": ("relu", "relu"),
    "gelu_new": ("gelu", "gelu_new"),
    "gelu": ("gelu-exact", "gelu"),
}
_PROJECTIONS = {ours: theirs for theirs, (ours, _) in _FEED_FORWARDS.items()}
# Where nothing says with what the decoder begins, it is the padding, as in every published T5.
_STARTS = ("decoder_start_token_id", "pad_token_id")


def read(config: Keys) -> dict[str, Any]:
    """The spec's tables. Whether the head is tied is for the weights to say."""
    config.only("is_encoder_decoder", True)
    config.only("is_decoder", False)
    width, heads = config.whole("d_model"), config.whole("num_heads")
    attention: dict[str, Any] = {"heads": heads, "kv_heads": heads, "scale": "1"}
    head = config.whole("d_kv", "head_dim", default=64)
    if head * heads != width:
        attention["head_dim"] = head
    named = config.only("feed_forward_proj", *_FEED_FORWARDS) or "relu"
    kind, activation = _FEED_FORWARDS[named]
    config.only("dense_act_fn", activation)
    config.only("is_gated_act", named.startswith("gated-"))
    encoder = {"depth": config.whole("num_layers"), "start": config.id(*_STARTS)}
    tied = config.flag("tie_word_embeddings", default=True)
    spec: dict[str, Any] = {
        "vocab_size": config.whole("vocab_size"),
        "width": width,
        "depth": config.whole("num_decoder_layers", default=encoder["depth"]),
        "context": config.whole("n_positions", default=512),
        "norm": {"kind": "rms", "eps": config.number("layer_norm_epsilon", default=1e-6)},
        "position": {
            "kind": "relative",
            "buckets": config.whole("relative_attention_num_buckets", default=32),
            "max_distance": config.whole("relative_attention_max_distance", default=128),
        },
        "attention": attention,
        "feedforward": {"kind": kind, "hidden": config.whole("d_ff")},
        "encoder": encoder,
        "tie_embeddings": tied,
    }
    if config.flag("scale_decoder_outputs", default=tied):
        spec["scale"] = {"logits": width**-0.5}
    return spec


def scales_its_head(spec: ModelSpec) -> bool:
    """Whether the multipliers are those of T5 1.0, which its class knows: its tied head's."""
    only_logits = Scale(logits=spec.width**-0.5)
    return spec.encoder is not None and spec.tie_embeddings and spec.scale == only_logits


def differs(spec: ModelSpec) -> Iterator[str]:
    """What keeps an encoder-decoder from T5's class."""
    attention = spec.attention
    if spec.norm.kind != "rms":
        yield "norm.kind = 'layer' in T5"
    if attention.scale != "1":
        yield f"attention.scale = '{attention.scale}' in T5"
    if spec.feedforward.kind not in _PROJECTIONS:
        yield f"feedforward.kind = '{spec.feedforward.kind}' in T5"
    if attention.bias or attention.output_bias or spec.feedforward.bias or spec.logit_bias:
        yield "biases in T5"
    if spec.kv_heads != attention.heads:
        yield "kv_heads in T5"
    if attention.qk_norm:
        yield "attention.qk_norm in T5"


def config(spec: ModelSpec) -> dict[str, Any]:
    """The keys that describe ``spec``, from which nothing ``differs``."""
    assert spec.encoder is not None
    return {
        "vocab_size": spec.vocab_size,
        "d_model": spec.width,
        "d_kv": spec.head_dim,
        "d_ff": spec.feedforward.hidden,
        "num_layers": spec.encoder.depth,
        "num_decoder_layers": spec.depth,
        "num_heads": spec.attention.heads,
        "n_positions": spec.context,
        "relative_attention_num_buckets": spec.position.buckets,
        "relative_attention_max_distance": spec.position.max_distance,
        "feed_forward_proj": _PROJECTIONS[spec.feedforward.kind],
        "layer_norm_epsilon": spec.norm.eps,
        "is_encoder_decoder": True,
        "decoder_start_token_id": spec.encoder.start,
        # To T5's class this says whether the head's input is scaled, too.
        "tie_word_embeddings": scales_its_head(spec),
    }
