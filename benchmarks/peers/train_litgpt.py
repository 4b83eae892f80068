"""litgpt's GPT in the body of its own pretraining loop (litgpt/pretrain.py), without Fabric."""

from __future__ import annotations

import contextlib
from importlib.metadata import version

import torch
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy
from protocol import Shape, Step, serve, training_step


def build(shape: Shape, variant: str, device: str) -> tuple[Step, int, dict[str, str]]:
    config = Config(
        name="llama-shaped",
        block_size=shape.context,
        padded_vocab_size=shape.vocab_size,
        vocab_size=shape.vocab_size,
        n_layer=shape.depth,
        n_head=shape.heads,
        n_embd=shape.width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.hidden,
    )
    with torch.device(device):
        model = GPT(config)
    compiled, precision = "compile" in variant, "bf16" if "bf16-true" in variant else "f32"
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    mixed = "mixed" in variant
    # Its loop splits the loss into chunks of 128; compiled, one piece fuses better.
    chunk = 0 if compiled else 128

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            logits = model(tokens[:, :-1])
            return chunked_cross_entropy(logits, tokens[:, 1:], chunk_size=chunk)

    if compiled:
        loss_of = torch.compile(loss_of)
    parameters = list(model.parameters())
    step = training_step(loss_of, parameters, shape.tokens(device))
    versions = {"litgpt": version("litgpt"), "torch": torch.__version__}
    return step, sum(p.numel() for p in parameters), versions


if __name__ == "__main__":
    serve(build)
