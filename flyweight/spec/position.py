"""How order reaches attention, and how positions beyond the first training are read."""

from __future__ import annotations

from math import log, sqrt
from typing import Annotated, Literal

from flyweight.spec.reading import Positive, PositiveFloat, Within
from flyweight.spec.table import Table

Factor = Annotated[float, Within(ge=1)]


class LinearScaling(Table):
    """Position interpolation: RoPE's angles (arXiv:2306.15595) or ALiBi's slopes over ``factor``.

    ALiBi takes ``original`` instead of a factor (arXiv:2310.13017): for a sequence longer than
    these positions of training, the factor is its length over ``original``.
    """

    kind: Literal["linear"] = "linear"
    factor: Factor | None = None
    original: Positive | None = None

    def _check(self) -> None:
        if (self.factor is None) == (self.original is None):
            raise ValueError("kind = 'linear' takes one of factor and original")


class DynamicScaling(Table):
    """Dynamic NTK-aware RoPE: beyond ``original`` positions theta grows with the length n.

    theta' = theta (factor n / original - factor + 1)^(d / (d - 2)) for d rotating dimensions.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: Factor
    original: Positive


class Llama3Scaling(Table):
    """Llama 3.1's RoPE (arXiv:2407.21783): slow frequencies divided by ``factor``, fast ones kept.

    A frequency is slow when it turns less than ``low`` times in ``original`` positions, fast when
    more than ``high`` times; between the two it is interpolated.
    """

    kind: Literal["llama3"] = "llama3"
    factor: Factor
    low: PositiveFloat = 1.0
    high: PositiveFloat = 4.0
    original: Positive

    def _check(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} must be less than high = {self.high}")


class LongRope(Table):
    """LongRoPE (arXiv:2402.13753): a divisor per frequency, one list for short sequences, one for
    those longer than ``original`` positions.

    Lists have rotary_dim / 2 numbers; a checkpoint brings them, without one they are ones. Rotated
    dimensions of queries and keys are multiplied by ``attention``, whatever the length; left out,
    it is sqrt(1 + ln(context / original) / ln(original)), and 1 where the context is no longer.
    """

    kind: Literal["longrope"] = "longrope"
    original: Annotated[int, Within(gt=1)]
    short: tuple[PositiveFloat, ...] | None = None
    long: tuple[PositiveFloat, ...] | None = None
    attention: PositiveFloat | None = None


def longrope_gain(factor: float, original: int) -> float:
    """LongRoPE's attention factor for ``factor`` times the ``original`` positions."""
    return sqrt(1 + log(factor) / log(original)) if factor > 1 else 1.0


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | LongRope


class Position(Table):
    """How order reaches attention: RoPE (arXiv:2104.09864), ALiBi (arXiv:2108.12409), learned.

    "relative" (T5, arXiv:1910.10683, section 2.1): a learned bias of each head's scores for every
    bucket of distances, one table for all layers of a stack. A causal stack has all ``buckets`` for
    what lies behind, an encoder half of them for each side. Half of a side's buckets hold one
    distance each; the others grow with the logarithm up to ``max_distance``, beyond which all
    distances are alike.
    """

    kind: Literal["rope", "alibi", "learned", "relative", "none"] = "rope"
    theta: PositiveFloat = 10_000.0
    # The share of each head's dimensions that rotate (Phi-4-mini: 0.75).
    fraction: Annotated[float, Within(gt=0, le=1)] = 1.0
    # "half" pairs dimension i with i + d/2 (Llama), "interleaved" pairs 2i with 2i + 1 (GPT-J).
    layout: Literal["half", "interleaved"] = "half"
    buckets: Annotated[int, Within(ge=4)] = 32
    max_distance: Positive = 128
    # How positions beyond those of the first training are read.
    scaling: Scaling | None = None

    def _check(self) -> None:
        belongs = dict.fromkeys(("theta", "fraction", "layout"), "rope")
        belongs |= dict.fromkeys(("buckets", "max_distance"), "relative")
        for name, kind in belongs.items():
            default = getattr(type(self), name)
            if self.kind != kind and getattr(self, name) != default:
                raise ValueError(
                    f"{name} does not apply to kind = '{self.kind}'; leave it out, or set it back"
                    f" to {default!r}"
                )
        if self.kind == "relative":
            if self.buckets % 2:
                raise ValueError(f"buckets = {self.buckets} must be even")
            if self.max_distance <= self.buckets // 2:
                raise ValueError(
                    f"max_distance = {self.max_distance} must be more than half of buckets ="
                    f" {self.buckets}, which hold one distance each"
                )
        scaling = self.scaling
        if scaling is None:
            return
        fits = {"rope": ("linear", "dynamic", "llama3", "longrope"), "alibi": ("linear",)}
        if scaling.kind not in fits.get(self.kind, ()):
            raise ValueError(
                f"scaling.kind = '{scaling.kind}' does not apply to kind = '{self.kind}'"
            )
        if self.kind == "rope" and isinstance(scaling, LinearScaling) and scaling.factor is None:
            raise ValueError(
                "scaling.original of kind 'linear' is ALiBi's; RoPE takes scaling.factor"
            )

    @property
    def original(self) -> int | None:
        """The length beyond which positions are read differently; None where it is all the same."""
        match self.scaling:
            case DynamicScaling() | LongRope() | LinearScaling():
                return self.scaling.original
        return None
