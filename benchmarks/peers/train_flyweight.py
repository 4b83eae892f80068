"""Flyweight's own training step: its decoder, its loss, its optimiser, as train/loop.py runs them.

float32 weights, bfloat16 activations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from protocol import ADAMW, CLIP, Shape, Step, serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import flyweight
from flyweight.model.decoder import Decoder
from flyweight.model.init import init_weights
from flyweight.spec.model import ModelSpec
from flyweight.spec.run import Optimizer as OptimizerSpec
from flyweight.train.compiled import parts_to_compile
from flyweight.train.kernels import hand_in
from flyweight.train.memory import keep_freed_memory
from flyweight.train.objective import next_token_loss
from flyweight.train.optimizer import Optimizer


def build(shape: Shape, variant: str, device: str) -> tuple[Step, int, dict[str, str]]:
    keep_freed_memory()
    hand_in()
    spec = ModelSpec.parse(
        {
            "vocab_size": shape.vocab_size,
            "width": shape.width,
            "depth": shape.depth,
            "context": shape.context,
            "attention": {"heads": shape.heads},
            "feedforward": {"hidden": shape.hidden},
        }
    )
    model = Decoder(spec)
    init_weights(model, 0)
    model.to(device).train()
    beta1, beta2 = ADAMW["betas"]
    settings = {"beta1": beta1, "beta2": beta2, "weight_decay": ADAMW["weight_decay"]}
    optimizer = Optimizer(OptimizerSpec.parse({"kind": "adamw", **settings}), model)
    tokens = shape.tokens(device)
    targets = tokens[:, 1:].numel()

    def backward() -> float:
        loss = next_token_loss(model, tokens[:, :-1], tokens[:, 1:], None, torch.bfloat16, targets)
        loss.backward()
        return loss.item()

    def step() -> float:
        loss = backward()
        optimizer.apply(ADAMW["lr"], CLIP, optimizer.gather())
        return loss

    if "compile" in variant:
        # Without train/compiled.py's fallback, so that a failure shows here.
        for part in parts_to_compile(model):
            part.compile()
    versions = {"flyweight": flyweight.__version__, "torch": torch.__version__}
    return step, sum(p.numel() for p in model.parameters()), versions


if __name__ == "__main__":
    serve(build)
