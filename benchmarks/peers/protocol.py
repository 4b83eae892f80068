"""How a contender of train_throughput.py is driven: JSON lines over its standard streams.

A contender hands ``serve`` a function that builds one training step. The driver then asks for
rounds one contender at a time; the others are blocked in ``readline`` and cost nothing. This
file runs inside each peer's own environment, so it needs torch and the standard library alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Shape:
    """A Llama-shaped model and its batch: RMSNorm with gains, RoPE, SwiGLU, an untied head."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    hidden: int
    context: int
    batch: int

    def tokens(self, device: str) -> torch.Tensor:
        """The same batch for everybody. (batch, context + 1), int64."""
        generator = torch.Generator().manual_seed(1)
        size = (self.batch, self.context + 1)
        return torch.randint(0, self.vocab_size, size, generator=generator).to(device)


# AdamW with these settings, and clipping of the gradient's norm at 1, for every contender.
ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
CLIP = 1.0

Step = Callable[[], float]
# (shape, variant, device) -> (a training step that returns its loss, parameters, versions)
Build = Callable[[Shape, str, str], tuple[Step, int, dict[str, str]]]


def matrix_peak(dtype: torch.dtype, device: str, repeat: int = 2) -> float:
    """The rate of square matrix products, FLOP/s: the best of ``repeat``."""
    # A card is not filled by what fills a processor.
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(repeat):
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def training_step(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    parameters: list[torch.nn.Parameter],
    tokens: torch.Tensor,
) -> Step:
    """The bare loop's body around a peer's loss: forward, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(parameters, **ADAMW)

    def step() -> float:
        loss = loss_of(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def serve(build: Build) -> None:
    """Answer requests until the driver closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not break the protocol
    step: Step | None = None
    device = "cpu"
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "build":
                device = request["device"]
                torch.manual_seed(0)
                begin = time.perf_counter()
                shape = Shape(**request["shape"])
                step, parameters, versions = build(shape, request["variant"], device)
                losses = [step() for _ in range(request["warm_up"])]
                answer = {
                    "parameters": parameters,
                    "versions": {"python": sys.version.split()[0], **versions},
                    "losses": losses,
                    "seconds": time.perf_counter() - begin,
                }
            elif request["do"] == "round":
                assert step is not None
                answer = _round(step, request["steps"], device)
            else:
                raise ValueError(f"unknown request {request['do']!r}")
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")


def _round(step: Step, steps: int, device: str) -> dict[str, Any]:
    """Seconds a step: by the clock, and of processor time over all threads."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    for _ in range(steps):
        loss = step()
    _wait(device)
    seconds = (time.perf_counter() - begin) / steps
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": processor / steps, "loss": loss}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
