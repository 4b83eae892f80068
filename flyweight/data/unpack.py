"""Bytes out of a file, unpacked where it is packed, a bounded piece at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PACKED = (".zst", ".gz")
_CHUNK = 1 << 20
# zstd packs up to 128 KiB into 4 bytes: so many bytes in are at most 64 MiB out.
_ZSTD_INPUT = 2048


class BrokenError(Exception):
    """Packed data that ends early or does not unpack: what is wrong with it."""


def inner_name(file: Path) -> str:
    """The file's name without the suffix that says how it is packed."""
    return file.name[: -len(file.suffix)] if file.suffix.lower() in PACKED else file.name


def chunks(file: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The file's bytes, unpacked where its name ends in .zst or .gz; else those from ``start`` up
    to ``stop`` where these are given. Raises BrokenError."""
    suffix = file.suffix.lower()
    with file.open("rb") as raw:
        if suffix == ".zst":
            yield from _unzstd(raw)
        elif suffix == ".gz":
            yield from _ungzip(raw)
        elif stop is None:
            yield from _plain(raw)
        else:
            raw.seek(start)
            while start < stop and (chunk := raw.read(min(_CHUNK, stop - start))):
                start += len(chunk)
                yield chunk


def lines(chunks: Iterator[bytes], longest: int) -> Iterator[bytes | None]:
    """The lines without their newlines; None for one of more than ``longest`` bytes, which is
    passed over without being held."""
    held: list[bytes] = []
    size, overlong = 0, False

    def line(end: bytes) -> bytes | None:
        nonlocal held, size, overlong
        whole = None if overlong or size + len(end) > longest else b"".join([*held, end])
        held, size, overlong = [], 0, False
        return whole

    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        if others:
            yield line(first)
            for other in others[:-1]:
                yield other if len(other) <= longest else None
            first = others[-1]
        size += len(first)
        overlong = overlong or size > longest
        held = [] if overlong else [*held, first]
    if size:
        yield line(b"")


def _plain(raw: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := raw.read(_CHUNK):
        yield chunk


def _unzstd(raw: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    # Frame by frame: only so does a file that was cut short differ from one that ends.
    frame = None
    ready: list[bytes] = []
    size = 0
    try:
        while chunk := raw.read(_ZSTD_INPUT):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                out = frame.decompress(chunk)
                ready.append(out)
                size += len(out)
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
            if size >= _CHUNK:
                yield b"".join(ready)
                ready, size = [], 0
    except zstandard.ZstdError as error:
        yield b"".join(ready)
        raise BrokenError(f"not valid zstd ({error})") from None
    if size:
        yield b"".join(ready)
    if frame is not None:
        raise BrokenError("the zstd data ends early")


def _ungzip(raw: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from _plain(gzip.GzipFile(fileobj=raw))
    except EOFError:
        raise BrokenError("the gzip data ends early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BrokenError(f"not valid gzip ({error})") from None
