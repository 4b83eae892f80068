"""Datasets of the Hugging Face library: folders that `save_to_disk` wrote, and the hub's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from flyweight.data.document import Document, Skipped
from flyweight.data.piece import Piece
from flyweight.data.rows import ROWS, row_document
from flyweight.spec.data import Source
from flyweight.spec.errors import CorruptFileError, FlyweightError

# Rows of a saved dataset that are one worker's task.
_TASK = 20_000


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    parts = ("dataset_info.json", "state.json")
    return (folder / "dataset_dict.json").is_file() or all((folder / p).is_file() for p in parts)


def saved_pieces(name: str, source: Source, path: str, base: Path, longest: int) -> list[Piece]:
    """A saved dataset in pieces of some thousand rows; one piece for a dataset of the hub, which
    is streamed. ``path`` is a folder, or a name on the hub."""
    folder = base / Path(path).expanduser()

    def piece(where: Path, label: str, kind: str, start: int, stop: int | None) -> Piece:
        return Piece(
            *(where, label, name, kind, True, start, stop, start + 1),
            source.text,
            source.id,
            longest,
            source.subset,
            source.split,
            source.revision,
        )

    if not is_saved(folder):
        return [piece(Path(path), path, "hub", 0, None)]
    rows = len(_saved(str(folder), source.split))
    starts = range(0, max(rows, 1), _TASK)
    return [piece(folder, folder.name, "saved", at, min(at + _TASK, rows)) for at in starts]


def read_saved(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    """Rows ``start`` to ``stop`` of a saved dataset, read through a memory map."""
    dataset = _saved(str(piece.path), piece.split)
    _require(dataset.column_names, piece)
    columns = [name for name in (piece.id, piece.text) if name in dataset.column_names]
    stop = len(dataset) if piece.stop is None else piece.stop
    number = piece.start
    part = dataset.select_columns(columns).select(range(piece.start, stop))
    for batch in part.with_format("arrow").iter(ROWS):
        for row in batch.to_pylist():
            number += 1
            yield from row_document(row, piece, skipped, number, "row")


def read_hub(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    """The rows of a dataset on the hub, as they come."""
    datasets = _library(str(piece.path))
    try:
        stream = datasets.load_dataset(
            str(piece.path),
            piece.subset,
            split=piece.split,
            revision=piece.revision,
            streaming=True,
        )
        for number, row in enumerate(stream, start=1):
            if number == 1:
                _require(list(row), piece)
            yield from row_document(row, piece, skipped, number, "row")
    except FlyweightError:
        raise
    except Exception as error:  # the library raises what its many parts raise
        raise FlyweightError(
            f"the dataset {piece.path} could not be read from the hub ({error}); name a folder"
            " that `save_to_disk` wrote, or see to the connection"
        ) from None


@lru_cache(maxsize=4)
def _saved(folder: str, split: str) -> Any:
    datasets = _library(folder)
    try:
        found = datasets.load_from_disk(folder)
    except Exception as error:  # the library raises what its many parts raise
        raise CorruptFileError(
            f"{folder} is no whole dataset of the Hugging Face library ({error}); save it again"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise FlyweightError(
                f"{folder} has no split `{split}`; it has {', '.join(sorted(found))}:"
                " set `split` of the source"
            )
        found = found[split]
    return found


def _library(path: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise FlyweightError(f"{path} needs the package `datasets`: pip install datasets") from None
    return datasets


def _require(columns: list[str], piece: Piece) -> None:
    if piece.text not in columns:
        raise FlyweightError(
            f"{piece.path}: no `{piece.text}` (it has {', '.join(sorted(columns))}); name the"
            " column with `text` of the source"
        )
