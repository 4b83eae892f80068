"""From a run's [data] and [text] tables to a dataset folder.

A build goes through stages (see work.py) in a folder beside the dataset's, OUT.partial, and what
is done there stays done: after a crash the same command goes on. Only the whole dataset gets the
name that was asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from flyweight.data.clean import fingerprint
from flyweight.data.cluster import work_on_cluster
from flyweight.data.crew import Crew, Done, open_with, work_here
from flyweight.data.decontaminate import Decontaminator, is_prepared
from flyweight.data.document import Skipped
from flyweight.data.mix import check_names
from flyweight.data.packed import Packed
from flyweight.data.plan import Plan, plan, stamp_of
from flyweight.data.report import Report
from flyweight.data.settle import Settled, settle
from flyweight.data.shards import SPLITS, Dataset, is_dataset
from flyweight.data.sources import STANDARD_INPUT, STANDARD_LIBRARY, nothing_in, origins
from flyweight.data.spool import spool
from flyweight.data.work import KEPT, PARTIAL, TRAIN, changed_error
from flyweight.data.writer import Writer, disk_errors, refuse_other, require_eot
from flyweight.files.atomic import write_text
from flyweight.spec import run
from flyweight.spec.errors import ConfigurationError, FlyweightError, Interrupted
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.load import load_tokenizer
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import Tokenizer, token_dtype

# (stage: "read", "clean", "tokenizer" or "encode"; done so far; of how many, if known)
Progress = Callable[[str, int, int | None], None]
# Less input than this is not worth the start of other processes.
_SMALL = 32 << 20
# A tokenizer is trained on no more text than this: a sample of whole documents by their hash.
TOKENIZER_BYTES = 256 << 20
OPENER = "flyweight.data.work"


def build(
    data: run.Data,
    tokenizer: run.Tokenizer,
    out: Path,
    progress: Progress | None = None,
    base: Path | None = None,
    restart: bool = False,
    opener: str = OPENER,
) -> Dataset:
    """Read, clean, split, tokenise and write the dataset of a run to the folder ``out``.

    No source means the running interpreter's standard library; the one folder of a built dataset
    means that dataset, as it is. A tokenizer is trained on the training split alone. Relative
    paths are below ``base`` (default: the working directory). ``restart`` throws away what an
    unfinished build left; without it the same build goes on from there. ``opener``:
    the module that opens the work folder, here and in workers (see `crew.open_with`).

    Raises FlyweightError for text that is not there or too little, where ``out`` holds something
    else, and for an unfinished build of something else.
    """
    built = [path for path in data.train if is_dataset((base or Path()) / Path(path).expanduser())]
    if built:
        return _open(built[0], data, tokenizer, base or Path())
    _check(data)
    refuse_other(out)
    if tokenizer.kind == "file":
        require_eot(load_tokenizer(tokenizer.path or ""))
    with _workplace(out, restart) as folder:
        try:
            with _Builder(folder, data, tokenizer, base or Path(), progress, opener) as builder:
                dataset = builder.build(out)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; {KEPT}") from None
        shutil.rmtree(folder, ignore_errors=True)
    return dataset


def dry_run(
    data: run.Data,
    out: Path,
    progress: Progress | None = None,
    base: Path | None = None,
    opener: str = OPENER,
) -> Report:
    """Read and clean everything, and say what would stay; nothing is left on the disk."""
    if any(is_dataset((base or Path()) / Path(path).expanduser()) for path in data.train):
        raise ConfigurationError("a dry run reads text, and data.train names a built dataset")
    _check(data)
    place = out.with_name(f"{out.name}.dry-run")
    with _workplace(place, restart=True) as folder:
        try:
            made = _Builder(folder, data, run.Tokenizer(), base or Path(), progress, opener)
            with made as builder:
                return builder.prepare()[0]
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Builder:
    def __init__(
        self,
        folder: Path,
        data: run.Data,
        tokenizer: run.Tokenizer,
        base: Path,
        progress: Progress | None,
        opener: str,
    ) -> None:
        self._data = data
        self._table = tokenizer
        self._base = base
        self._progress = progress or (lambda stage, done, total: None)
        self._opener = opener
        self._work = open_with(opener, folder)
        self._crew: Crew | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss()

    def build(self, out: Path) -> Dataset:
        report, settled = self.prepare()
        work = self._work
        with disk_errors(out, KEPT):
            tokenizer = self._tokenizer(settled)
        require_eot(tokenizer)
        total = sum(settled.bytes)
        done = joined = 0
        waiting: set[int] = set()
        dtype = token_dtype(tokenizer.vocab_size)
        with Writer(out, tokenizer, folder=work.folder / "dataset", kept=KEPT) as writer:

            def packed(part: int) -> None:
                nonlocal done, joined
                waiting.add(part)
                # The shards grow while others pack.
                while joined in waiting:
                    waiting.remove(joined)
                    result = work.result("pack", joined)
                    for split in SPLITS:
                        if result[split]["documents"]:
                            place = work.place("pack", joined)
                            found = Packed.open(place, split, result[split], dtype)
                            writer.add_packed(split, work.origin(joined)["source"], found)
                        done += result[split]["bytes"]
                    joined += 1
                self._progress("encode", done, total)

            self._progress("encode", 0, total)
            self._do("pack", range(len(work.parts)), packed)
            writer.write("report.md", report.markdown(out.name))
            if (found_items := report.contamination()) is not None:
                writer.write("contamination.jsonl", found_items)
            return writer.finish(out.name, report.notes(self._data))

    def prepare(self) -> tuple[Report, Settled]:
        """Read and clean; decide what stays."""
        work = self._work
        with disk_errors(work.out, KEPT):
            self._plan()
        documents = 0

        def was_read(unit: int) -> None:
            nonlocal documents
            documents += work.result("read", unit)["documents"]
            self._progress("read", documents, None)

        units = range(len(work.plan.units))
        self._do("read", units, was_read)
        if self._leave_out():
            self._do("read", units, lambda unit: None)
        self._require_text()
        parts = len(work.parts)
        table = self._data.decontaminate
        if table is not None and not is_prepared(work.evaluation):
            with disk_errors(work.out, KEPT):
                Decontaminator.prepare(table, work.evaluation)
        self._do("clean", range(parts), lambda part: self._progress("clean", part + 1, parts))
        with disk_errors(work.out, KEPT):
            settled = settle(work)
        return Report.of(work, settled), settled

    # -- the plan

    def _plan(self) -> None:
        """Make the plan, which must be the one that an unfinished build was begun with."""
        data, work = self._data, self._work
        paths = [path for source in data.sources.values() for path in source.paths]
        given = spool(work.folder) if STANDARD_INPUT in paths else None
        decides = {key: value for key, value in data.values().items() if key not in _NO_PART}
        settings = {"data": decides, "tokenizer": self._table.values()}
        made = plan(settings, list(origins(data, self._base, given)))
        file = work.folder / "plan.json"
        if file.is_file():
            begun = Plan.from_json(file.read_text(encoding="utf-8"))
            if begun.digest != made.digest:
                raise FlyweightError(
                    f"{work.folder} holds an unfinished build of something else"
                    f" ({_difference(begun, made)}); throw it away with --restart, or name another"
                    " folder with --out"
                )
        else:
            write_text(file, made.to_json())

    def _leave_out(self) -> bool:
        """Whether files changed while they were read, which then are read again without them."""
        work = self._work
        changed = {
            path for path, stamp in work.plan.stamps.items() if stamp_of(Path(path)) != stamp
        }
        units = range(len(work.plan.units))
        changed |= {path for unit in units for path in work.result("read", unit)["changed"]}
        file = work.folder / "left_out.json"
        known = set(json.loads(file.read_text())) if file.is_file() else set()
        if not changed - known:
            return False
        if self._data.on_error == "stop":
            raise changed_error(", ".join(sorted(changed)))
        write_text(file, json.dumps(sorted(changed | known)))
        for unit in units:
            if any(str(piece.path) in changed for piece in work.plan.units[unit].pieces):
                work.undo("read", unit)
        # Whoever reads again must look again.
        work.__dict__.pop("left_out", None)
        self._dismiss()
        return True

    def _require_text(self) -> None:
        """Every path must have given a document."""
        work = self._work
        for number, origin in enumerate(work.plan.origins):
            results = [
                work.result("read", unit)
                for unit in range(len(work.plan.units))
                if work.plan.units[unit].origin == number
            ]
            if not sum(result["documents"] for result in results):
                skipped = Skipped.from_dict(origin["passed"])
                for result in results:
                    skipped.merge(Skipped.from_dict(result["skipped"]))
                where = (origin["source"], origin["path"], origin["files"])
                raise nothing_in(*where, skipped.counts)

    # -- the tokenizer

    def _tokenizer(self, settled: Settled) -> Tokenizer:
        file = self._work.folder / "tokenizer.json"
        if not file.is_file():
            table = self._table
            made: Tokenizer
            if table.kind == "bytes":
                made = ByteTokenizer()
            elif table.kind == "file":
                made = load_tokenizer(table.path or "")
            else:
                assert table.size is not None
                self._progress("tokenizer", 0, None)
                texts = self._training_texts(settled)
                made = SubwordTokenizer.train(table.kind, table.size, texts, table.max_bytes)
            write_text(file, made.to_json())
        return self._work.tokenizer

    def _training_texts(self, settled: Settled) -> Iterator[str]:
        work = self._work
        share = TOKENIZER_BYTES / max(settled.bytes[TRAIN], 1)
        for part in range(len(work.parts)):
            for document, where in work.assigned(part):
                if where == TRAIN and (share >= 1 or _drawn(document.text) < share):
                    yield document.text

    # -- who works

    def _do(self, stage: str, units: Sequence[int], done: Done) -> None:
        work = self._work
        left = []
        for unit in units:
            if work.done(stage, unit):
                done(unit)
            else:
                left.append(unit)
        executor = self._data.executor
        count = min(self._count(), len(left))
        if executor.kind != "local":
            work_on_cluster(work, stage, left, done, executor, self._opener)
        elif count <= 1:
            work_here(work, stage, left, done)
        else:
            self._crew = self._crew or Crew(work.folder, self._count(), self._opener)
            self._crew.work(stage, left, done)

    def _dismiss(self) -> None:
        if self._crew is not None:
            self._crew.close()
        self._crew = None

    def _count(self) -> int:
        size = sum(size for size, _ in self._work.plan.stamps.values())
        if sys.platform == "linux":
            cores = len(os.sched_getaffinity(0))
        else:
            cores = os.cpu_count() or 1
        return self._data.workers or (cores if size >= _SMALL else 1)


# Keys of [data] that change who works and in which order it is read, and not the dataset.
_NO_PART = ("mix", "workers", "executor")


def _check(data: run.Data) -> None:
    """What can be known to be wrong before any work is done."""
    if data.held_out == []:
        raise ConfigurationError("data.held_out is an empty list; name files, or a share as 0.1")
    if data.mix is not None:
        check_names(data.mix, [*data.train, *data.sources] or [STANDARD_LIBRARY])
    if data.held_out == 1:
        raise ConfigurationError(
            f"data.held_out = {data.held_out} leaves nothing to train on; 0.1 is usual"
        )


def _drawn(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(fingerprint(text)[8:16], "big") / 2**64


@contextlib.contextmanager
def _workplace(out: Path, restart: bool) -> Iterator[Path]:
    """The folder OUT.partial, for this build alone."""
    folder = out.with_name(out.name + PARTIAL)
    made = [folder, *(above for above in folder.parents if not above.exists())]
    with disk_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    mine = False
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The build before may have removed what was opened here.
            mine = os.path.samestat(os.fstat(lock), folder.stat())
        except OSError:
            pass
        if not mine:
            raise FlyweightError(f"another build is at work in {folder}; let it end") from None
        if restart:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield folder
    finally:
        # What holds nothing is not left behind: no work folder, and no folder made for it.
        with contextlib.suppress(OSError):
            for place in made if mine else ():
                with contextlib.suppress(FileNotFoundError):
                    place.rmdir()
        os.close(lock)


def _difference(begun: Plan, made: Plan) -> str:
    if begun.settings != made.settings:
        return "its configuration is another"
    changed = sorted(
        path
        for path in begun.stamps.keys() | made.stamps.keys()
        if begun.stamps.get(path) != made.stamps.get(path)
    )
    return f"changed since: {', '.join(changed[:3])}" if changed else "its files are others"


def _open(path: str, data: run.Data, tokenizer: run.Tokenizer, base: Path) -> Dataset:
    """A dataset built before: it has its own tokenizer and split, which no setting changes."""
    if len(data.train) > 1 or data.sources:
        raise ConfigurationError(
            f"data.train names the built dataset {path} among others; name it alone, or name the"
            " text that it was built from"
        )
    dataset = Dataset.open(base / Path(path).expanduser())
    if "kind" in tokenizer.given and not _agrees(tokenizer, dataset):
        raise ConfigurationError(
            f"text.tokenizer asks for {_wanted(tokenizer)}, but the dataset {path} was built with"
            f" {dataset.record['tokenizer_kind']} of {dataset.vocab_size} tokens; leave"
            " text.tokenizer out, or build the dataset again"
        )
    if "held_out" in data.given and data.held_out != dataset.record.get("held_out"):
        warnings.warn(
            f"data.held_out is not used: the dataset {path} was split when it was built",
            stacklevel=3,
        )
    return dataset


def _agrees(tokenizer: run.Tokenizer, dataset: Dataset) -> bool:
    if tokenizer.kind == "file":
        return load_tokenizer(tokenizer.path or "").digest == dataset.tokenizer_digest
    # A small corpus gives fewer tokens than were asked for.
    return tokenizer.kind == dataset.record["tokenizer_kind"] and (
        tokenizer.size is None or dataset.vocab_size <= tokenizer.size
    )


def _wanted(tokenizer: run.Tokenizer) -> str:
    values: dict[str, Any] = tokenizer.values()
    return " ".join(str(value) for value in values.values())
