"""ggml's tensor formats: their names and numbers, and how large a block is."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """``number`` is ggml's; a block of ``block`` numbers takes ``size`` bytes."""

    name: str
    number: int
    block: int
    size: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row. ``columns`` must be a multiple of the block."""
        assert columns % self.block == 0, (self.name, columns)
        return columns // self.block * self.size


FORMATS = {
    f.name: f
    for f in (
        Format("f32", 0, 1, 4),
        Format("f16", 1, 1, 2),
        Format("q4_0", 2, 32, 18),
        Format("q4_1", 3, 32, 20),
        Format("q5_0", 6, 32, 22),
        Format("q5_1", 7, 32, 24),
        Format("q8_0", 8, 32, 34),
        Format("q4_k", 12, 256, 144),
        Format("q5_k", 13, 256, 176),
        Format("q6_k", 14, 256, 210),
        Format("iq4_nl", 20, 32, 18),
        Format("bf16", 30, 1, 2),
    )
}
NUMBERED = {f.number: f for f in FORMATS.values()}
# Those that ggml has besides, so that an error can name them.
OTHERS = {
    9: "q8_1", 10: "q2_k", 11: "q3_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs",
    19: "iq1_s", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32",
    27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4",
}  # fmt: skip
