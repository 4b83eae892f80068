"""The peer: a plain byte-level GPT, trained with AdamW in a bare PyTorch loop by the clock.

What a good tutorial gives: pre-norm LayerNorm, learned positions, GELU, GPT-2's initialisation,
AdamW (betas 0.9 and 0.95, weight decay 0.1 on the matrices alone, fused), gradient norm clipped at
1, cosine schedule with warmup, bf16, torch's fused causal attention. It knows nothing of
Flyweight, and is driven by quality_per_minute.py:

    python bare_gpt.py --data DATA.npz --minutes 2 --width 256 --depth 4 ...   # prints JSON

DATA.npz holds ``train`` (bytes of all training documents, each followed by 256) and ``held_out``
(the same of the held-out ones), both uint16.

The schedule follows the clock: the learning rate is a function of the share of the budget that has
passed, so no time goes on calibration and the budget is used to the last step.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

END = 256  # between documents, and before a document's first byte
VOCAB = 257


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer in x's precision: float32 master weights, cast at use."""
    assert layer.bias is not None
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = linear(layer_norm(x_BTD, self.norm1), self.qkv)
        q, k, v = qkv.view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + linear(y.transpose(1, 2).reshape(B, T, D), self.out)
        return x_BTD + linear(
            F.gelu(linear(layer_norm(x_BTD, self.norm2), self.up), approximate="tanh"), self.down
        )


class GPT(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, context: int, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.bytes, self.positions = nn.Embedding(VOCAB, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB)
        std = 0.02 * math.sqrt(768 / width)  # GPT-2's, which is for width 768
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name == "positions.weight":
                # A quarter: at 1 or at 0 it stays longer on the bigrams' plateau (lab notes).
                nn.init.normal_(parameter, std=std / 4)
            elif parameter.ndim == 2:
                # GPT-2: what writes to the residual stream is scaled by the number of writers.
                writes = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=std / (math.sqrt(2 * depth) if writes else 1))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits, float32, (B, T, VOCAB)."""
        x = self.bytes(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        x = x.to(self.dtype)
        for block in self.blocks:
            x = block(x)
        return linear(layer_norm(x, self.norm), self.head).float()

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        logits = self(tokens_BT)
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction=reduction)


def train(model: GPT, stream: np.ndarray, arguments: argparse.Namespace) -> dict[str, float]:
    """Train for ``arguments.minutes``, the last step included. Returns what was done."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "blocks" in n]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    # The optimiser's own start-up counts, as all that follows does.
    start = time.perf_counter()
    budget = 60 * arguments.minutes
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    step_loss = torch.compile(model.loss) if arguments.compile else model.loss
    data = torch.from_numpy(stream.astype(np.int64))
    generator = torch.Generator().manual_seed(arguments.seed)
    window = torch.arange(arguments.context + 1)
    model.train()
    steps, recent, longest = 0, 0.0, 0.0
    while True:
        begin = time.perf_counter()
        passed = (begin - start) / budget
        # A step that would end after the budget is not begun.
        if steps > 2 and begin - start + longest > budget:
            break
        warm = min(1.0, max(passed, 1e-3) / arguments.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
        rate = arguments.lr * warm * (arguments.floor + (1 - arguments.floor) * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate
        offsets = torch.randint(
            len(data) - arguments.context, (arguments.rows, 1), generator=generator
        )
        batch = data[offsets + window]
        loss = step_loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        recent = loss.item() if steps == 1 else 0.95 * recent + 0.05 * loss.item()
        if not math.isfinite(recent):
            break
        if steps > 2:  # the first steps allocate (and compile)
            seconds = time.perf_counter() - begin
            longest = seconds if steps == 3 else 0.9 * longest + 0.1 * seconds
    seconds = time.perf_counter() - start
    seen = steps * arguments.rows * arguments.context
    return {
        "steps": steps,
        "seconds": round(seconds, 2),
        "bytes_seen": seen,
        "bytes_per_second": round(seen / seconds),
        "training_bits_per_byte": round(recent / math.log(2), 4),
    }


def documents(stream: np.ndarray) -> list[np.ndarray]:
    """Each document as END, then its bytes."""
    ends = np.flatnonzero(stream == END)
    starts = [0, *(ends[:-1] + 1)]
    mark = np.array([END], dtype=np.int64)
    pairs = zip(starts, ends, strict=True)
    return [np.concatenate([mark, stream[a:b].astype(np.int64)]) for a, b in pairs]


def windows(tokens: np.ndarray, context: int) -> list[tuple[np.ndarray, int]]:
    """(context + 1 tokens or fewer, how many of its targets were scored before) per window.

    Windows overlap by half, so that all but a document's first bytes see half a context or more;
    together they score every byte once.
    """
    stride = context // 2
    last = max(1, len(tokens) - 1 - stride)
    return [(tokens[s : s + context + 1], s and context - stride) for s in range(0, last, stride)]


@torch.no_grad()
def bits_per_byte(model: GPT, held_out: np.ndarray, context: int, rows: int = 16) -> float:
    """Over all bytes of the held-out documents, each from its own beginning, in float32."""
    model.eval()
    model.dtype = torch.float32
    parts = [part for document in documents(held_out) for part in windows(document, context)]
    # Windows of one length go together, so that no time goes on padding.
    parts.sort(key=lambda part: len(part[0]))
    nats, scored = 0.0, 0
    for first in range(0, len(parts), rows):
        some = parts[first : first + rows]
        tokens = np.full((len(some), max(len(t) for t, _ in some) - 1), END, dtype=np.int64)
        targets = np.full_like(tokens, -100)
        for row, (window, before) in enumerate(some):
            tokens[row, : len(window) - 1] = window[:-1]
            targets[row, before : len(window) - 1] = window[1 + before :]
        scored += int((targets >= 0).sum())
        losses = model.loss(torch.from_numpy(tokens), torch.from_numpy(targets), "none")
        nats += float(losses.double().sum())
    size = int((held_out != END).sum())
    if scored != size:
        raise AssertionError(f"{scored} of {size} held-out bytes were scored")
    return nats / math.log(2) / size


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a plain byte GPT and score it.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--heads", type=int, help="default: of width 64")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--warmup", type=float, default=0.05, help="share of the budget")
    parser.add_argument("--floor", type=float, default=0.0)
    parser.add_argument("--precision", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    with np.load(arguments.data) as data:
        stream, held_out = data["train"], data["held_out"]
    model = GPT(
        arguments.width,
        arguments.depth,
        arguments.heads or max(1, arguments.width // 64),
        arguments.context,
        torch.bfloat16 if arguments.precision == "bf16" else torch.float32,
    )
    result = train(model, stream, arguments)
    begin = time.perf_counter()
    result["bits_per_byte"] = bits_per_byte(model, held_out, arguments.context)
    result["scoring_seconds"] = round(time.perf_counter() - begin, 2)
    result["parameters"] = sum(p.numel() for p in model.parameters())
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
