"""Safetensors, read and written with our errors, whole or a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from flyweight.spec.errors import CorruptFileError, FlyweightError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    # A tensor's numbers as they are stored, without their meaning: uint16, uint32 or uint64.
    Bits = NDArray[np.unsignedinteger[Any]]

# The format's names of the kinds that weights come in, and torch's, in the order of the format's
# own enumeration: a file has the last of them first.
KINDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


class ByName(Protocol):
    def __getitem__(self, name: str, /) -> torch.Tensor: ...


class Kind(NamedTuple):
    """What a stored tensor is without its content: ``dtype`` as safetensors writes it."""

    dtype: str
    shape: tuple[int, ...]


class Tensors(Protocol):
    """Stored tensors by name, whose content is read when it is asked for.

    ``bits`` needs no torch where the file itself needs none.
    """

    @property
    def kinds(self) -> Mapping[str, Kind]: ...

    def __getitem__(self, name: str) -> torch.Tensor: ...

    def bits(self, name: str) -> Bits: ...


class TensorFile:
    """A safetensors file, mapped into memory: a tensor's pages are read when it is used.

    Raises CorruptFileError where the header does not fit the file: sizes that lie, offsets that
    overlap or leave holes, shapes that are not what the offsets say.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        if not path.is_file():
            raise FlyweightError(f"no such file: {path}")
        self.path = path
        # The library checks the header against the file.
        with _as_ours(path), safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.kinds: dict[str, Kind] = {
                name: Kind(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
        self._torch: Any = None
        self._mapped: tuple[NDArray[np.uint8], dict[str, Any]] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with _as_ours(self.path):
            if self._torch is None:
                self._torch = safe_open(self.path, framework="pt")
            return self._torch.get_tensor(name)

    def bits(self, name: str) -> Bits:
        """A read-only view of the mapped file, in the tensor's shape.

        Raises CorruptFileError where it holds what no weights come in.
        """
        kind = self.kinds[name]
        if kind.dtype not in KINDS:
            raise CorruptFileError(
                f"{self.path}: {name} is in {kind.dtype}; weights come in {', '.join(KINDS)}"
            )
        if self._mapped is None:
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            import numpy as np

            mapped = np.memmap(self.path, np.uint8, mode="r", offset=8 + length)
            # An ordinary array: slices of a memmap cost its bookkeeping each time.
            self._mapped = mapped.view(np.ndarray), header
        data, header = self._mapped
        begin, end = header[name]["data_offsets"]
        return data[begin:end].view(word_of(kind)).reshape(kind.shape)


@contextmanager
def _as_ours(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is not a whole safetensors file: {error}") from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises CorruptFileError naming the file."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise FlyweightError(f"no such file: {path}")
    with _as_ours(path):
        return load_file(path)


def serialised(tensors: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file's content. Equal tensors make equal bytes: no metadata, names sorted."""
    from safetensors.torch import save

    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write ``serialised(tensors)`` to ``path``."""
    path.write_bytes(serialised(tensors))


def stream_tensors(
    path: Path,
    kinds: Mapping[str, Kind],
    tensors: ByName,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file with one tensor in memory at a time.

    ``kinds`` says what is to be written; ``tensors[name]`` is asked for once each. Without
    ``metadata`` the file equals that of ``write_tensors`` to the byte.
    """
    import torch

    order = list(KINDS)
    names = sorted(kinds, key=lambda name: (-order.index(kinds[name].dtype), name))
    with open(path, "wb") as file:
        _write_header(file, [(name, kinds[name]) for name in names], metadata)
        for name in names:
            tensor = tensors[name].detach()
            assert (kind_of(tensor)) == kinds[name], name
            if tensor.numel():
                raw = tensor.contiguous().reshape(-1).view(torch.uint8)
                file.write(raw.numpy().data)


def _write_header(
    file: IO[bytes], kinds: Iterable[tuple[str, Kind]], metadata: dict[str, str] | None
) -> None:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, kind in kinds:
        end = at + size(kind)
        header[name] = {"dtype": kind.dtype, "shape": kind.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def kind_of(tensor: torch.Tensor) -> Kind:
    """A tensor's Kind; its dtype as torch writes it where no weights come in it."""
    name = str(tensor.dtype).removeprefix("torch.")
    ours = next((short for short, long in KINDS.items() if long == name), name)
    return Kind(ours, tuple(tensor.shape))


def size(kind: Kind) -> int:
    """Bytes of a tensor of this kind."""
    count = _BYTES[kind.dtype]
    for length in kind.shape:
        count *= length
    return count


def word_of(kind: Kind) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned integer that one number of this kind fills."""
    import numpy as np

    return np.dtype(f"<u{_BYTES[kind.dtype]}")


def bits_of(tensor: torch.Tensor) -> Bits:
    """A tensor's numbers as they are stored."""
    import torch

    words = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
    return tensor.detach().contiguous().view(words[tensor.element_size()]).numpy()


def dtype_of(kind: Kind) -> torch.dtype:
    """torch's dtype for a kind that weights come in."""
    import torch

    dtype: torch.dtype = getattr(torch, KINDS[kind.dtype])
    return dtype
