"""Which of a layout's open options a checkpoint was written with, by its loss on a text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from flyweight.files.huggingface import Source, as_ours
from flyweight.model.decoder import Decoder
from flyweight.model.weights import fill_weights
from flyweight.spec.errors import FlyweightError
from flyweight.text.load import load_tokenizer

# Tokens of the text that are read, and the least loss by which the best must win, in nats a token.
TOKENS, MARGIN = 1024, 0.01


@torch.no_grad()
def fit_options(
    source: Source, given: Mapping[str, str], text: Path, tokenizer: Path | None = None
) -> list[dict[str, Any]]:
    """Every combination of the options that ``given`` leaves open, the likeliest first.

    Each as ``options`` and ``loss`` (nats a token). Raises FlyweightError where the text is too
    short to say, or the best two are within MARGIN of each other.
    """
    words = load_tokenizer(tokenizer or source.path)
    try:
        ids = words.encode(text.read_text(encoding="utf-8"), bos=words.add_bos)
    except UnicodeDecodeError:
        raise FlyweightError(f"--fit {text} is not UTF-8 text") from None
    ids = ids[: min(TOKENS, source.spec.context) + 1]
    if len(ids) < 16:
        raise FlyweightError(f"--fit {text} is too short to tell the options apart")
    choices = [
        [given[name]] if name in given else list(known)
        for name, known in source.layout.options.items()
    ]
    found: list[dict[str, Any]] = []
    for combination in product(*choices):
        options = {**given, **dict(zip(source.layout.options, combination, strict=True))}
        model = as_ours(source, options)
        decoder = Decoder(model.spec).eval()
        fill_weights(decoder, model, source.path)
        logits_TV = decoder(torch.tensor([ids[:-1]]))[0]
        loss = F.cross_entropy(logits_TV, torch.tensor(ids[1:])).item()
        found.append({"options": options, "loss": loss})
    found.sort(key=lambda each: (each["loss"] != each["loss"], each["loss"]))
    if len(found) > 1 and not found[1]["loss"] - found[0]["loss"] > MARGIN:
        raise FlyweightError(
            f"--fit {text} does not tell {found[0]['options']} from {found[1]['options']}:"
            f" {found[0]['loss']:.4f} and {found[1]['loss']:.4f} nats a token; give a longer text"
            " in a language that the model was trained on"
        )
    return found
