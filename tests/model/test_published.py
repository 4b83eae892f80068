"""The zoo's own families against plain float64 versions of their papers' formulas.

Each model is the zoo's, with fewer layers and smaller widths; the plain version is written for its
family alone, position by position, and knows nothing of the decoder but the names of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.zoo import catalog  # noqa: E402

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]
VOCAB, LENGTH = 300, 40


# The parts, as the papers write them


def rms(x: Array, gain: Array, eps: float = 1e-5) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def layer_norm(x: Array, gain: Array, bias: Array, eps: float = 1e-5) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain + bias


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max())
    return x / x.sum()


def turned(x: Array, position: int, rotary: int, pairs: str) -> Array:
    """One head's vector at one position, its first ``rotary`` dimensions rotated."""
    y = x.copy()
    for i in range(rotary // 2):
        a, b = (i, i + rotary // 2) if pairs == "half" else (2 * i, 2 * i + 1)
        angle = position * 10_000.0 ** (-2 * i / rotary)
        y[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
        y[b] = x[a] * np.sin(angle) + x[b] * np.cos(angle)
    return y


def attention(
    qkv: Array,
    heads: int,
    kv_heads: int,
    scale: float,
    rotary: int = 0,
    pairs: str = "half",
    slopes: Array | None = None,
    causal: bool = True,
    seen: Array | None = None,
) -> Array:
    """Rows of queries, keys and values side by side (T, ...) to attended values (T, heads d)."""
    d = qkv.shape[1] // (heads + 2 * kv_heads)
    split = qkv.reshape(len(qkv), heads + 2 * kv_heads, d)
    q, k, v = split[:, :heads], split[:, heads : heads + kv_heads], split[:, heads + kv_heads :]
    out = np.zeros((len(qkv), heads, d))
    for h in range(heads):
        g = h // (heads // kv_heads)
        keys = [turned(k[j, g], j, rotary, pairs) for j in range(len(k))]
        for i in range(len(q)):
            query = turned(q[i, h], i, rotary, pairs)
            to = [j for j in range(len(k)) if (j <= i or not causal) and (seen is None or seen[j])]
            scores = np.array([query @ keys[j] * scale for j in to])
            if slopes is not None:
                scores -= np.array([slopes[h] * (i - j) for j in to])
            out[i, h] = softmax(scores) @ np.stack([v[j, g] for j in to])
    return out.reshape(len(qkv), heads * d)


def swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    gate, up = np.split(gate_up, 2)
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


# The models


def llama_block(w: Weights, at: str, h: Array, heads: int, kv: int, **options: Any) -> Array:
    """h plus its attention; the feed-forward differs between the families."""
    x = rms(h, w[f"{at}attention_norm.weight"]) @ w[f"{at}attention.qkv.weight"].T
    d = x.shape[1] // (heads + 2 * kv)
    options = {"rotary": d, **options}
    scale = options.pop("residual", 1.0)
    y = attention(x, heads, kv, d**-0.5, **options)
    return h + scale * (y @ w[f"{at}attention.output.weight"].T)


def own_feedforward(w: Weights, at: str, x: Array) -> Array:
    down = w[f"{at}feedforward.down.weight"]
    return swiglu(x, w[f"{at}feedforward.gate_up.weight"], down)


def btlm(w: Weights, tokens: list[int], trained: int = 10**9) -> Array:
    """Embeddings times 14.6, scores over d, ALiBi, SwiGLU, logits times 2.22 * 0.1.

    Beyond ``trained`` positions the slopes are multiplied by trained / length (arXiv:2310.13017).
    """
    slopes = np.array([2.0 ** (-2 * n) for n in range(1, 5)]) * min(1, trained / len(tokens))
    h = 14.6 * w["embedding.weight"][tokens]
    for i in range(3):
        at = f"blocks.{i}."
        x = layer_norm(h, w[f"{at}attention_norm.weight"], w[f"{at}attention_norm.bias"])
        x = x @ w[f"{at}attention.qkv.weight"].T + w[f"{at}attention.qkv.bias"]
        x = attention(x, 4, 4, 1 / 8, slopes=slopes)
        h = h + x @ w[f"{at}attention.output.weight"].T + w[f"{at}attention.output.bias"]
        x = layer_norm(h, w[f"{at}feedforward_norm.weight"], w[f"{at}feedforward_norm.bias"])
        x = x @ w[f"{at}feedforward.gate_up.weight"].T + w[f"{at}feedforward.gate_up.bias"]
        gate, up = np.split(x, 2, axis=1)
        h = h + (up * silu(gate)) @ w[f"{at}feedforward.down.weight"].T
        h = h + w[f"{at}feedforward.down.bias"]
    h = layer_norm(h, w["norm.weight"], w["norm.bias"])
    return 2.22 * 0.1 * (h @ w["embedding.weight"].T)


def geb(w: Weights, tokens: list[int]) -> Array:
    """Half of each head rotates, in neighbouring pairs; grouped queries; a head of its own."""
    h = w["embedding.weight"][tokens]
    for i in range(3):
        at = f"blocks.{i}."
        h = llama_block(w, at, h, 4, 1, rotary=4, pairs="neighbours")
        h = h + own_feedforward(w, at, rms(h, w[f"{at}feedforward_norm.weight"]))
    return rms(h, w["norm.weight"]) @ w["head.weight"].T


def minicpm(w: Weights, tokens: list[int]) -> Array:
    """Embeddings times 12, residual branches times 1.4 / sqrt(L), logits times 256 / d."""
    h = 12 * w["embedding.weight"][tokens]
    residual = 1.4 / np.sqrt(3)
    for i in range(3):
        at = f"blocks.{i}."
        h = llama_block(w, at, h, 4, 2, residual=residual)
        h = h + residual * own_feedforward(w, at, rms(h, w[f"{at}feedforward_norm.weight"]))
    return 256 / 32 * (rms(h, w["norm.weight"]) @ w["embedding.weight"].T)


def mobillama(w: Weights, tokens: list[int]) -> Array:
    """One feed-forward object in every layer."""
    h = w["embedding.weight"][tokens]
    gate_up, down = (w[f"shared_feedforward.{n}.weight"] for n in ("gate_up", "down"))
    for i in range(3):
        at = f"blocks.{i}."
        h = llama_block(w, at, h, 4, 4)
        h = h + swiglu(rms(h, w[f"{at}feedforward_norm.weight"]), gate_up, down)
    return rms(h, w["norm.weight"]) @ w["head.weight"].T


def mobilellm_ls(w: Weights, tokens: list[int]) -> Array:
    """h = B_i(h) twice, then the next block; the head is the embedding."""
    h = w["embedding.weight"][tokens]
    for i in (0, 0, 1, 1, 2, 2):
        at = f"blocks.{i}."
        h = llama_block(w, at, h, 4, 2)
        h = h + own_feedforward(w, at, rms(h, w[f"{at}feedforward_norm.weight"]))
    return rms(h, w["norm.weight"]) @ w["embedding.weight"].T


def stlm_shared(w: Weights, tokens: list[int]) -> Array:
    """Layers 0, 1, 5 and 6 have their own matrices; 2, 3 and 4 use W + V U, with V and U theirs."""
    h = w["embedding.weight"][tokens]
    for i in range(7):
        at = f"blocks.{i}."
        h = llama_block(w, at, h, 4, 1)
        x = rms(h, w[f"{at}feedforward_norm.weight"])
        if i in (0, 1, 5, 6):
            h = h + own_feedforward(w, at, x)
            continue
        low = {
            n: w[f"{at}update.{n}.up.weight"] @ w[f"{at}update.{n}.down.weight"]
            for n in ("gate", "up", "down")
        }
        gate, up = np.split(w["shared_feedforward.gate_up.weight"], 2)
        down = w["shared_feedforward.down.weight"] + low["down"]
        h = h + (silu(x @ (gate + low["gate"]).T) * (x @ (up + low["up"]).T)) @ down.T
    return rms(h, w["norm.weight"]) @ w["embedding.weight"].T


def stlm_bytes(w: Weights, tokens: list[int]) -> Array:
    """A token's bytes through blocks that see them all, averaged; the next token's bytes at once.

    The score of a token is log p of its bytes and of the end after them.
    """
    spelling = w["spelling"].astype(int)
    vectors = []
    for token in tokens:
        real = spelling[token] != 256
        real[0] = True
        x = w["slots.embedding"][spelling[token]] + w["slots.front_offset"]
        for i in range(2):
            at = f"slots.front.{i}."
            y = rms(x, w[f"{at}attention_norm.weight"]) @ w[f"{at}attention.qkv.weight"].T
            y = attention(y, 2, 2, (x.shape[1] / 2) ** -0.5, causal=False, seen=real)
            x = x + y @ w[f"{at}attention.output.weight"].T
            y = rms(x, w[f"{at}feedforward_norm.weight"])
            y = gelu(y @ w[f"{at}feedforward.up.weight"].T)
            x = y @ w[f"{at}feedforward.down.weight"].T  # no residual: the width changes
        vectors.append(x[real].mean(axis=0))
    h = np.stack(vectors)
    for i in range(3):
        at = f"blocks.{i}."
        h = llama_block(w, at, h, 4, 1)
        h = h + own_feedforward(w, at, rms(h, w[f"{at}feedforward_norm.weight"]))
    h = rms(h, w["norm.weight"]) @ w["slots.from_core.weight"].T
    scores = np.zeros((len(tokens), VOCAB))
    for t, row in enumerate(h):
        x = row.reshape(4, 8) + w["slots.back_offset"]
        for i in range(2):
            at = f"slots.back.{i}."
            y = rms(x, w[f"{at}attention_norm.weight"]) @ w[f"{at}attention.qkv.weight"].T
            y = attention(y, 2, 2, 4**-0.5, causal=False)
            x = x + y @ w[f"{at}attention.output.weight"].T
            y = rms(x, w[f"{at}feedforward_norm.weight"])
            y = gelu(y @ w[f"{at}feedforward.up.weight"].T)
            x = x + y @ w[f"{at}feedforward.down.weight"].T
        symbols = rms(x, w["slots.back_norm.weight"]) @ w["slots.head.weight"].T
        log_p = np.stack([np.log(softmax(slot)) for slot in symbols])
        for v in range(VOCAB):
            length = int((spelling[v] != 256).sum())
            last = min(length + 1, 4)
            scores[t, v] = sum(log_p[s, spelling[v, s]] for s in range(last))
    return scores


SMALL = {"vocab_size": VOCAB, "width": 32, "depth": 3, "context": 64}
Plain = Callable[[Weights, list[int]], Array]
# The zoo's name, how it is made smaller, and its plain version.
FAMILIES: list[tuple[str, dict[str, Any], Plain]] = [
    ("btlm-3b-8k", {"attention": {"heads": 4, "kv_heads": 4}}, btlm),
    ("geb-1.3b", {"attention": {"heads": 4, "kv_heads": 1}}, geb),
    (
        "minicpm-1.2b",
        {
            "attention": {"heads": 4, "kv_heads": 2},
            "scale": {"residual": 1.4 / 3**0.5, "logits": 256 / 32},
        },
        minicpm,
    ),
    ("mobillama-0.5b", {"attention": {"heads": 4, "kv_heads": 4}}, mobillama),
    ("mobilellm-ls-125m", {"attention": {"heads": 4, "kv_heads": 2}}, mobilellm_ls),
    (
        "stlm-shared",
        {"depth": 7, "attention": {"heads": 4, "kv_heads": 1}, "share": {"lora_rank": 3}},
        stlm_shared,
    ),
    (
        "stlm-bytes",
        {
            "attention": {"heads": 4, "kv_heads": 1},
            "input": {
                **{"slots": 4, "width": 8, "hidden": 20, "heads": 2, "front_depth": 2},
                **{"front_widths": [16, 32], "decoder_depth": 2},
            },
        },
        stlm_bytes,
    ),
]
EACH = pytest.mark.parametrize(("name", "changes", "plain"), FAMILIES, ids=[f[0] for f in FAMILIES])


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, value in changes.items():
        inner = isinstance(value, dict) and key in result
        result[key] = merged(result[key], value) if inner else value
    return result


def small(name: str, changes: dict[str, Any]) -> Decoder:
    """The zoo's model made small, with weights that are nowhere what they start as."""
    values = merged(catalog.get(name).spec.values(), {**SMALL, "feedforward": {"hidden": 40}})
    model = Decoder(ModelSpec.parse(merged(values, changes)))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * wide)
            if parameter.ndim == 1:
                parameter += 1
        if model.embedding.weight is not None:
            model.embedding.weight *= 2
        if model.slots is not None:
            # Tokens of one to four bytes, one without any, and <eot>.
            spelling = torch.randint(0, 256, model.slots.spelling.shape, generator=generator)
            lengths = torch.arange(VOCAB) % 4 + 1
            spelling[torch.arange(4) >= lengths[:, None]] = 256
            spelling[7], spelling[8, 1:], spelling[8, 0] = 256, 256, 257
            model.slots.spelling.copy_(spelling)
    return model.eval()


def weights(model: Decoder) -> Weights:
    found = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    return found if model.slots is None else found | {"spelling": model.slots.spelling.numpy()}


def near(found: torch.Tensor, expected: Array) -> bool:
    """Within 1e-4 of the largest logit."""
    return float(np.abs(found.double().numpy() - expected).max()) < 1e-4 * np.abs(expected).max()


@EACH
@torch.no_grad()
def test_logits_are_the_papers(
    name: str, changes: dict[str, Any], plain: Plain, source: bytes
) -> None:
    model = small(name, changes)
    row = list(source[:LENGTH])
    expected = plain(weights(model), row)
    assert expected.std() > 0.3
    assert near(model(torch.tensor([row]))[0], expected)


@EACH
@torch.no_grad()
def test_a_cache_and_a_batch_of_unequal_lengths_say_the_same(
    name: str, changes: dict[str, Any], plain: Plain, source: bytes
) -> None:
    model = small(name, changes)
    rows = [list(source[:LENGTH]), list(source[900:917]), list(source[300:331])]
    alone = [model(torch.tensor([row]))[0] for row in rows]
    padded = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    for row, logits, single in zip(rows, model(padded), alone, strict=True):
        assert near(logits[: len(row)], single.double().numpy())
        cache = model.new_cache()
        parts = torch.tensor([row]).split([9, 1, 1, len(row) - 11], dim=1)
        cached = torch.cat([model(part, cache=cache) for part in parts], dim=1)[0]
        assert near(cached, single.double().numpy())
        assert len(cache.slots) == model.spec.uses


@torch.no_grad()
@pytest.mark.parametrize("length", [12, 16, 17, 40])
def test_btlm_beyond_its_training_length(source: bytes, length: int) -> None:
    changes = {**FAMILIES[0][1], "position": {"scaling": {"kind": "linear", "original": 16}}}
    model = small("btlm-3b-8k", changes)
    row = list(source[:length])
    expected = btlm(weights(model), row, trained=16)
    assert near(model(torch.tensor([row]))[0], expected)
    plain = btlm(weights(model), row)
    assert (np.abs(plain - expected).max() > 1e-3) == (length > 16)


@pytest.mark.parametrize("name", [n for n in catalog.names() if n.startswith("minicpm")])
def test_minicpms_numbers_are_its_formulas(name: str) -> None:
    spec = catalog.get(name).spec
    assert spec.scale.embedding == 12
    assert spec.scale.residual == pytest.approx(1.4 / spec.depth**0.5, rel=1e-12)
    assert spec.scale.logits == pytest.approx(256 / spec.width, rel=1e-12)


def test_btlms_and_jais_numbers_are_their_formulas() -> None:
    btlm_scale = catalog.get("btlm-3b-8k").spec.scale
    assert btlm_scale.logits == pytest.approx(2.22 * 0.1)
    jais = catalog.get("jais-256m").spec
    assert jais.scale.logits == pytest.approx(1.09518349815769 * 256 / jais.width)
