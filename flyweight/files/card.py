"""The model card of an exported folder, README.md: what the model is and what export did to it."""

from __future__ import annotations

import json

from flyweight.files.to_config import Target
from flyweight.spec import toml
from flyweight.spec.model import ModelSpec
from flyweight.zoo.shapes import parameters


def card(name: str, spec: ModelSpec, target: Target, version: str) -> str:
    """Markdown with the hub's front matter. Says what is shared and what was folded."""
    counts = parameters(spec)
    stored = parameters(target.expanded).unique
    kind = target.config["architectures"][0]
    task, auto, what = "text-generation", "AutoModelForCausalLM", "A decoder"
    if spec.encoder is not None:
        task, auto = "text2text-generation", "AutoModelForSeq2SeqLM"
        what = "An encoder-decoder"
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags: [flyweight]",
        "---",
        "",
        f"# {json.dumps(name, ensure_ascii=False)[1:-1]}",
        "",
        f"{what} of {counts.unique:,} parameters ({counts.without_embeddings:,} without"
        f" embeddings) with a context of {spec.context:,} tokens, written by Flyweight {version}."
        f" It loads as `{kind}`, without remote code:",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained(".", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```",
        *_notes(spec, target, counts.unique, stored),
        "",
        "## The model, as Flyweight describes it",
        "",
        "```toml",
        toml.dumps({"name": name, "model": spec.values()}).rstrip("\n"),
        "```",
        "",
    ]
    return "\n".join(lines)


def _notes(spec: ModelSpec, target: Target, unique: int, stored: int) -> list[str]:
    notes = []
    if spec.share.repeat > 1:
        notes.append(
            f"- Each of {spec.depth} blocks runs {spec.share.repeat} times in a row; it is repeated"
            f" here as {spec.uses} layers of equal weights."
        )
    if spec.share.feedforward != "none":
        notes.append("- Layers share one feed-forward, which is repeated here in each of them.")
    if notes:
        notes.append(
            f"- {unique:,} parameters are unique; this folder stores {stored:,}. `flyweight import`"
            " compares the copies and ties them again; fine-tuning elsewhere unties them."
        )
    if target.folded:
        scale = spec.scale
        notes.append(
            f"- The multipliers of embeddings ({scale.embedding}), residual branches"
            f" ({scale.residual}) and logits ({scale.logits}) are part of the weights here"
            + ("; the head, tied before, has a matrix of its own." if spec.tie_embeddings else ".")
        )
    return ["", "## What export changed", "", *notes] if notes else []
