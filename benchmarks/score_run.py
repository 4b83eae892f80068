"""Score one of our runs on held-out documents, in a process of its own; prints JSON.

    python score_run.py RUN HELD_OUT.json THREADS

HELD_OUT.json: [[name, text], ...]. Before scoring it checks that what is scored is a probability
of the next byte given those before it alone: no byte's may depend on what follows, and those of
all possible next bytes may not exceed 1 together.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import flyweight
from flyweight.measure.bits import Scorer, bits_per_byte


def check_causal(model: Scorer, text: str) -> None:
    """Cut anywhere, a text's beginning scores as it does within the whole."""
    text = text[:900]
    whole = [value for _, value in model.logprobs(text)]
    for cut in (1, 63, 64, 65, 500, 701, 899):
        part = [value for _, value in model.logprobs(text[:cut])]
        worst = max(abs(a - b) for a, b in zip(part, whole, strict=False))
        if worst > 0.05:
            raise AssertionError(f"a byte before {cut} depends on what follows: {worst:.3f} nats")


def check_normalised(model: Scorer, text: str) -> None:
    """The probabilities of the ASCII characters that may come next add up to 1 at most."""
    for length in (40, 333, 900):
        head = text[:length]
        total = sum(math.exp(model.logprobs(head + chr(c))[-1][1]) for c in range(128))
        if total > 1.01:
            raise AssertionError(f"the next byte's probabilities add up to {total:.3f}")


def main() -> None:
    run, held_out, threads = sys.argv[1:]
    pairs: list[tuple[str, str]] = json.loads(Path(held_out).read_text(encoding="utf-8"))
    model = flyweight.load(run, threads=int(threads), engine="torch")
    longest = max((text for _, text in pairs if text.isascii()), key=len)
    check_causal(model, longest)
    check_normalised(model, longest)
    begin = time.perf_counter()
    scored = bits_per_byte(model, [(name, text.encode()) for name, text in pairs])
    result = {
        "bits_per_byte": scored.bits_per_byte,
        "scoring_seconds": round(time.perf_counter() - begin, 2),
        "parameters": sum(p.numel() for p in model.decoder.parameters()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
