"""Fuzzing of the files' readers, guided by coverage (libFuzzer through atheris): `make fuzz`.

A file is read, and then every tensor of it, or one FlyweightError says what is wrong. Whatever
else happens is a finding: another exception, 2 GB of memory, 20 seconds.

    python tests/fuzz/readers.py seeds gguf FOLDER
    python tests/fuzz/readers.py gguf [libFuzzer's options] FOLDER...
"""

from __future__ import annotations

import math
import random
import re
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# The rest is imported where it is used: what is here before atheris comes, it does not watch.
from flyweight.spec.errors import FlyweightError

_TINY: dict[str, Any] = {
    "vocab_size": 258,
    "width": 32,
    "depth": 1,
    "context": 16,
    "attention": {"heads": 2, "kv_heads": 1},
    "feedforward": {"kind": "swiglu", "hidden": 32},
    "tie_embeddings": True,
}
# As GGUF: the model's tables, and the weights' type.
GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, "q4_0"),
    "phi3": ({"attention": {"heads": 2}, "position": {"fraction": 0.5}}, "q8_0"),
    "gpt2": (
        {
            "position": {"kind": "learned"},
            "norm": {"kind": "layer", "bias": True},
            "feedforward": {"kind": "gelu", "hidden": 32, "bias": True},
            "attention": {"heads": 2, "bias": True},
        },
        "q4_0",
    ),
    "flyweight": ({"depth": 2, "share": {"block": "adjacent", "repeat": 2}}, "q4_0"),
    "patches": ({"input": {"kind": "patches", "width": 32, "hidden": 32, "size": 4}}, "q4_0"),
}


def gguf_seeds(folder: Path) -> None:
    from flyweight.files.random_weights import RandomSource
    from flyweight.files.to_gguf import export_gguf
    from flyweight.spec.model import ModelSpec
    from flyweight.text.bytes import ByteTokenizer

    for name, (values, type_) in GGUF.items():
        values = {**_TINY, **values}
        if "input" in values:
            values = {k: v for k, v in values.items() if k != "tie_embeddings"}
        spec = ModelSpec.parse(values)
        export_gguf(spec, RandomSource(spec), ByteTokenizer(), folder / name, name, type_)


def safetensors_seeds(folder: Path) -> None:
    from safetensors.numpy import save

    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
    (folder / "two").write_bytes(save({"a": a, "b": b}))
    (folder / "none").write_bytes(save({}))
    (folder / "empty").write_bytes(save({"a": np.empty((0, 7), np.float64)}))


def read_gguf(path: Path) -> None:
    """The model, its tokenizer, its tensors; and a token from it, where all that is whole."""
    from flyweight.engine.runtime import NativeModel
    from flyweight.files.from_gguf import open_gguf
    from flyweight.files.weights import GgufTensors
    from flyweight.text.load import load_tokenizer

    model = open_gguf(path)
    for weight in model.weights.values():
        weight.dequantise()
    words = load_tokenizer(path)
    words.decode(words.encode("ab c"))
    if model.spec.encoder is None and model.spec.context <= 1 << 16:
        native = NativeModel("fuzzed", model.spec, GgufTensors(model.weights), lambda: words, 1)
        native.generate("ab", 2)


def read_safetensors(path: Path) -> None:
    from flyweight.files.tensors import TensorFile
    from flyweight.files.weights import StoredTensors

    file = TensorFile(path)
    tensors = StoredTensors(file)
    for name in file.kinds:
        assert tensors[name].data.nbytes <= path.stat().st_size


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "gguf": (read_gguf, gguf_seeds),
    "safetensors": (read_safetensors, safetensors_seeds),
}


def read(kind: str, data: bytes, path: Path) -> None:
    """Reads ``data`` as a file at ``path``; a FlyweightError is what a bad file should give."""
    path.write_bytes(data)
    try:
        READERS[kind][0](path)
    except FlyweightError as error:
        assert str(error)


# A key of the metadata or a tensor's name; its type, shape, value and place follow.
_NAME = re.compile(rb"[a-z0-9_]+(?:\.[a-z0-9_]+)+")
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    257,
    258,
    1 << 16,
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
)


def changed(data: bytes, rng: random.Random) -> bytes:
    """A GGUF file with a number that follows one of its names changed, and its sizes as they were:
    what comes behind the header is reached, too."""
    names = list(_NAME.finditer(data))
    made = bytearray(data)
    at = rng.choice(names).end() + 4 * rng.randrange(9)
    form = rng.choice(("<I", "<Q", "<f"))
    value = (
        rng.choice((0.0, -1.0, 1e-6, 2.0, 1e30, math.nan)) if form == "<f" else rng.choice(_NUMBERS)
    )
    new = struct.pack(form, value if form != "<I" else value & 0xFFFFFFFF)
    made[at : at + len(new)] = new[: max(0, len(made) - at)]
    return bytes(made)


def main() -> None:
    if sys.argv[1] == "seeds":
        folder = Path(sys.argv[3])
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            READERS[sys.argv[2]][1](folder)
        return
    kind = sys.argv.pop(1)
    import atheris

    with atheris.instrument_imports(include=["flyweight"], enable_loader_override=False):
        import flyweight.engine.runtime
        import flyweight.files.from_gguf
        import flyweight.files.tensors
        import flyweight.files.weights
        import flyweight.text.load  # noqa: F401
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
        path = Path(folder) / "model.gguf"

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if kind != "gguf" or rng.random() < 0.3 or not _NAME.search(data):
                return bytes(atheris.Mutate(data, most))
            return changed(data, rng)

        # Those that are given, later, count.
        options = [sys.argv[0], "-rss_limit_mb=2048", "-timeout=20", *sys.argv[1:]]
        atheris.Setup(options, lambda data: read(kind, data, path), custom_mutator=mutate)
        atheris.Fuzz()


def _memory() -> str | None:
    """A folder in memory, where there is one: every input becomes a file."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
