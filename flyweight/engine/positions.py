"""How a sequence's length is read: RoPE's frequencies and gain, ALiBi's divisor."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from flyweight.spec.frequencies import alibi_divisor, rope_frequencies
from flyweight.spec.model import ModelSpec


class Reading(NamedTuple):
    """What depends on how long a sequence is: rotary_dim / 2 angular frequencies, the factor of
    rotated queries and keys, and what ALiBi's slopes are divided by."""

    frequencies: array[float]
    gain: float
    divisor: float


def reading(spec: ModelSpec, length: int) -> Reading:
    """For a sequence of ``length`` positions."""
    rope = spec.position.kind == "rope"
    none = array("f")
    frequencies = rope_frequencies(spec.position, spec.rotary_dim, length) if rope else none
    return Reading(frequencies, spec.rope_gain, alibi_divisor(spec.position, length))
