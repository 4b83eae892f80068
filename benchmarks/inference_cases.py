"""What cpu_inference.py times: shapes with random weights, and what is aimed at."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from own_python import say

from flyweight.files.random_weights import RandomSource
from flyweight.files.to_gguf import export_gguf
from flyweight.files.to_huggingface import write_huggingface
from flyweight.load import stored
from flyweight.spec.model import ModelSpec
from flyweight.text.gguf_tokens import placeholder
from flyweight.zoo import catalog

OURS = "flyweight"


class Case(NamedTuple):
    """A model, a type and the goals.

    ``goals`` by figure: "decode", "prefill" (times llama.cpp's), "first" (llama.cpp's seconds to
    the first token, over ours), "peak" (our peak memory over llama.cpp's, at most), "limit" (share
    of the memory's bandwidth while decoding), "one thread" (its decoding over that of all),
    "distinct" (decoding, times that of blocks that are not shared), "pooled" (times what the
    share of its parts lets expect). ``prompt`` and ``tokens`` are read and made a run.
    """

    model: str
    type: str
    goals: dict[str, float]
    prompt: int = 512
    tokens: int = 64

    @property
    def peer(self) -> bool:
        """Whether llama.cpp runs beside."""
        return "first" in self.goals


def _against(decode: float, prefill: float, **more: float) -> dict[str, float]:
    return {"decode": decode, "prefill": prefill, "first": 1.0, **more}


CASES = {
    "10m-q4_0": Case("10m", "q4_0", _against(2.5, 1.6)),
    "350m-q4_0": Case("mobilellm-350m", "q4_0", _against(1.8, 2.1)),
    "mobillama-q4_0": Case("mobillama-0.5b", "q4_0", _against(2.2, 2.1, peak=0.4)),
    "geb-q4_0": Case("geb-1.3b", "q4_0", _against(1.3, 2.1)),
    "350m-q8_0": Case("mobilellm-350m", "q8_0", _against(1.4, 2.1)),
    "350m-q4_k_m": Case("mobilellm-350m", "q4_k_m", _against(1.4, 2.1)),
    "geb-bf16": Case("geb-1.3b", "bf16", {"limit": 0.9, "first": 1.0}, 64, 16),
    "geb-f32": Case("geb-1.3b", "f32", {"limit": 0.9, "first": 1.0}, 64, 16),
    "ls-350m-q4_0": Case("mobilellm-ls-350m", "q4_0", {"distinct": 1.25}, 64),
    "350m-one-thread": Case("mobilellm-350m", "q4_0", {"limit": 0.0, "one thread": 0.55}, 64),
    "geb-one-thread": Case("geb-1.3b", "q4_0", {"limit": 0.0, "one thread": 0.55}, 64),
    "pooled-q4_0": Case("pooled", "q4_0", {"pooled": 1.0}, 256),
}

# The 10M byte-level Llama of the comparison.
TEN = {
    "vocab_size": 258,
    "width": 320,
    "depth": 8,
    "context": 1024,
    "attention": {"heads": 5},
    "feedforward": {"hidden": 864},
    "tie_embeddings": False,
}
# A core on bytes, and the same core on patches of four.
PLAIN = {
    "vocab_size": 258,
    "width": 768,
    "depth": 12,
    "context": 1024,
    "attention": {"heads": 12},
    "feedforward": {"hidden": 2048},
}
PATCHES = {"kind": "patches", "patch": "fixed", "size": 4, "width": 256, "hidden": 512}
OWN: dict[str, dict[str, Any]] = {"10m": TEN, "plain": PLAIN, "pooled": PLAIN | {"input": PATCHES}}


def spec_of(model: str) -> ModelSpec:
    """By the name of a case; ``-distinct``: every use of a shared block a block of its own."""
    if model in OWN:
        return ModelSpec.parse(OWN[model])
    spec = catalog.get(model.removesuffix("-distinct")).spec
    if not model.endswith("-distinct"):
        return spec
    values = spec.values()
    values["depth"] = spec.depth * spec.share.repeat
    del values["share"]
    return ModelSpec.parse(values)


def file_of(model: str, type: str, folder: Path, expand: bool = False) -> Path:
    """The GGUF file, with random weights; made once. ``expand``: as llama.cpp needs it."""
    spec = spec_of(model)
    shared = spec.share.feedforward != "none" or spec.share.block != "none"
    path = folder / f"{model}{'-expanded' if expand and shared else ''}-{type}.gguf"
    if not path.exists():
        say(f"making {path.name}")
        folder.mkdir(parents=True, exist_ok=True)
        tokens = placeholder(spec.vocab_size)
        source = RandomSource(spec)
        unfinished = path.with_suffix(".part")
        export_gguf(
            spec, source, tokens, unfinished, model, type, "", expand and shared, None, _silent
        )
        unfinished.rename(path)
    return path


def onnx_of(model: str, folder: Path, python: str) -> Path | None:
    """The folder that ONNX Runtime GenAI's builder makes of the same weights, in blocks of 32 with
    4 bits; made once, by the interpreter ``python``. None where it does not know the shape."""
    out = folder / f"{model}-onnx-int4"
    if out.exists():
        return out
    say(f"making {out.name}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as within:
        theirs, made = Path(within, "hf"), Path(within, "made")
        found = stored(str(file_of(model, "f16", Path(within), expand=True)))
        assert found.tokenizer is not None
        write_huggingface(found.spec, found.weights, found.tokenizer, theirs, model, found.family)
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(theirs)]
        command += ["-o", str(made), "-c", f"{within}/cache", "-p", "int4", "-e", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True)
        if "NotImplementedError" in done.stderr:
            say(f"{model}: {done.stderr.splitlines()[-1]}")
            return None
        if done.returncode:
            sys.exit(f"{done.stderr}\nONNX Runtime GenAI's builder failed, as above")
        made.rename(out)
    return out


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def _silent(done: int, total: int) -> None:
    pass


def expected_gain(type: str, folder: Path) -> tuple[float, float]:
    """(patch size, times the plain byte model's bytes a second that pooling lets expect).

    A byte costs the plain model its core and head; the pooled one its front, decoder and head,
    and a fourth of the core. Costs are the bytes of the matrices in the files.
    """
    plain = file_of("plain", type, folder).stat().st_size
    pooled = file_of("pooled", type, folder).stat().st_size
    size = int(PATCHES["size"])  # type: ignore[call-overload]
    return size, plain / (pooled - plain + plain / size)
