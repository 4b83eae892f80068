"""Small decoders with weights that are nowhere zero, and real text for them to read."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402

EOT = 257
PATCHES = {"kind": "patches", "width": 24, "hidden": 40, "size": 6, "decoder_depth": 2}
FEATURES = {
    "ngrams": {"orders": [2, 3, 5], "rows": 64, "dim": 6},
    "matches": {"lengths": [1, 3, 6]},
}
# Every way that bytes go in, and every way that order reaches attention.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "features": FEATURES,
    "fixed patches": {"input": {**PATCHES, "patch": "fixed"}},
    "word patches": {"input": {**PATCHES, "patch": "word", "front_depth": 1}, **FEATURES},
    "slots": {
        "input": {
            **{"kind": "slots", "slots": 3, "width": 8, "hidden": 16, "heads": 2},
            **{"front_depth": 1, "decoder_depth": 1},
        }
    },
    "slots as published": {
        "input": {
            **{"kind": "slots", "slots": 3, "width": 8, "hidden": 16, "heads": 2},
            **{"front_depth": 2, "front_widths": [16, 32], "decoder_depth": 1},
        }
    },
    "alibi": {"position": {"kind": "alibi"}},
    "learned": {"position": {"kind": "learned"}},
    "no position": {"position": {"kind": "none"}},
    "relative": {
        "position": {"kind": "relative", "buckets": 8, "max_distance": 20},
        "attention": {"heads": 4, "kv_heads": 2, "scale": "1"},
        "feedforward": {"kind": "geglu", "hidden": 48},
    },
    "relative, window": {
        "position": {"kind": "relative"},
        "attention": {"heads": 4, "window": 7},
        "feedforward": {"kind": "relu", "hidden": 48},
    },
    "window": {"attention": {"heads": 4, "kv_heads": 2, "window": 7}},
    "window, alibi": {
        "attention": {"heads": 4, "window": 7},
        "position": {"kind": "alibi"},
    },
    "window, patches": {
        "attention": {"heads": 4, "window": 3, "qk_norm": True},
        "input": {**PATCHES, "patch": "word"},
    },
    "parallel": {
        "branches": "parallel",
        "logit_bias": True,
        "position": {"fraction": 0.5, "layout": "interleaved"},
    },
    "gains on queries and keys": {
        "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_gain": True},
    },
    "shared": {"depth": 3, "share": {"feedforward": "interior", "lora_rank": 3}},
    "repeated": {"share": {"block": "adjacent", "repeat": 2}, "scale": {"residual": 0.5}},
}


def build(seed: int = 0, **changes: Any) -> Decoder:
    values: dict[str, Any] = {
        "vocab_size": 258,
        "width": 32,
        "depth": 2,
        "context": 128,
        "attention": {"heads": 4, "kv_heads": 2},
        "feedforward": {"kind": "swiglu", "hidden": 48},
        **changes,
    }
    model = Decoder(ModelSpec.parse(values))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
            parameter += torch.randn(parameter.shape, generator=generator) * wide
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * wide)
    if model.slots is not None:
        model.slots.spell(ByteTokenizer())
    return model.eval()


@pytest.fixture(scope="session")
def decoder() -> Callable[..., Decoder]:
    return build


@pytest.fixture(params=sorted(KINDS))
def any_decoder(request: pytest.FixtureRequest) -> Decoder:
    return build(**KINDS[request.param])


@pytest.fixture(scope="session")
def source() -> bytes:
    return Path(str(textwrap.__file__)).read_bytes()


@pytest.fixture(scope="session", name="text_BT")
def text(source: bytes) -> torch.Tensor:
    """Three rows of 60 tokens, each the beginning of a document. (3, 60)."""
    rows = [[EOT, *source[at : at + 59]] for at in (0, 1500, 3000)]
    return torch.tensor(rows)
