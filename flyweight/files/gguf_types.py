"""Which format each tensor of a GGUF file gets, for each ``--type``.

Vectors, positions and offsets are always F32. "q4_k_m" is llama.cpp's mixture: Q4_K, with six bits
where errors cost most (the head, half of the values' and of the down projections), and with
llama.cpp's own replacements where rows are no multiple of 256.
"""

from __future__ import annotations

import re

from flyweight.files.formats import FORMATS, Format

# llama.cpp's numbers for what a file is mostly made of (general.file_type).
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q4_k_m": 15,
}
_SMALLER = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_EXACT = re.compile(r".*(^embedding\.positions|offset)$")


class Types:
    """The formats of one file; remembers what came out otherwise than asked.

    ``layers``: the blocks that the file has. ``tied``: the embeddings are the head as well.
    """

    def __init__(self, asked: str, layers: int, tied: bool) -> None:
        assert asked in FILE_TYPES, asked
        self.asked, self.layers, self.tied = asked, layers, tied
        # Names by the format that they got instead of the one they should have.
        self.instead: dict[tuple[str, str], list[str]] = {}

    def __call__(self, ours: str, written: str, shape: tuple[int, ...]) -> Format:
        """``ours``: our tensor's name; ``written``: that in the file."""
        if len(shape) == 1 or _EXACT.match(ours):
            return FORMATS["f32"]
        wanted = self._of_mixture(ours, written) if self.asked == "q4_k_m" else self.asked
        form = FORMATS[wanted]
        while shape[-1] % form.block:
            form = FORMATS[_SMALLER.get(form.name, "f16")]
        if form.name != wanted:
            self.instead.setdefault((wanted, form.name), []).append(written)
        return form

    def _of_mixture(self, ours: str, written: str) -> str:
        if ours.endswith("head.weight") or (self.tied and ours == "embedding.weight"):
            return "q6_k"
        found = re.search(r"\.(\d+)\.", written)
        layer = int(found[1]) if found else 0
        if "attn_qkv" in written or (ours.endswith("attention.qkv.weight") and ours == written):
            return "q5_k"
        if "attn_v" in written or ours.endswith("feedforward.down.weight"):
            return "q6_k" if self._matters(layer) else "q4_k"
        return "q4_k"

    def _matters(self, layer: int) -> bool:
        """The first and last eighth of the layers, and every third between."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
