"""How weights start, all in one place.

| tensor                              | "normal"            | "zero-outputs"                    |
|-------------------------------------|---------------------|-----------------------------------|
| token embedding                     | N(0, std²)          | N(0, 1/4)                         |
| learned and relative positions,     | N(0, std²)          | N(0, 1/100)                       |
| match tables                        |                     |                                   |
| n-gram tables                       | N(0, std²)          | N(0, 1/2500)                      |
| outputs of attention (also to an    | N(0, std² / (2 L))  | 0                                 |
| encoder) and feed-forward           |                     |                                   |
| head                                | N(0, std²)          | 0                                 |
| low-rank updates                    | down N(0, 1/inputs) | up 0: a shared matrix starts as is  |
| every other matrix                  | N(0, std²)          | N(0, 1 / (2 inputs))              |
| biases 0, gains 1                   |                     |                                   |

"mup" is "normal" but for the blocks' matrices, whose deviations are divided by sqrt(m) with
m = width / base_width; outputs not by sqrt(2 L) where scale.residual does it. With ``truncate`` c
every normal is cut at c deviations, which for c = 2 leaves 0.88 of them (BTLM's weights).
"""

from __future__ import annotations

import torch
from torch import nn

from flyweight.model.decoder import Decoder
from flyweight.model.feedforward import LowRank

# Where the parameters are whose both sides grow with the width.
BLOCKS = ("blocks.", "shared_feedforward.", "encoder.blocks.", "ahead.")


@torch.no_grad()
def init_weights(model: Decoder, seed: int) -> None:
    """Fill every parameter from ``seed`` alone (not from the global generator)."""
    generator = torch.Generator().manual_seed(seed)
    zero = model.spec.init.kind == "zero-outputs"
    std, mup = model.spec.init.std, model.spec.init.kind == "mup"
    inner = std * model.spec.width_multiplier**-0.5
    # sqrt(2 L) of GPT-2 keeps the stream's size whatever the depth; so does a residual scale.
    by_depth = not mup or model.spec.scale.residual == 1.0
    branches = inner * (2 * model.spec.uses) ** -0.5 if by_depth else inner
    low_rank = {name for name, part in model.named_modules() if isinstance(part, LowRank)}
    for name, weight in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        above = owner.rpartition(".")[0]
        if weight.ndim == 1:
            weight.fill_(1.0 if leaf == "weight" else 0.0)
            continue
        deviation = (0.5 / weight.shape[1]) ** 0.5 if zero else std
        if above in low_rank:
            deviation = 0.0 if owner.endswith(".up") else weight.shape[1] ** -0.5
        elif owner.endswith(("attention.output", "feedforward.down")):
            deviation = 0.0 if zero else branches
        elif name in ("head.weight", "slots.head.weight"):
            deviation = 0.0 if zero else std
        elif name in ("embedding.weight", "slots.embedding"):
            deviation = 0.5 if zero else std
        elif name in ("embedding.matches", "embedding.positions") or leaf.endswith("offset"):
            deviation = 0.1 if zero else std
        elif name.endswith("positions.bias"):
            deviation = 0.1 if zero else std
        elif name == "embedding.ngrams.table":
            deviation = 0.02 if zero else std
        elif name.startswith(BLOCKS) and not zero:
            deviation = inner
        most = model.spec.init.truncate
        if deviation == 0.0:
            weight.zero_()
        elif most is None:
            weight.normal_(0.0, deviation, generator=generator)
        else:
            bound = most * deviation
            nn.init.trunc_normal_(weight, 0.0, deviation, -bound, bound, generator=generator)
