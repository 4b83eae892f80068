"""Documents out of rows: JSON lines, CSV, Parquet."""

from __future__ import annotations

import codecs
import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flyweight.data.document import Document, Skipped, printable
from flyweight.data.piece import Piece, too_long
from flyweight.data.unpack import BrokenError, chunks, inner_name, lines
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.tokenizer import utf8

# Rows of a table that are held at a time.
ROWS = 256


def read_json_lines(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    file, number = piece.path, piece.first - 1
    data = chunks(file, piece.start, piece.stop)
    # What JSON adds to a text: at most six bytes for one.
    found = lines(data, piece.longest + (1 << 16))
    try:
        for number, line in enumerate(found, start=piece.first):
            where, name = f"{file}, line {number}", f"{piece.name}:{number}"
            if line is None:
                too_long(piece, skipped, where, name)
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line.removeprefix(codecs.BOM_UTF8))
            except (ValueError, RecursionError) as error:
                told = f"{where}: not valid JSON ({error}); mend or remove the line"
                skipped.broken("not valid JSON", name, CorruptFileError(told))
                continue
            if not isinstance(row, dict):
                told = f"{where}: a {type(row).__name__}, not an object"
                skipped.broken("a JSON line that is no object", name, CorruptFileError(told))
                continue
            if number == 1 and not piece.alone and piece.text not in row:
                skipped.add(f"JSON lines without a `{piece.text}`", piece.name)
                return
            yield from row_document(row, piece, skipped, number, "line")
    except BrokenError as error:
        told = f"{file}, after line {number}: {error}; get the file again"
        skipped.broken(
            f"damaged, {error}", f"{piece.name} after line {number}", CorruptFileError(told)
        )


def row_document(
    row: dict[str, Any], piece: Piece, skipped: Skipped, number: int, unit: str
) -> Iterator[Document]:
    """The document of a row, if it has a text."""
    text, id = row.get(piece.text), row.get(piece.id)
    where, name = f"{piece.path}, {unit} {number}", f"{piece.name}:{number}"
    if not isinstance(text, str):
        known = f"it has {', '.join(sorted(map(str, row))) or 'no fields'}"
        missing = piece.text not in row
        what = f"no `{piece.text}`" if missing else f"`{piece.text}` is a {type(text).__name__}"
        wanted = f"each row needs its text in `{piece.text}`"
        reason = f"a row without a `{piece.text}`" if missing else f"`{piece.text}` is no text"
        skipped.broken(reason, name, FlyweightError(f"{where}: {what} ({known}); {wanted}"))
        return
    try:
        size = len(utf8(text, where))
    except FlyweightError as error:
        skipped.broken("a lone surrogate", name, error)
        return
    if size > piece.longest:
        too_long(piece, skipped, where, name)
        return
    named = isinstance(id, (str, int)) and id != ""
    yield Document(printable(str(id)) if named else name, text, piece.source)


def read_csv(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    file = piece.path
    tabs = Path(inner_name(file)).suffix.lower() == ".tsv"
    at = 0

    def text_lines() -> Iterator[str]:
        nonlocal at
        for at, line in enumerate(lines(chunks(file), piece.longest), start=1):
            where, name = f"{file}, line {at}", f"{piece.name}:{at}"
            if line is None:
                too_long(piece, skipped, where, name)
                continue
            try:
                yield line.decode("utf-8-sig" if at == 1 else "utf-8") + "\n"
            except UnicodeDecodeError as error:
                told = f"{where}: not valid UTF-8 ({error.reason}); mend or remove the line"
                skipped.broken("not valid UTF-8", name, CorruptFileError(told))

    before = csv.field_size_limit(piece.longest)
    try:
        rows = csv.DictReader(text_lines(), delimiter="\t" if tabs else ",", strict=True)
        if piece.text not in (rows.fieldnames or ()) and not piece.alone:
            skipped.add(f"CSV without a `{piece.text}`", piece.name)
            return
        for row in rows:
            row.pop(None, None)  # cells beyond the header
            yield from row_document(row, piece, skipped, at, "line")
    except csv.Error as error:
        told = f"{file}, line {at}: not valid CSV ({error}); mend the file"
        skipped.broken("not valid CSV", f"{piece.name} from line {at}", CorruptFileError(told))
    except BrokenError as error:
        told = f"{file}, after line {at}: {error}; get the file again"
        skipped.broken(f"damaged, {error}", f"{piece.name} after line {at}", CorruptFileError(told))
    finally:
        csv.field_size_limit(before)


def open_parquet(file: Path) -> Any:
    """pyarrow's ParquetFile. Raises CorruptFileError where it is none."""
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise FlyweightError(f"{file} needs the package `pyarrow`: pip install pyarrow") from None
    try:
        return parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except pyarrow.ArrowException as error:
        raise CorruptFileError(f"{file}: {error}; get the file again") from None


def read_parquet(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    file, number = piece.path, piece.first - 1
    try:
        table = open_parquet(file)
    except CorruptFileError as error:
        skipped.broken("not valid Parquet", piece.name, error)
        return
    import pyarrow

    names = table.schema_arrow.names
    if piece.text not in names:
        told = f"{file}, row 1: no `{piece.text}` (it has {', '.join(sorted(names))})"
        wanted = FlyweightError(f"{told}; each row needs its text in `{piece.text}`")
        skipped.broken(f"Parquet without a `{piece.text}`", piece.name, wanted)
        return
    columns = [name for name in (piece.id, piece.text) if name in names]
    stop = table.num_row_groups if piece.stop is None else piece.stop
    try:
        for group in range(piece.start, stop):
            batches = table.iter_batches(ROWS, [group], columns, use_threads=False)
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield from row_document(row, piece, skipped, number, "row")
    except (pyarrow.ArrowException, OSError) as error:
        broken = CorruptFileError(f"{file}, after row {number}: {error}; get the file again")
        skipped.broken("not valid Parquet", f"{piece.name} after row {number}", broken)
    finally:
        table.close()
