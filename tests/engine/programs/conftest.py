"""Small models of every family with weights that are nowhere zero, and real text for them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.engine.compile import compile_model, uncovered  # noqa: E402
from flyweight.engine.program import Program  # noqa: E402
from flyweight.files.weights import StoredTensor  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.text.spelling import PAD  # noqa: E402
from flyweight.zoo import catalog  # noqa: E402

EOT = 257
PATCHES = {"kind": "patches", "width": 24, "hidden": 40, "size": 6, "decoder_depth": 2}
FEATURES = {
    "ngrams": {"orders": [2, 3, 5], "rows": 64, "dim": 6},
    "matches": {"lengths": [1, 3, 6]},
}
SLOTS = {"kind": "slots", "slots": 5, "width": 16, "hidden": 24, "heads": 2, "decoder_depth": 2}
_TOKENS: dict[str, Any] = {
    "vocab_size": 258,
    "width": 32,
    "depth": 2,
    "context": 128,
    "attention": {"heads": 4, "kv_heads": 2},
    "feedforward": {"kind": "swiglu", "hidden": 48},
}
_LONG = {"kind": "longrope", "original": 24, "short": [1.0, 1.3], "long": [2.5, 7.0]}
# What the zoo's own entries do not have between them.
KINDS: dict[str, dict[str, Any]] = {
    "features": FEATURES,
    "features, scaled": {**FEATURES, "scale": {"embedding": 3.0}},
    "fixed patches": {"input": {**PATCHES, "patch": "fixed"}},
    "word patches": {"input": {**PATCHES, "patch": "word", "front_depth": 1}, **FEATURES},
    "patches, layer norm": {
        "input": {**PATCHES, "patch": "word"},
        "norm": {"kind": "layer", "bias": True},
        "feedforward": {"kind": "gelu-exact", "hidden": 40, "bias": True},
    },
    "window, patches": {
        "attention": {"heads": 4, "window": 3, "qk_norm": True},
        "input": {**PATCHES, "patch": "word"},
    },
    "no position": {"position": {"kind": "none"}},
    "window": {"attention": {"heads": 4, "kv_heads": 2, "window": 7}},
    "window, alibi": {"attention": {"heads": 6, "window": 7, "head_dim": 8}, "width": 48}
    | {"position": {"kind": "alibi"}},
    "interpolated alibi": {
        "position": {"kind": "alibi", "scaling": {"kind": "linear", "original": 24}}
    },
    "parallel": {
        "branches": "parallel",
        "logit_bias": True,
        "scale": {"logits": 0.5, "residual": 0.7},
        "position": {"fraction": 0.5, "layout": "interleaved"},
    },
    "gains on queries and keys": {
        "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_gain": True},
    },
    "shared, squared ReLU": {
        "depth": 3,
        "share": {"feedforward": "interior", "lora_rank": 3},
        "feedforward": {"kind": "relu2", "hidden": 48, "bias": True},
        "scale": {"residual": 0.3},
    },
    "no output bias": {"attention": {"heads": 4, "bias": True, "output_bias": False}},
    "exact gelu": {"feedforward": {"kind": "gelu-exact", "hidden": 48}},
    "learned, scaled": {"position": {"kind": "learned"}, "scale": {"embedding": 3.0}},
    "learned, featured, scaled": {
        **FEATURES,
        "position": {"kind": "learned"},
        "scale": {"embedding": 3.0},
    },
    "geglu": {"feedforward": {"kind": "geglu", "hidden": 48}},
    "relu": {"feedforward": {"kind": "relu", "hidden": 48}},
    "plain scores": {"attention": {"heads": 4, "scale": "1"}},
    "linear": {"position": {"scaling": {"kind": "linear", "factor": 4.0}}},
    "dynamic": {"position": {"scaling": {"kind": "dynamic", "factor": 4.0, "original": 24}}},
    "llama3": {"position": {"scaling": {"kind": "llama3", "factor": 8.0, "original": 32}}},
    "longrope": {"position": {"fraction": 0.5, "scaling": _LONG}},
    "slots": {"input": {**SLOTS, "front_depth": 2}},
    "slots, learned, scaled, layer norm": {
        "input": {**SLOTS, "front_depth": 1, "heads": 4},
        "position": {"kind": "learned"},
        "norm": {"kind": "layer", "bias": True},
        "scale": {"embedding": 3.0, "residual": 0.5},
    },
    "two slots, alibi": {
        "input": {**SLOTS, "slots": 2, "front_depth": 2, "front_widths": [24, 32]},
        "position": {"kind": "alibi"},
    },
}


def reduced(name: str) -> dict[str, Any]:
    """The zoo's spec ``name`` with every part it has, few layers and small widths."""
    values = catalog.get(name).spec.values()
    repeat = values["share"]["repeat"]
    values["depth"] = 5 if values["share"]["feedforward"] == "interior" else 3 if repeat == 1 else 2
    values["vocab_size"] = 258 if values["vocab_size"] == 258 else 300
    values["context"] = 96
    attention = values["attention"]
    groups = attention["heads"] // (attention.get("kv_heads") or attention["heads"])
    heads = 2 * groups
    values["width"] = heads * 16
    attention["heads"] = heads
    if "kv_heads" in attention:
        attention["kv_heads"] = 2
    if "head_dim" in attention:
        attention["head_dim"] = 24
    values["feedforward"]["hidden"] = 72
    if values["input"]["kind"] == "patches":
        values["input"] |= {"width": 24, "hidden": 40}
    if values["input"]["kind"] == "slots":
        fronts = {"front_depth": 2, "front_widths": [32, values["width"]]}
        values["input"] |= {**SLOTS, **fronts}
    if "ngrams" in values:
        values["ngrams"] |= {"rows": 64, "dim": 6}
    if "scaling" in values["position"]:
        values["position"]["scaling"] |= {"original": 24}
    return values


