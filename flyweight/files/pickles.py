"""PyTorch's pickled checkpoints (``.bin``), read as data: no code in them runs.

``torch.load(weights_only=True)`` builds nothing but tensors; what surrounds it here refuses files
whose claims exceed their size before anything is allocated. Files from before PyTorch 1.6 are
``legacy_pickles``'s.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flyweight.files.legacy_pickles import LegacyFile, is_legacy
from flyweight.files.tensors import Kind, bits_of, kind_of
from flyweight.spec.errors import CorruptFileError, FlyweightError

if TYPE_CHECKING:
    import torch

    from flyweight.files.tensors import Bits


class PickleFile:
    """The tensors of a ``.bin`` file, mapped into memory.

    Raises CorruptFileError where the file is damaged, holds code, or claims more than it has.
    """

    def __init__(self, path: Path) -> None:
        import torch

        if not path.is_file():
            raise FlyweightError(f"no such file: {path}")
        self._tensors: dict[str, torch.Tensor] | LegacyFile
        if is_legacy(path):
            with _as_ours(path):
                self._tensors = LegacyFile(path)
            self.kinds: dict[str, Kind] = self._tensors.kinds
            return
        records = _check_archive(path)
        with _as_ours(path), warnings.catch_warnings():
            # What torch remarks on a strange pickle ends in an error here or in nothing.
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(found, dict):
            raise CorruptFileError(f"{path} holds a {type(found).__name__}, not tensors by name")
        tensors: dict[str, torch.Tensor] = {}
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise CorruptFileError(
                    f"{path} holds {name!r} ({type(value).__name__}) beside tensors; save the"
                    " model's state_dict alone"
                )
            tensors[name] = _plain(path, name, value)
        storages = {t.untyped_storage().data_ptr(): t for t in tensors.values()}
        sizes = Counter(t.untyped_storage().nbytes() for t in storages.values() if t.numel())
        if sizes - records:
            raise CorruptFileError(f"{path} claims tensors of other sizes than it holds")
        self._tensors, self.kinds = tensors, {n: kind_of(t) for n, t in tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def bits(self, name: str) -> Bits:
        return bits_of(self._tensors[name])


@contextmanager
def _as_ours(path: Path) -> Iterator[None]:
    try:
        yield
    except FlyweightError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise CorruptFileError(
            f"{path} holds more than tensors, or is damaged; nothing of it was run: {reason}"
        ) from None
    # A damaged pickle may raise anything; whatever it is, the file is not usable.
    except (Exception, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptFileError(f"{path} is no checkpoint that can be read: {reason}") from None


def _check_archive(path: Path) -> Counter[int]:
    """Sizes of the tensors' records. A zip file of stored (not compressed) entries is wanted, no
    larger together than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeError) as error:
        raise CorruptFileError(
            f"{path} is no checkpoint that torch.save wrote ({error}); load it where it came from,"
            " and save the weights alone with torch.save"
        ) from None
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    claimed = sum(entry.file_size for entry in entries)
    if packed or claimed > path.stat().st_size:
        raise CorruptFileError(
            f"{path} claims {claimed} bytes of content in {path.stat().st_size}; it was not"
            " written by torch.save"
        )
    return Counter(entry.file_size for entry in entries if "/data/" in entry.filename)


def _plain(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as ordinary memory; one that repeats few bytes to look large is refused."""
    import torch

    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CorruptFileError(f"{path}: {name} is no plain tensor ({tensor.layout})")
    tensor = tensor.detach()
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CorruptFileError(
            f"{path}: {name} claims {list(tensor.shape)} and has"
            f" {tensor.untyped_storage().nbytes()} bytes"
        )
    return tensor
