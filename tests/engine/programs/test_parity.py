"""The kernels compute what the torch model computes, teacher-forced on real text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("flyweight.engine._native", reason="the engine is not built")

from flyweight.engine.positions import reading  # noqa: E402
from flyweight.files.convert import Converted  # noqa: E402
from flyweight.files.weights import StoredTensor, dequantised  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402

from .conftest import PATCHES, SLOTS, compiled  # noqa: E402

TensorsOf = Callable[[Decoder], dict[str, StoredTensor]]
ISAS = native.kernels.instruction_sets()
F32, Q8_0, BF16 = 0, 8, 30


class Machine:
    """A decoder's program on our kernels; ``run`` feeds a new sequence, in pieces."""

    def __init__(
        self, decoder: Decoder, tensors: Any, threads: int = 1, isa: str = "", cache: int = F32
    ) -> None:
        self.spec, self.cache = decoder.spec, cache
        self.executor = native.Executor(compiled(decoder, tensors), threads, isa)

    def run(self, tokens: list[int], *sizes: int) -> Any:
        """Logits after every token, the tokens fed in pieces of ``sizes``, then the rest."""
        read = reading(self.spec, len(tokens))
        sequence = self.executor.begin(read.frequencies, read.gain, read.divisor, self.cache)
        found, at = [], 0
        for size in (*sizes, len(tokens)):
            piece = tokens[at : at + size]
            if piece:
                found.append(self.executor.feed([sequence], [piece], "all"))
            at += size
        return np.concatenate(found)


def logits_of(decoder: Decoder, tokens: list[int]) -> Any:
    with torch.no_grad():
        return decoder(torch.tensor([tokens]))[0].numpy()


def error(found: Any, expected: Any) -> float:
    """The largest difference, of the logits' standard deviation."""
    return float(np.abs(found - expected).max() / expected.std())


def typical_error(found: Any, expected: Any) -> float:
    """The root of the mean squared difference, of the logits' standard deviation."""
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


def test_float32_is_the_torch_model(
    decoder: Decoder, tensors_of: TensorsOf, tokens: list[int]
) -> None:
    found = Machine(decoder, tensors_of(decoder)).run(tokens)
    assert error(found, logits_of(decoder, tokens)) < 1e-4


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_the_torch_model(
    make: Any, tensors_of: TensorsOf, tokens: list[int], isa: str
) -> None:
    decoder = make({"attention": {"heads": 4, "kv_heads": 2, "qk_norm": True}})
    machine = Machine(decoder, tensors_of(decoder), isa=isa)
    assert machine.executor.isa == isa
    assert error(machine.run(tokens), logits_of(decoder, tokens)) < 1e-4


def test_neither_threads_nor_pieces_change_a_bit(
    decoder: Decoder, tensors_of: TensorsOf, tokens: list[int]
) -> None:
    tensors = tensors_of(decoder)
    at_once = Machine(decoder, tensors).run(tokens)
    for threads, sizes in ((1, [1] * 60), (2, []), (3, [1, 7, 1, 1, 20, 2])):
        found = Machine(decoder, tensors, threads).run(tokens, *sizes)
        assert np.array_equal(found, at_once), (threads, sizes)


# Formats other than float32: the same weights, dequantised, in torch's float32. What is left is
# the rounding of the products' inputs, to 8 bits (1 in 254 of a block's largest) or to bfloat16
# (1 in 512); 16-bit floats take theirs as they are. The typical error, of the logits' deviation,
# was 0.018 to 0.023 for the blocks, 0.0055 for bfloat16.
BOUNDS = {"f16": 1e-4, "bf16": 0.012, "q8_0": 0.05, "q4_0": 0.05, "q4_1": 0.05, "q5_0": 0.05}
WIDE = {"width": 64, "feedforward": {"kind": "swiglu", "hidden": 96}}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("asked", sorted(BOUNDS))
def test_other_formats_are_their_weights_dequantised(
    make: Any, tensors_of: TensorsOf, tokens: list[int], asked: str, threads: int
) -> None:
    decoder = make(WIDE)
    notes: list[str] = []
    converted = Converted(tensors_of(decoder), decoder.spec, asked, notes.append)
    found = Machine(decoder, converted, threads).run(tokens)
    assert not notes
    exact = make(WIDE)
    with torch.no_grad():
        for name, tensor in exact.state_dict().items():
            numbers = dequantised(converted[name])
            tensor.copy_(torch.from_numpy(numbers.copy()).view(tensor.shape))
    differs = typical_error(found, logits_of(exact, tokens))
    print(f"{asked}: {differs:.4f} of the logits' deviation")
    assert differs < BOUNDS[asked]


# Every way in which attention reads a cache, at head widths that fill blocks of 32 and do not.
CACHED: dict[str, dict[str, Any]] = {
    "shared keys": {"width": 128, "attention": {"heads": 4, "kv_heads": 2}},
    "all heads": {"width": 128, "attention": {"heads": 4}},
    "odd heads": {"width": 96, "attention": {"heads": 4, "kv_heads": 1, "head_dim": 20}},
    "normed": {"width": 96, "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True}},
    "alibi": {
        "width": 128,
        "attention": {"heads": 4, "kv_heads": 2},
        "position": {"kind": "alibi"},
    },
    "window": {"width": 96, "attention": {"heads": 4, "window": 7}},
    "patches": {"width": 96, "input": {**PATCHES, "patch": "word"}},
    "slots": {"width": 96, "input": {**SLOTS, "front_depth": 1}},
    "run twice": {"width": 96, "share": {"block": "adjacent", "repeat": 2}},
}


@pytest.mark.parametrize(("cache", "bound"), [(BF16, 0.006), (Q8_0, 0.02)], ids=["bf16", "q8_0"])
@pytest.mark.parametrize("kind", sorted(CACHED))
def test_a_smaller_cache_costs_what_its_rounding_costs(
    make: Any, tensors_of: TensorsOf, tokens: list[int], kind: str, cache: int, bound: float
) -> None:
    decoder = make(CACHED[kind])
    machine = Machine(decoder, tensors_of(decoder), cache=cache)
    at_once = machine.run(tokens)
    found = typical_error(at_once, logits_of(decoder, tokens))
    print(f"{kind}, cache {cache}: {found:.4f} of the logits' deviation")
    assert 0 < found < bound
    other = Machine(decoder, tensors_of(decoder), 3, cache=cache)
    assert np.array_equal(other.run(tokens, 1, 7, 1, 20), at_once)


def test_blocks_that_do_not_fit_are_kept_in_16_bits_and_told(
    make: Any, tensors_of: TensorsOf, tokens: list[int]
) -> None:
    decoder = make({"feedforward": {"kind": "swiglu", "hidden": 72}})
    notes: list[str] = []
    converted = Converted(tensors_of(decoder), decoder.spec, "q4_0", notes.append)
    program = compiled(decoder, converted)
    formats = {w.name: w.format for w in program.weights}
    assert formats["blocks.0.feedforward.down.weight"] == 1
    assert formats["blocks.0.attention.qkv.weight"] == 2
    assert len(notes) == 1 and "rows of 72" in notes[0] and "f16 instead" in notes[0]
    machine = Machine(decoder, converted)
    assert np.isfinite(machine.run(tokens)).all()
