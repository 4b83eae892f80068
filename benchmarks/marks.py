"""Fixed marks: what general compressors make of the held-out bytes, alone or knowing the rest."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from typing import Any

from flyweight.measure.bits import compressors

# Larger than all the text, so that its beginning is still in reach at its end.
DICTIONARY = 64 << 20


def marks(train: bytes, held_out: bytes) -> dict[str, dict[str, Any]]:
    """{name: {"bytes", "bits_per_byte"}} of gzip -9, bzip2 -9, xz -9e and xz with dictionary.

    The dictionary's size is what the held-out bytes add to the compressed training text. It is
    measured by Python's lzma, and by the xz program where there is one; the smaller counts.
    """
    assert len(train) + len(held_out) < DICTIONARY
    found = {row["name"]: row["bytes"] for row in compressors([("held-out", held_out)])}
    added = {"lzma": len(_lzma(train + held_out)) - len(_lzma(train))}
    if shutil.which("xz"):
        added["xz program"] = len(_program(train + held_out)) - len(_program(train))
        found["xz -9e"] = min(found["xz -9e"], len(_program(held_out)))
    sizes = {**found, "xz with dictionary": min(added.values())}
    table: dict[str, dict[str, Any]] = {
        name: {"bytes": size, "bits_per_byte": 8 * size / len(held_out)}
        for name, size in sizes.items()
    }
    table["xz with dictionary"]["measured"] = added
    return table


def _lzma(data: bytes) -> bytes:
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": DICTIONARY}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters)


def _program(data: bytes) -> bytes:
    # One thread: more of them cut the text into blocks that know nothing of one another.
    command = ["xz", "-c", "-T1", f"--lzma2=preset=9e,dict={DICTIONARY}"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
