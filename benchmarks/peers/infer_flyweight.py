"""Our engine, as cpu_inference.py drives it: a model file, threads; then prompts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from infer_protocol import serve


def build(path: str, threads: int) -> tuple[Callable[[list[int], int], tuple[float, float]], str]:
    import flyweight
    from flyweight.text.talk import Sampling

    model = flyweight.load(path, threads=threads, engine="native")

    lengths: list[int] = []

    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        lengths.append(len(prompt) + tokens // 2)
        start = time.perf_counter()
        steps = model.steps(prompt, Sampling(tokens + 1, tokens + 1))
        next(steps)
        first = time.perf_counter()
        made = sum(1 for _ in steps)
        assert made == tokens, made
        return first - start, (time.perf_counter() - first) / tokens

    def costs() -> dict[str, int]:
        longest = model.memory()
        read = model.read_bytes(lengths[-1])
        return {"read_bytes": read, "cache_bytes": longest.cache, "weights_bytes": longest.weights}

    run.costs = costs  # type: ignore[attr-defined]
    return run, f"flyweight {flyweight.__version__} ({model.isa})"


if __name__ == "__main__":
    serve(build, sys.argv[1], int(sys.argv[2]))
