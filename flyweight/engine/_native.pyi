"""The compiled half of the engine (csrc/bind.cpp). Errors are FlyweightError."""

from collections.abc import Sequence as ListLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flyweight.engine.program import Program

class Sequence:
    """What decoding one sequence remembers: tokens, keys and values, the patches' state."""

    @property
    def length(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int32]: ...
    @property
    def cache_bytes(self) -> int:
        """Keys and values that are allocated, in blocks of 256 positions."""

    def set_positions(
        self, frequencies: ListLike[float], gain: float = 1.0, divisor: float = 1.0
    ) -> None:
        """How positions are read from here on (see Executor.begin); stored keys stay."""

    def truncate(self, length: int) -> int:
        """Forget all but the first ``length`` tokens; returns how many are left.

        Where bytes are pooled, those of the last patch that is complete within ``length``.
        """

    def copy(self) -> Sequence: ...

class Executor:
    """Runs a program. Calls from several threads wait for each other; all release the GIL."""

    def __init__(
        self,
        program: Program,
        threads: int = 1,
        isa: str = "",
        pin: bool = False,
        cache_limit: int = 0,
    ) -> None:
        """``isa``: "" takes FLYWEIGHT_ISA, or the best. ``cache_limit``: bytes of all caches.

        Matrices are packed; the arrays that they came from are not needed any more.
        """

    def begin(
        self,
        frequencies: ListLike[float] = ...,
        gain: float = 1.0,
        divisor: float = 1.0,
        cache_format: int = 0,
    ) -> Sequence:
        """A new sequence. ``frequencies``: Program.frequencies of them, float32; ``gain``: what
        rotated dimensions are multiplied by; ``divisor``: of ALiBi's slopes; ``cache_format``:
        ggml's number of F32 (0), BF16 (30) or Q8_0 (8)."""

    def feed(
        self,
        sequences: ListLike[Sequence],
        tokens: ListLike[ListLike[int]],
        want: Literal["last", "all", "none"] = "last",
    ) -> NDArray[np.float32]:
        """Append tokens to each sequence; logits of the wanted ones, in order. (wanted, V)."""

    def score(
        self,
        sequences: ListLike[Sequence],
        tokens: ListLike[ListLike[int]],
        targets: ListLike[ListLike[int]],
    ) -> list[NDArray[np.float64]]:
        """Append tokens; after each, the log probability in nats of its target (-1: nan)."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def buffer_bytes(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...

Finish = Literal["stop", "length", "context", "cancelled"]
# Of a stream: its number; tokens, their log probabilities and the likeliest tokens with theirs,
# an item a token; and why it ended, or None.
Piece = tuple[int, list[int], list[float], list[list[tuple[int, float]]], Finish | None]

class Generation:
    """Streams that are decoded together."""

    def __init__(self, executor: Executor) -> None: ...
    def add(
        self,
        sequence: Sequence,
        tokens: ListLike[int],
        *,
        max_tokens: int,
        min_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        penalty_last: int = 0,
        seed: int = 0,
        drawn: int = 0,
        stops: ListLike[int] = ...,
        never: ListLike[int] = ...,
        vocabulary: int = 0,
        top_logprobs: int = -1,
    ) -> int:
        """A new stream, which feeds ``tokens`` (one at least) first; returns its number.

        ``stops`` end the text and are not yielded; ``never`` are not chosen, nor ids from
        ``vocabulary`` on (0: no such). ``top_k`` 0: all. ``drawn``: draws of the seed made
        before. ``top_logprobs`` -1: no log probabilities (zeros in their place).
        """

    def next(self, most: int = 1) -> list[Piece]:
        """Up to ``most`` more tokens of every stream; ``[]`` when none goes on.

        An ended stream is forgotten. Its sequence holds all tokens but the last one yielded.
        """

    def cancel(self, stream: int) -> None:
        """End a stream before its next token; from any thread, while ``next`` runs."""

def available_processors() -> int:
    """How many processors this process may use."""

def draw(seed: int, n: int) -> float:
    """Draw ``n`` of a seed, uniform in [0, 1): what sampling token ``n`` of a stream uses."""

# The kernels themselves (csrc/kernels_bind.cpp): for training, their tests and their benchmark.
kernels: Any
