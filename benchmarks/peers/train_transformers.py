"""transformers' Llama with its own loss in a bare loop."""

from __future__ import annotations

import contextlib

import torch
import transformers
from protocol import Shape, Step, serve, training_step
from transformers import LlamaConfig, LlamaForCausalLM


def build(shape: Shape, variant: str, device: str) -> tuple[Step, int, dict[str, str]]:
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.hidden,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(device)
    if "bf16-true" in variant:
        model = model.to(torch.bfloat16)
    model.train()
    mixed = "mixed" in variant

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            return model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss

    if "compile" in variant:
        loss_of = torch.compile(loss_of)
    parameters = list(model.parameters())
    step = training_step(loss_of, parameters, shape.tokens(device))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return step, sum(p.numel() for p in parameters), versions


if __name__ == "__main__":
    serve(build)
