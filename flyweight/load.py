"""``flyweight.load``: any MODEL by its path or name, ready to talk."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flyweight.spec.collection import no_collection
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import nearest
from flyweight.text.talk import Talker

if TYPE_CHECKING:
    from flyweight.files.run import RunFolder
    from flyweight.files.tensors import Tensors
    from flyweight.files.weights import StoredTensor
    from flyweight.text.tokenizer import Tokenizer

ENGINES = ("auto", "native", "torch")
# More are a slip; PyTorch would start them all.
MOST_THREADS = 1024
Notice = Callable[[str], None]
T = TypeVar("T")


@no_collection()
def load(
    model: str | os.PathLike[str],
    threads: int | None = None,
    engine: str = "auto",
    format: str | None = None,
    cache: str = "auto",
    notice: Notice | None = None,
) -> Talker:
    """The model at ``model``: a run folder, RUN@STEP, a checkpoint's, a model or a Hugging Face
    folder, a .gguf file, or a name of the zoo (random weights, which ``notice`` is told).

    ``engine``: "native" (our kernels, no PyTorch), "torch", or "auto", native where it is built
    and covers the model. Native alone: ``format`` converts the matrices in memory (None: as they
    are stored), ``cache`` is the key-value cache's format, "f32", "f16", "bf16", "q8_0", or
    "auto": F32 where all matrices are in F32, F16 elsewhere.

    Raises FlyweightError where there is none, CorruptFileError where it is damaged.
    """
    say = notice or _warn
    if engine not in ENGINES:
        raise FlyweightError(f"engine = {engine}{nearest(engine, list(ENGINES))}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise FlyweightError(f"threads = {threads}: 1 to {MOST_THREADS} is wanted")
    found = stored(os.fspath(model), say)
    reason = _not_native(found, engine)
    if reason is None:
        from flyweight.engine.runtime import NativeModel
        from flyweight.files.weights import check_fit

        check_fit(found.weights.kinds, found.spec, found.path)
        tensors = found.tensors
        if format is not None:
            from flyweight.files.convert import Converted

            tensors = Converted(tensors, found.spec, format, say)
        spec = found.spec
        with _beside(found.words) as words:
            del found  # with all that a GGUF file says of its vocabulary
            return NativeModel(os.fspath(model), spec, tensors, words, threads, cache)
    if engine == "native":
        raise FlyweightError(f"--engine native: {reason}")
    for name, given in (("format", format), ("cache", None if cache == "auto" else cache)):
        if given is not None:
            raise FlyweightError(
                f"{name} = {given} is the native engine's"
                + ("" if engine == "torch" else f", and {reason}")
            )
    return _with_torch(found, threads)


@contextmanager
def _beside(call: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """``call`` on a thread of its own; a function that waits for what it returns or raises.

    Where memory may be refused the call comes first: tokenizers end the process without it, and
    weights for which there is none are an error.
    """
    if any(getrlimit(kind)[0] != RLIM_INFINITY for kind in (RLIMIT_AS, RLIMIT_DATA)):
        first = call()
        yield lambda: first
        return
    returned: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    def result() -> T:
        thread.join()
        if raised:
            raise raised[0]
        return returned[0]

    thread = Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        thread.join()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _not_native(found: Stored, engine: str) -> str | None:
    """Why the native engine does not run the model; None where it does."""
    if engine == "torch":
        return "PyTorch was asked for"
    from flyweight.engine.compile import uncovered
    from flyweight.engine.runtime import unavailable

    if reason := uncovered(found.spec):
        return f"the native engine has no {reason}"
    return unavailable()


def _with_torch(found: Stored, threads: int | None) -> Talker:
    import torch

    from flyweight.model.answer import AnsweringModel
    from flyweight.model.decoder import Decoder
    from flyweight.model.runtime import TorchModel
    from flyweight.model.weights import fill_weights

    if threads is not None:
        torch.set_num_threads(threads)
    decoder, words = Decoder(found.spec), found.words()
    fill_weights(decoder, found.weights, found.path)
    if decoder.slots is not None:
        decoder.slots.spell(words)
    kind = TorchModel if found.spec.encoder is None else AnsweringModel
    return kind(found.called, decoder, words)


class Stored(NamedTuple):
    """A model as it lies on the disk, none of its weights read yet.

    ``called``: what it was asked for by. ``weights``: in our names, as numbers. ``family``:
    where it was imported from, if it was. ``tokenizer``: None for a name of the zoo.
    ``metadata``: a GGUF file's.
    """

    called: str
    name: str
    family: str
    spec: ModelSpec
    path: Path
    weights: Tensors
    tokenizer: Path | None
    metadata: dict[str, Any] | None = None

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The weights in ggml's formats, as they are stored."""
        from flyweight.files.weights import Dequantised, StoredTensors

        if isinstance(self.weights, Dequantised):
            return self.weights.tensors
        return StoredTensors(self.weights)

    def words(self) -> Tokenizer:
        """The tokenizer; for a name of the zoo one that stands in for it."""
        if self.metadata is not None:
            from flyweight.text.load import gguf_tokenizer

            return gguf_tokenizer(self.path, self.metadata)
        if self.tokenizer is not None:
            from flyweight.text.load import load_tokenizer

            return load_tokenizer(self.tokenizer)
        from flyweight.text.gguf_tokens import placeholder

        return placeholder(self.spec.vocab_size)


