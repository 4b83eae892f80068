"""Checkpoints as PyTorch wrote them before 1.6, read as data: no code in them runs.

Such a file is a row of pickles (a magic number, the format's version, facts of the machine, the
tensors by name, the keys of their storages), and behind them each storage: how many numbers, as a
little-endian int64, and the numbers. A tensor is a view of a storage. The pickles are read with
everything a state_dict is made of and nothing else, and only what fits the file is believed.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from flyweight.files.tensors import KINDS, Kind
from flyweight.spec.errors import CorruptFileError

if TYPE_CHECKING:
    import torch

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_BEGINNING = pickle.dumps(_MAGIC, protocol=2)
# torch's name of a dtype, and the bytes of a number, by the class of a storage.
_STORAGES = {
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
_SHORT = {long: short for short, long in KINDS.items()}
# Those of the protocol that torch.save writes: some later ones claim memory before they have read.
_OPCODES = {ord(opcode.code) for opcode in pickletools.opcodes if opcode.proto <= 2}


def is_legacy(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


class _Storage(NamedTuple):
    key: str
    dtype: str
    width: int
    length: int


class _View(NamedTuple):
    """Numbers of a storage: from ``offset`` on, strides counted in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """The number behind the last that it reaches."""
        steps = ((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.offset + sum(steps) + 1 if prod(self.shape) else self.offset


class LegacyFile:
    """The tensors of such a file, mapped into memory; each is copied when it is asked for.

    Raises CorruptFileError, or whatever a damaged pickle leads to.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            # A private copy is writable, as torch wants it, and the file stays as it is.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = _Reader(path, self._map)
        magic, version, machine, found, keys = (reader.next() for _ in range(5))
        if (magic, version) != (_MAGIC, _VERSION) or machine.get("little_endian") is not True:
            raise CorruptFileError(f"{path} is of a version or a machine that is not known")
        if not isinstance(found, dict):
            raise CorruptFileError(f"{path} holds a {type(found).__name__}, not tensors by name")
        self._at = self._places(path, reader.storages, keys)
        self._views: dict[str, _View] = {}
        for name, view in dict(found).items():
            if not isinstance(name, str) or not isinstance(view, _View):
                raise CorruptFileError(
                    f"{path} holds {name!r} ({type(view).__name__}) beside tensors; save the"
                    " model's state_dict alone"
                )
            if prod(view.shape) > view.storage.length or view.end > view.storage.length:
                raise CorruptFileError(
                    f"{path}: {name} claims {list(view.shape)} of {view.storage.length} numbers"
                )
            self._views[name] = view
        self.kinds: dict[str, Kind] = {
            name: Kind(_SHORT.get(view.storage.dtype, view.storage.dtype), view.shape)
            for name, view in self._views.items()
        }

    def _places(self, path: Path, storages: dict[str, _Storage], keys: Any) -> dict[str, int]:
        """Where the numbers of each storage begin: one after the other up to the file's end."""
        at, places = self._map.tell(), {}
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(self._map[at : at + 8], "little", signed=True)
            places[key] = at + 8
            at += 8 + storage.length * storage.width
            if count != storage.length or at > len(self._map):
                raise CorruptFileError(f"{path} claims tensors of other sizes than it holds")
        if places.keys() != storages.keys() or at != len(self._map):
            raise CorruptFileError(f"{path} claims other tensors than it holds")
        return places

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        storage, offset, shape, stride = view = self._views[name]
        dtype: torch.dtype = getattr(torch, storage.dtype)
        count = (view.end - offset) * storage.width
        if not count:
            return torch.empty(shape, dtype=dtype)
        at = self._at[storage.key] + offset * storage.width
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=at)
        # Copied, as numbers in the file lie wherever the pickles end.
        return raw.clone().view(dtype).as_strided(shape, stride)


class _Reader(pickle._Unpickler):
    """Python's own unpickler in Python, whose memory is bounded by what it reads."""

    dispatch: ClassVar[dict[int, Any]] = {
        op: read for op, read in pickle._Unpickler.dispatch.items() if op in _OPCODES
    }

    stack: list[Any]

    def __init__(self, path: Path, file: mmap.mmap) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self.storages = path, dict[str, _Storage]()

    def next(self) -> Any:
        self.memo: dict[int, Any] = {}
        return self.load()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in _BUILDERS:
            raise CorruptFileError(
                f"{self._path} holds more than tensors ({module}.{name}); nothing of it was run"
            )
        return _BUILDERS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, stored, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view) or type(key) is not str:
            raise ValueError(f"{kind} is no storage")
        storage = _Storage(key, *_STORAGES[stored], _size(count))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key} is described twice")
        return storage

    def load_build(self) -> None:
        # A state_dict carries notes on its modules, which nothing here needs.
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise ValueError("only a state_dict has a state")

    dispatch[pickle.BUILD[0]] = load_build


def _size(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(f"{number!r} is no size")
    return number


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> _View:
    if not isinstance(storage, _Storage) or len(shape) != len(stride):
        raise ValueError("a tensor without a storage, or of two shapes")
    sizes, steps = (tuple(_size(number) for number in each) for each in (shape, stride))
    return _View(storage, _size(offset), sizes, steps)


def _parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


_BUILDERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
