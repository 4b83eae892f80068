"""A model that talks, on our own kernels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from flyweight.engine.compile import compile_model
from flyweight.engine.emit import F32, Tensors
from flyweight.engine.positions import Reading, reading
from flyweight.engine.processor import forced_instruction_set
from flyweight.engine.program import Kind, Program
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec, SlotInput
from flyweight.spec.position import LongRope
from flyweight.spec.table import nearest
from flyweight.text.spelling import spelling
from flyweight.text.talk import SCORED_AT_ONCE, Sampling, Step, Talker, windows
from flyweight.text.tokenizer import StreamDecoder, Tokenizer

# Formats of the key-value cache, by ggml's numbers.
CACHES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8}
# F32 where all matrices are in F32, F16 elsewhere.
AUTO = "auto"


def unavailable() -> str | None:
    """Why there is no native engine here; None where there is one."""
    try:
        import flyweight.engine._native  # noqa: F401
    except ImportError as error:
        return f"the native engine is not built here ({error}); pip install . builds it"
    return None


class Memory(NamedTuple):
    """Bytes: of the weights as the kernels have them, of all sequences' keys and values, and of
    the buffers between operations."""

    weights: int
    cache: int
    buffers: int


class _Read:
    """What a program reads for one token."""

    def __init__(self, program: Program) -> None:
        used = {w for op in program.ops for w in op.weights if w >= 0}
        weights = [program.weights[w] for w in used]
        self._weights = sum(w.data.nbytes for w in weights if w.kind != "table")
        self._pooled = any(op.kind == Kind.POOL for op in program.ops)
        windows = {op.ints[0]: op.ints[5] for op in program.ops if op.kind == Kind.ATTENTION}
        self._slots = [
            (2 * slot.kv_heads * slot.head_dim, windows[i]) for i, slot in enumerate(program.slots)
        ]

    def per_token(self, length: int, cache: int) -> int | None:
        if self._pooled:
            return None
        size = {0: 4.0, 1: 2.0, 30: 2.0, 8: 36 / 32}[cache]
        seen = ((n, min(length, window or length)) for n, window in self._slots)
        return self._weights + round(sum(n * positions * size for n, positions in seen))


class NativeModel(Talker):
    """The protocol that ``flyweight.load`` returns, over a compiled program.

    ``words`` gives the tokenizer, and is waited for as late as can be: packing the weights needs
    none. ``threads``: None for all that this process may use. ``cache``: the format of keys and
    values, of which "auto" takes F32 where all matrices are in F32, and F16, as exact as what the
    others are made of, elsewhere; what "bf16" and "q8_0" save they cost in exactness.
    FLYWEIGHT_ISA forces an instruction set. Raises FlyweightError for a cache or an instruction
    set that is not known.
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        tensors: Tensors,
        words: Callable[[], Tokenizer],
        threads: int | None = None,
        cache: str = AUTO,
    ) -> None:
        from flyweight.engine import _native

        if cache not in (AUTO, *CACHES):
            raise FlyweightError(f"cache = {cache}{nearest(cache, [AUTO, *CACHES])}")
        self.name, self.spec = name, spec
        isa = forced_instruction_set()
        slots = spec.input.slots if isinstance(spec.input, SlotInput) else 0
        spelled = spelling(words(), spec.vocab_size, slots) if slots else None
        program = compile_model(spec, tensors, spelled)
        exact = all(w.format == F32 for w in program.weights if w.kind == "matrix")
        self._cache = CACHES[("f32" if exact else "f16") if cache == AUTO else cache]
        self._bytes = _Read(program)
        self._native = _native
        threads = threads or _native.available_processors()
        room = _room(sum(weight.data.nbytes for weight in program.weights))
        self._executor = _native.Executor(program, threads, isa, cache_limit=room)
        self.tokenizer = words()
        # The last call's sequence and its tokens, for a call that begins with the same.
        self._kept: tuple[Any, list[int], Reading] | None = None

    @property
    def isa(self) -> str:
        """The instruction set that the kernels use."""
        return str(self._executor.isa)

    @property
    def threads(self) -> int:
        return int(self._executor.threads)

    @property
    def cache(self) -> str:
        """The format of keys and values."""
        return next(name for name, number in CACHES.items() if number == self._cache)

    def memory(self) -> Memory:
        """As it is now: buffers grow to the longest call so far."""
        run = self._executor
        return Memory(run.weight_bytes, run.cache_bytes, run.buffer_bytes)

    def read_bytes(self, length: int) -> int | None:
        """Bytes of weights and cache that the token after ``length`` others reads, each weight
        once however often it is used. None where bytes are pooled: most read less."""
        return self._bytes.per_token(length, self._cache)

    # Generating

    def _steps(self, ids: list[int], sampling: Sampling, top: int | None) -> Iterator[Step]:
        if sampling.max_tokens == 0:
            return
        context = self.spec.context
        history, made = ids[-context:], 0
        sequence, read = self._sequence(history, sampling.max_tokens)
        try:
            while made < sampling.max_tokens:
                now = self._reading(len(history), sampling.max_tokens - made)
                if now != read:
                    # Keys that were read otherwise are of no use.
                    sequence, read = self._begin(now), now
                count = min(self._stage(len(history)), sampling.max_tokens - made)
                wanted = made + count
                steps = self._stage_steps(sequence, history, sampling, made, count, top)
                with closing(steps):
                    for step in steps:
                        history.append(step.token)
                        made += 1
                        yield step
                if made < wanted:
                    return  # an end of text
                if len(history) > context:
                    # The cache is full: go on from the newest half of what it held.
                    newest = history[-max(1, context // 2) :]
                    read = self._reading(len(newest), sampling.max_tokens - made)
                    sequence, history = self._begin(read), newest
        finally:
            self._kept = sequence, history, read

    def _together(
        self, prompts: list[list[int]], sampling: Sampling, stops: Sequence[str]
    ) -> Iterator[Iterator[Step]]:
        """Those that need no second look at their positions, in one loop; the others alone."""
        most, run = sampling.max_tokens, self._native.Generation(self._executor)
        said: dict[int, list[Step]] = {}
        heard: dict[int, tuple[StreamDecoder, list[str]]] = {}
        streams: list[int | None] = []
        try:
            for ids in prompts:
                if most == 0 or most > self._stage(len(ids)):
                    streams.append(None)
                    continue
                sequence = self._begin(self._reading(len(ids), most))
                stream = self._add(run, sequence, ids, sampling, 0, most, None)
                said[stream], heard[stream] = [], (StreamDecoder(self.tokenizer), [""])
                streams.append(stream)
            while pieces := run.next(1):
                for stream, tokens, *_ in pieces:
                    said[stream] += map(Step, tokens)
                    decoder, text = heard[stream]
                    text[0] += decoder.push(tokens)
                    if any(stop in text[0] for stop in stops):
                        run.cancel(stream)
        finally:
            for stream in said:
                run.cancel(stream)
        for ids, given in zip(prompts, streams, strict=True):
            yield self._steps(ids, sampling, None) if given is None else iter(said[given])

    def _reading(self, length: int, left: int) -> Reading:
        """How positions are read in a sequence of ``length`` to which ``left`` may be added.

        Dynamic NTK and interpolated ALiBi read every position by the length of the whole, which
        is taken to be as long as it may become. LongRoPE changes once.
        """
        grows = not isinstance(self.spec.position.scaling, LongRope)
        return reading(self.spec, min(length + left, self.spec.context) if grows else length)

    def _stage(self, length: int) -> int:
        """How many tokens can be chosen after ``length`` before the context is full, or LongRoPE's
        original one outgrown."""
        whole, scaling = self.spec.context - length + 1, self.spec.position.scaling
        if isinstance(scaling, LongRope) and length <= scaling.original:
            return min(whole, scaling.original - length + 1)
        return whole

    def _stage_steps(
        self,
        sequence: Any,
        history: list[int],
        sampling: Sampling,
        made: int,
        count: int,
        top: int | None,
    ) -> Generator[Step, None, None]:
        """Up to ``count`` tokens after ``history``, of which the sequence holds a part."""
        run = self._native.Generation(self._executor)
        stream = self._add(run, sequence, history[sequence.length :], sampling, made, count, top)
        try:
            ended = False
            while not ended:
                for _, tokens, logprobs, tops, finish in run.next(1):
                    for token, logprob, likeliest in zip(tokens, logprobs, tops, strict=True):
                        yield Step(token) if top is None else Step(token, logprob, tuple(likeliest))
                    ended = finish is not None
        finally:
            run.cancel(stream)

    def _add(
        self,
        run: Any,
        sequence: Any,
        tokens: list[int],
        sampling: Sampling,
        made: int,
        count: int,
        top: int | None,
    ) -> int:
        """A stream of ``run`` that feeds ``tokens``, and then makes up to ``count`` of its own
        after the ``made`` that the sequence has."""
        tokenizer = self.tokenizer
        stream: int = run.add(
            sequence,
            tokens,
            max_tokens=count,
            min_tokens=max(0, min(count, sampling.min_tokens - made)),
            temperature=min(sampling.temperature, 1e30),  # as good as infinite, and a float32
            top_k=min(sampling.top_k or 0, self.spec.vocab_size),
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            min_p=sampling.min_p or 0.0,
            repetition_penalty=sampling.repetition_penalty or 1.0,
            seed=sampling.seed,
            drawn=made,
            stops=[] if tokenizer.eot_id is None else [tokenizer.eot_id],
            never=[] if tokenizer.pad_id is None else [tokenizer.pad_id],
            vocabulary=min(tokenizer.vocab_size, self.spec.vocab_size),
            top_logprobs=-1 if top is None else top,
        )
        return stream

    def _sequence(self, history: list[int], left: int) -> tuple[Any, Reading]:
        """A sequence that holds the longest beginning of ``history`` that the last call left."""
        read = self._reading(len(history), left)
        kept, self._kept = self._kept, None
        if kept is not None and kept[2] == read:
            sequence, before, _ = kept
            # The last token is read again: its logits are wanted.
            most = min(sequence.length, len(history) - 1)
            same = next((i for i in range(most) if before[i] != history[i]), most)
            sequence.truncate(same)
            return sequence, read
        return self._begin(read), read

    def _begin(self, read: Reading) -> Any:
        return self._executor.begin(read.frequencies.tolist(), read.gain, read.divisor, self._cache)

    # Scoring

    def _scores(self, ids: list[int]) -> list[float]:
        context = self.spec.context
        scores = [0.0] * max(0, len(ids) - 1)
        at_once = max(1, SCORED_AT_ONCE // context)
        every = windows(len(ids), context)
        for group in range(0, len(every), at_once):
            some = every[group : group + at_once]
            # All rows of a batch count as long as the longest.
            read = reading(self.spec, max(window.length for window in some))
            sequences = [self._begin(read) for _ in some]
            tokens = [ids[w.begin : w.begin + w.length] for w in some]
            targets = [ids[w.begin + 1 : w.begin + w.length + 1] for w in some]
            found = self._executor.score(sequences, tokens, targets)
            for (begin, length, new), own in zip(some, found, strict=True):
                scores[begin + new : begin + length] = own[new:].tolist()
        return scores


def _room(weights: int) -> int:
    """Bytes that all caches may take: nine tenths of what the system says is free, less the
    weights; 0, no limit, where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    return max(1 << 20, free * 9 // 10 - weights)