def covered() -> list[str]:
    """The zoo's entries that the engine runs, one for each different reduced shape."""
    seen: dict[str, str] = {}
    for name in catalog.names():
        if uncovered(catalog.get(name).spec) is None:
            seen.setdefault(repr(reduced(name)), name)
    return list(seen.values())


def build(values: dict[str, Any], seed: int = 0) -> Decoder:
    model = Decoder(ModelSpec.parse({**_TOKENS, **values}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
            noise = torch.randn(parameter.shape, generator=generator) * wide
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
        if model.slots is not None:
            # Tokens of every length, one without any bytes, and <eot>.
            table = model.slots.spelling
            table.copy_(torch.randint(0, 256, table.shape, generator=generator))
            lengths = torch.arange(len(table)) % table.shape[1] + 1
            table[torch.arange(table.shape[1]) >= lengths[:, None]] = PAD
            table[7], table[EOT, 1:], table[EOT, 0] = PAD, PAD, EOT
    return model.eval()


def compiled(decoder: Decoder, tensors: Mapping[str, StoredTensor]) -> Program:
    """The program of a decoder, its tokens spelled as the decoder has them."""
    spelled = None if decoder.slots is None else decoder.slots.spelling.numpy()
    return compile_model(decoder.spec, tensors, spelled)


def stored(decoder: Decoder) -> dict[str, StoredTensor]:
    """The decoder's tensors in float32, as the engine takes them."""
    found = {}
    for name, tensor in decoder.state_dict().items():
        values = np.ascontiguousarray(tensor.numpy())
        rows = 1 if values.ndim == 1 else len(values)
        data = values.view(np.uint8).reshape(-1)
        found[name] = StoredTensor(0, rows, values.size // rows, data)
    return found


CASES = {**{f"zoo: {name}": name for name in covered()}, **KINDS}


def case(name: str, seed: int = 0) -> Decoder:
    given = CASES[name]
    return build(reduced(given) if isinstance(given, str) else given, seed)


@pytest.fixture(scope="session", params=list(CASES))
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each family of the zoo, reduced, and what none of them has."""
    return case(request.param)


@pytest.fixture(scope="session")
def make() -> Callable[..., Decoder]:
    return build


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Decoder], dict[str, StoredTensor]]:
    return stored


@pytest.fixture(scope="session")
def source() -> bytes:
    return Path(str(textwrap.__file__)).read_bytes()


@pytest.fixture(scope="session")
def tokens(source: bytes) -> list[int]:
    """Sixty tokens of the standard library's source as bytes, an end of text before them."""
    return [EOT, *source[1500:1559]]