def stored(name: str, notice: Notice = _warn) -> Stored:
    """What ``name`` stands for. Raises FlyweightError where there is no model."""
    from flyweight.files.model_folder import is_model_folder, read_family
    from flyweight.files.tensors import TensorFile

    path = Path(name).expanduser()
    called = Path(os.path.abspath(path)).name
    if path.is_file() and is_gguf(path):
        return _from_gguf(name, path, notice)
    if not path.exists():
        from flyweight.zoo import catalog

        if name in catalog.names():
            return _random(name, notice)
    # Each kind's own code is imported for it alone.
    if (path / "config.json").is_file() and not (
        is_model_folder(path) or (path / "run.toml").is_file()
    ):
        from flyweight.files.huggingface import as_ours, open_source

        source = open_source(path)
        model = as_ours(source)
        return Stored(name, called, source.family, model.spec, path, model, path)
    spec, weights, tokenizer = _locate(name)
    family = read_family(path) if is_model_folder(path) else ""
    return Stored(name, called, family, spec, weights, TensorFile(weights), tokenizer)


def is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"


def _from_gguf(name: str, path: Path, notice: Notice) -> Stored:
    from flyweight.files.from_gguf import OWN, open_gguf
    from flyweight.files.weights import Dequantised, GgufTensors

    model = open_gguf(path)
    for note in model.notes:
        notice(f"{path}: {note}")
    weights = Dequantised(GgufTensors(model.weights), model.spec)
    family = "" if model.architecture == OWN else model.architecture
    return Stored(name, model.name, family, model.spec, path, weights, path, model.metadata)


def _random(name: str, notice: Notice) -> Stored:
    from flyweight.files.weights import Dequantised, RandomTensors
    from flyweight.zoo import catalog

    entry = catalog.get(name)
    notice(f"{name} has random weights: it is a shape, not a trained model")
    weights = Dequantised(RandomTensors(entry.spec), entry.spec)
    return Stored(name, name, entry.family, entry.spec, Path(name), weights, None)


def _locate(name: str) -> tuple[ModelSpec, Path, Path]:
    """(spec, weights file, tokenizer file) of what ``name`` stands for."""
    from flyweight.files.model_folder import TOKENIZER, WEIGHTS, is_model_folder, read_spec

    path = Path(name).expanduser()
    if found := in_run(name):
        return _from_run(*found)
    if path.is_dir():
        if is_model_folder(path):
            return read_spec(path), path / WEIGHTS, path / TOKENIZER
        raise FlyweightError(
            f"{path} is no model: neither a run folder, nor a checkpoint's, nor a model folder"
            " (model.toml and model.safetensors), nor a Hugging Face folder (config.json)"
        )
    if path.exists():
        raise FlyweightError(
            f"{path} is a file; a run folder, a model folder or a .gguf file is wanted"
        )
    near = nearest(path.name, _siblings(path)) if path.parent.is_dir() else ""
    raise FlyweightError(f"no model at {path}{near}")


def in_run(name: str) -> tuple[RunFolder, int] | None:
    """The run and the step that ``name`` means: a run folder (its newest checkpoint), RUN@STEP, or
    a checkpoint's folder; None where it is something else. The step need not be there.

    Raises FlyweightError where a run has no checkpoint yet, or RUN of RUN@STEP is none.
    """
    from flyweight.files.model_folder import is_model_folder
    from flyweight.files.run import RunFolder

    path = Path(name).expanduser()
    at = re.fullmatch(r"(.+)@(\d+)", name)
    if not path.exists() and at:
        return RunFolder.open(Path(at[1]).expanduser()), int(at[2])
    if not path.is_dir() or is_model_folder(path):
        return None
    if (path / "run.toml").is_file():
        run = RunFolder.open(path)
        steps = run.steps()
        if not steps:
            raise FlyweightError(f"{path} has no complete checkpoint yet")
        return run, steps[-1]
    # By its own name, though it be given as "." or through a link.
    whole = path.resolve()
    if whole.name.isdigit() and whole.parent.name == "checkpoints":
        return RunFolder.open(whole.parent.parent), int(whole.name)
    return None


def _siblings(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.is_dir())[:50]


def _from_run(run: RunFolder, step: int) -> tuple[ModelSpec, Path, Path]:
    from flyweight.files.model_folder import TOKENIZER, WEIGHTS
    from flyweight.files.run import read_checkpoint_state

    if step not in run.steps():
        have = sorted(run.steps(), key=lambda s: abs(s - step))[:8]
        near = "; it has: " if len(have) == len(run.steps()) else "; the nearest of those kept: "
        listed = ", ".join(map(str, sorted(have))) or "none"
        raise FlyweightError(f"{run.path} has no checkpoint at step {step}{near}{listed}")
    folder = run.checkpoint_path(step)
    read_checkpoint_state(folder)
    tokenizer = run.model / TOKENIZER
    if not tokenizer.is_file():
        tokenizer = run.dataset()[0] / "tokenizer.json"
    return run.spec().model, folder / WEIGHTS, tokenizer
