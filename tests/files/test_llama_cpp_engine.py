"""Our engine and llama.cpp on one file: ours in every type, and those that llama.cpp quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flyweight.files.gguf_types import FILE_TYPES
from flyweight.load import load
from flyweight.spec.model import ModelSpec
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.talk import Sampling, Talker

from .peer import CONTEXT, MODELS, Peer, decoder_of, exported, llama_cpp, log_softmax, spec_of

pytestmark = pytest.mark.oracle

TEXT = 'def heappush(heap, item):\n    """Push it, naïvely.""" # 12 €\n'


def stored(name: str, path: Path, type: str = "f32", **changes: object) -> Peer:
    """llama.cpp with a file of ours at ``path``."""
    spec = ModelSpec.parse(spec_of(name).values() | {"vocab_size": 258} | changes)
    return exported(decoder_of(spec), ByteTokenizer(), path, type)


def beside(path: Path, peer: Peer) -> tuple[float, float]:
    """How far the two are apart: the log probabilities of a text's tokens, root of the mean square
    in nats; and how much likelier llama.cpp's choice of the next token ever is to it than ours."""
    ours = load(path, threads=2)
    scored = ours.logprobs(TEXT, bos=True)
    ids = ours.tokenizer.encode(TEXT, bos=True)
    assert [token for token, _ in scored] == ids[1:] == peer.tokens(TEXT) and len(ids) > 60
    theirs = log_softmax(peer.logits(ids)[:-1])
    off = np.array([p for _, p in scored]) - theirs[np.arange(len(ids) - 1), ids[1:]]
    return float(np.sqrt((off**2).mean())), _worst_choice(ours, peer, ids)


def _worst_choice(ours: Talker, peer: Peer, ids: list[int]) -> float:
    count = CONTEXT - len(ids)
    chosen = [step.token for step in ours.steps(ids, Sampling(count, count))]
    assert len(chosen) == count >= 20
    after = log_softmax(peer.logits([*ids, *chosen]))[len(ids) - 1 : -1]
    after[:, 256:] = -np.inf  # the pad and the end of text, which were not to be chosen
    return float((after.max(1) - after[np.arange(count), chosen]).max())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_log_likelihoods_and_greedy_continuations(name: str, tmp_path: Path) -> None:
    peer = stored(name, tmp_path / "out.gguf")
    # ggml's GELU is a table in half precision.
    tolerance = 2e-2 if MODELS[name][0].startswith("gpt2") else 2e-4
    off, choice = beside(tmp_path / "out.gguf", peer)
    assert off < tolerance and choice < 4 * tolerance


WIDE = {"width": 256, "feedforward": {"kind": "swiglu", "hidden": 512}}
# llama.cpp and we round activations to 8 bits, K-quants' in blocks of 256 there and 32 here: 0.02
# to 0.05 nats, and 0.04 to 0.10.
OFF = 0.15


@pytest.mark.parametrize("type", sorted(FILE_TYPES))
def test_our_files_of_every_type(type: str, tmp_path: Path) -> None:
    peer = stored("llama", tmp_path / "out.gguf", type, **WIDE)
    off, choice = beside(tmp_path / "out.gguf", peer)
    tolerance = {"f32": 2e-4, "f16": 2e-2, "bf16": 5e-2}.get(type, OFF)
    assert off < tolerance and choice < 4 * tolerance


THEIRS = (
    *("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"),
    *("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("type", THEIRS)
def test_files_that_llama_cpp_quantised(type: str, name: str, tmp_path: Path) -> None:
    plain, made = tmp_path / "f32.gguf", tmp_path / "made.gguf"
    stored(name, plain, **(WIDE if name != "gpt2" else {"width": 256}))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}")
    parameters.nthread = 1
    paths = str(plain).encode(), str(made).encode()
    assert llama_cpp.llama_model_quantize(*paths, parameters) == 0
    assert made.stat().st_size < plain.stat().st_size
    off, choice = beside(made, Peer(made))
    assert off < OFF and choice < 4 * OFF
