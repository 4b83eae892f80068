"""What a worker of a build does: one unit of one stage, from the work folder to the work folder.

    read/   a unit's documents as they are            READ.json: how many parts, what was skipped
    clean/  a part's documents, cleaned; .npy: keys   CLEAN.json: counts and examples by rule
            and MinHash signatures
    pack/   a part's tokens, by split                 PACK.json: how many

Each result is written under another name and renamed, its .json last: a unit either is done or it
is not, whenever its worker died.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flyweight.data.clean import fingerprint, normalise
from flyweight.data.cleaner import Cleaner, Score
from flyweight.data.decontaminate import Decontaminator
from flyweight.data.document import Document, Skipped
from flyweight.data.near import signatures
from flyweight.data.packed import PackedWriter
from flyweight.data.parts import PartWriter, read_part, remove_part
from flyweight.data.plan import Plan, stamp_of
from flyweight.data.reading import read
from flyweight.data.shards import SPLITS, Entry
from flyweight.data.split import cut_tail, place
from flyweight.data.tally import Tally
from flyweight.data.writer import disk_errors, require_eot
from flyweight.files.atomic import write_bytes, write_text
from flyweight.spec.cleaning import Clean, Perplexity
from flyweight.spec.data import Data
from flyweight.spec.errors import CorruptFileError
from flyweight.text.load import load_tokenizer
from flyweight.text.tokenizer import Tokenizer, token_dtype

# Texts are encoded so many characters at a time: the library's own results take some 25 bytes of
# memory for each.
_ENCODED = 1 << 17
# (n, 4) uint64 of a cleaned part: 128 bits of each text's hash, the place of its name's hash in
# the split, and the text's size in bytes.
KEYS = 4
# Documents whose signatures are computed at a time.
_SIGNED = 256
# Where a document goes.
DROPPED, TRAIN, HELD_OUT = -1, 0, 1
PARTIAL = ".partial"
KEPT = "what is done is kept: run the command again to go on, or with --restart to begin anew"


Reader = Callable[[int], str]
# What makes, of the table that names a model, its function of a text to bits per byte.
Scorer = Callable[[Perplexity], Score]


class Work:
    """A build's work folder. ``scorer`` is asked where data.clean.perplexity is set."""

    def __init__(self, folder: Path, scorer: Scorer | None = None) -> None:
        self.folder = folder
        self._scorer = scorer
        self.out = folder.with_name(folder.name.removesuffix(PARTIAL))

    @cached_property
    def plan(self) -> Plan:
        return Plan.from_json((self.folder / "plan.json").read_text(encoding="utf-8"))

    @cached_property
    def data(self) -> Data:
        return Data.parse(self.plan.settings["data"])

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        """(unit, number within it) of every part, in order; known when all is read."""
        return [
            (unit, part)
            for unit in range(len(self.plan.units))
            for part in range(self.result("read", unit)["parts"])
        ]

    def origin(self, part: int) -> dict[str, Any]:
        return self.plan.origins[self.plan.units[self.parts[part][0]].origin]

    def place(self, stage: str, number: int) -> Path:
        return self.folder / stage / f"{number:06}"

    def _raw(self, unit: int, part: int) -> Path:
        return self.folder / "read" / f"{unit:06}-{part:06}"

    def done(self, stage: str, number: int) -> bool:
        return self.place(stage, number).with_suffix(".json").is_file()

    def result(self, stage: str, number: int) -> dict[str, Any]:
        file = self.place(stage, number).with_suffix(".json")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _finish(self, stage: str, number: int, result: dict[str, Any]) -> None:
        # In ASCII: a file's name may hold what is no UTF-8.
        text = json.dumps(result, sort_keys=True)
        write_text(self.place(stage, number).with_suffix(".json"), text)

    def undo(self, stage: str, number: int) -> None:
        self.place(stage, number).with_suffix(".json").unlink()

    # -- the stages

    def run(self, stage: str, number: int) -> None:
        """Do unit ``number`` of "read", "clean" or "pack", unless it is done."""
        if self.done(stage, number):
            return
        with disk_errors(self.out, KEPT):
            self.place(stage, number).parent.mkdir(exist_ok=True)
            result = {"read": self._read, "clean": self._clean, "pack": self._pack}[stage](number)
            self._finish(stage, number, result)
            if stage == "clean":
                remove_part(self._raw(*self.parts[number]))
            elif stage == "pack":
                remove_part(self.place("clean", number))

    def _read(self, number: int) -> dict[str, Any]:
        """A unit's documents, in parts. A file that is not as it was planned is an error, or
        (data.on_error) named in the result, which then does not count."""
        skipped = Skipped(stop=self.data.on_error == "stop")
        changed: list[str] = []
        documents = iter(self._documents(number, skipped, changed))
        parts = count = size = 0
        document = next(documents, None)
        while document is not None:
            with PartWriter(self._raw(number, parts)) as part:
                while document is not None and part.bytes < self.plan.part_bytes:
                    part.add(document.name, document.text.encode())
                    document = next(documents, None)
            parts += 1
            count += part.documents
            size += part.bytes
        return {
            "parts": parts,
            "documents": count,
            "bytes": size,
            "skipped": skipped.to_dict(),
            "changed": sorted(set(changed)),
        }

    def _documents(self, number: int, skipped: Skipped, changed: list[str]) -> Iterator[Document]:
        for piece in self.plan.units[number].pieces:
            planned = self.plan.stamps.get(str(piece.path))
            if str(piece.path) in self.left_out:
                if piece.start == 0:
                    skipped.add("changed while it was read", piece.name)
                continue
            try:
                if planned == stamp_of(piece.path):
                    yield from read(piece, skipped)
            finally:
                # What was found broken may be the change's doing: that is then the error.
                if planned != stamp_of(piece.path):
                    if skipped.stop:
                        raise changed_error(str(piece.path))
                    changed.append(str(piece.path))

    @cached_property
    def left_out(self) -> frozenset[str]:
        """Files that changed while they were read, where that is counted and no error."""
        file = self.folder / "left_out.json"
        return frozenset(json.loads(file.read_text())) if file.is_file() else frozenset()

    def _clean(self, number: int) -> dict[str, Any]:
        unit, part = self.parts[number]
        origin = self.origin(number)
        tally = Tally(samples=self.samples)
        near = self.data.near_duplicates
        keys: list[tuple[int, ...]] = []
        signed = [np.zeros((near.bands if near else 0, 0), np.uint64)]
        texts: list[str] = []
        empty = 0

        def cleaned() -> Iterator[Document]:
            nonlocal empty
            for raw in read_part(self._raw(unit, part), origin["source"]):
                text = normalise(raw.text)
                if not text or text.isspace():
                    empty += 1
                    continue
                tally.seen(text)
                came = Document(raw.name, text, raw.source)
                kept = came if self._cleaner is None else self._cleaner(came, tally)
                if kept is not None:
                    yield kept

        stays = cleaned()
        if self._decontaminator is not None:
            stays = self._decontaminator(stays, tally)
        with PartWriter(self.place("clean", number)) as out:
            for document in stays:
                data = document.text.encode()
                out.add(document.name, data)
                digest = fingerprint(document.text)
                halves = (int.from_bytes(digest[i : i + 8], "big") for i in (0, 8))
                keys.append((*halves, place(document.name), len(data)))
                if near is not None:
                    texts.append(document.text)
                    if len(texts) == _SIGNED:
                        signed.append(signatures(texts, near))
                        texts = []
        if near is not None:
            signed.append(signatures(texts, near))
            _save(self.signatures_file(number), np.concatenate(signed, axis=1))
        _save(self.keys_file(number), np.array(keys, np.uint64).reshape(-1, KEYS))
        return {"kept": out.documents, "bytes": out.bytes, "empty": empty, "tally": tally.to_dict()}

    @property
    def samples(self) -> int:
        """How many examples each rule keeps."""
        return (self.data.clean or Clean()).samples

    @cached_property
    def _cleaner(self) -> Cleaner | None:
        if (clean := self.data.clean) is None:
            return None
        perplexity = clean.perplexity
        score = self._scorer(perplexity) if perplexity and self._scorer else None
        return Cleaner(clean, score)

    @cached_property
    def _decontaminator(self) -> Decontaminator | None:
        table = self.data.decontaminate
        return None if table is None else Decontaminator.open(table, self.evaluation)

    @property
    def evaluation(self) -> Path:
        """The folder of the index of evaluation files."""
        return self.folder / "evaluation"

    def signatures_file(self, number: int) -> Path:
        return self.place("clean", number).with_suffix(".signatures.npy")

    def keys_file(self, number: int) -> Path:
        return self.place("clean", number).with_suffix(".keys.npy")

    def documents(self, number: int) -> Iterator[Document]:
        """The cleaned documents of a part."""
        return read_part(self.place("clean", number), self.origin(number)["source"])

    def reader(self, keys: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64]) -> Reader:
        """A function from a cleaned document's number to its text; ``keys``, ``starts``: of all."""
        sizes = keys[:, 3].astype(np.int64)
        ends = np.cumsum(sizes)

        def read_text(document: int) -> str:
            part = int(np.searchsorted(starts, document, side="right")) - 1
            before = int(ends[starts[part]] - sizes[starts[part]])
            file = self.place("clean", part).with_suffix(".text")
            with file.open("rb") as texts:
                texts.seek(int(ends[document] - sizes[document]) - before)
                return texts.read(int(sizes[document])).decode()

        return read_text

    # -- packing

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / "tokenizer.json")

    @cached_property
    def assignment(self) -> npt.NDArray[np.int8]:
        """For every cleaned document of the build: dropped, trained on, or held out."""
        return np.load(self.folder / "assignment.npy", mmap_mode="r")

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """(parts + 1,) the number of each part's first cleaned document."""
        return np.load(self.folder / "starts.npy")

    def assigned(self, number: int) -> Iterator[tuple[Document, int]]:
        """The documents of a part that stay, with their split. The only document of a corpus
        comes as two: its head and its tail."""
        begin, end = int(self.starts[number]), int(self.starts[number + 1])
        settled = json.loads((self.folder / "settled.json").read_text())
        places = self.assignment[begin:end].tolist()
        for document, where in zip(self.documents(number), places, strict=True):
            if where == TRAIN and settled["cut"]:
                share = self.data.held_out
                assert not isinstance(share, list)
                head, tail = cut_tail(document, share)
                yield head, TRAIN
                yield tail, HELD_OUT
            elif where != DROPPED:
                yield document, where

    def _pack(self, number: int) -> dict[str, Any]:
        """A part's documents as tokens."""
        eot, dtype = require_eot(self.tokenizer), token_dtype(self.tokenizer.vocab_size)
        out = self.place("pack", number)
        with ExitStack() as stack:
            writers = [stack.enter_context(PackedWriter(out, name, eot, dtype)) for name in SPLITS]
            for chunk in _chunks(self.assigned(number)):
                encoded = self.tokenizer.encode_documents([document.text for document, _ in chunk])
                for split, writer in enumerate(writers):
                    mine = [i for i, (_, where) in enumerate(chunk) if where == split]
                    entries = [_entry(chunk[i][0]) for i in mine]
                    writer.add(entries, [encoded[i] for i in mine])
        return {name: writer.counts for name, writer in zip(SPLITS, writers, strict=True)}


def open_work(folder: Path) -> Work:
    """A work folder for stages that need nothing of the rooms above."""
    return Work(folder)


def changed_error(paths: str) -> CorruptFileError:
    return CorruptFileError(
        f"{paths} changed while it was read: the dataset would be of no one state of it; build"
        " again with --restart when nothing writes there"
    )


def _chunks(documents: Iterable[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    chunk: list[tuple[Document, int]] = []
    size = 0
    for document, where in documents:
        chunk.append((document, where))
        size += len(document.text)
        if size >= _ENCODED:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _entry(document: Document) -> Entry:
    return Entry(document.name, document.source, len(document.text.encode()))


def _save(file: Path, array: npt.NDArray[Any]) -> None:
    out = io.BytesIO()
    np.save(out, array)
    write_bytes(file, out.getvalue())
