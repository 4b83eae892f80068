"""What stays of the cleaned documents, and in which split: copies go, the hash of names decides."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from flyweight.data.exact import exact_duplicates
from flyweight.data.near import near_duplicates
from flyweight.data.split import split
from flyweight.data.work import DROPPED, HELD_OUT, KEYS, TRAIN, Work
from flyweight.files.atomic import write_bytes, write_text
from flyweight.spec.errors import FlyweightError


@dataclass
class Settled:
    """Documents by what became of them, for each source; ``cut``: the one document that there is
    gives its tail as held-out text. ``bytes`` of training and of held-out text."""

    cut: bool
    bytes: list[int]
    # source -> {"duplicates": n, "held_out": n, "near_duplicates": n}
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    # Near-duplicates, the first few: (dropped, the one that stays, their similarity).
    near: list[tuple[str, str, float]] = field(default_factory=list)


def settle(work: Work) -> Settled:
    """Decide on every document, and write that to the work folder. Takes some 100 bytes of memory
    a document, and what `near_duplicates` takes."""
    done = work.folder / "settled.json"
    if done.is_file():
        return Settled(**json.loads(done.read_text()))
    keys, starts = _keys(work)
    protected = sum(
        int(starts[part + 1] - starts[part])
        for part in range(len(work.parts))
        if work.origin(part)["held_out"]
    )
    copies = exact_duplicates(keys[:, :2])
    known = copies & _among(keys[:, :2], keys[:protected, :2])
    known[:protected] = False
    drops = {"held_out": known, "duplicates": copies & ~known}
    dropped, near = copies, []
    if (table := work.data.near_duplicates) is not None:
        files = [work.signatures_file(part) for part in range(len(work.parts))]
        read = work.reader(keys, starts)
        found = near_duplicates(table, files, read, copies, protected)
        drops["near_duplicates"] = found.drop
        dropped = copies | found.drop
        near = [
            (_name(work, starts, gone), _name(work, starts, kept), round(similarity, 4))
            for gone, kept, similarity in found.samples
        ]
    assignment = np.where(dropped, DROPPED, TRAIN).astype(np.int8)
    assignment[:protected][~dropped[:protected]] = HELD_OUT
    open_ = assignment == TRAIN
    cut = False
    share = work.data.held_out
    if not isinstance(share, list):
        held = split(keys[open_, 2], share)
        cut = share > 0 and int(open_.sum()) == 1
        assignment[np.flatnonzero(open_)[held & (not cut)]] = HELD_OUT
    _require_some(work, assignment, protected)
    sizes = [int(keys[assignment == where, 3].sum()) for where in (TRAIN, HELD_OUT)]
    settled = Settled(cut, sizes, _by_source(work, starts, drops), near)
    _save(work, "assignment.npy", assignment)
    _save(work, "starts.npy", starts)
    write_text(done, json.dumps(asdict(settled), ensure_ascii=False))
    return settled


def _keys(work: Work) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """All documents' keys (see work.KEYS), and where each part's begin."""
    found = [np.load(work.keys_file(part)) for part in range(len(work.parts))]
    starts = np.cumsum([0] + [len(keys) for keys in found]).astype(np.int64)
    return np.concatenate([np.zeros((0, KEYS), np.uint64), *found]), starts


def _among(
    rows_D2: npt.NDArray[np.uint64], known_N2: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Which rows are among the known ones."""
    whole = np.dtype((np.void, 16))
    return np.isin(
        np.ascontiguousarray(rows_D2).view(whole).ravel(),
        np.ascontiguousarray(known_N2).view(whole).ravel(),
    )


def _name(work: Work, starts: npt.NDArray[np.int64], document: int) -> str:
    part = int(np.searchsorted(starts, document, side="right")) - 1
    return next(islice(work.documents(part), document - int(starts[part]), None)).name


def _by_source(
    work: Work, starts: npt.NDArray[np.int64], drops: dict[str, npt.NDArray[np.bool_]]
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for part in range(len(work.parts)):
        mine = counts.setdefault(work.origin(part)["source"], dict.fromkeys(drops, 0))
        for rule, drop in drops.items():
            mine[rule] += int(drop[starts[part] : starts[part + 1]].sum())
    return counts


def _require_some(work: Work, assignment: npt.NDArray[np.int8], protected: int) -> None:
    data = work.data
    if isinstance(data.held_out, list) and not (assignment[:protected] == HELD_OUT).any():
        raise _nothing(", ".join(data.held_out))
    if not (assignment[protected:] != DROPPED).any():
        names = [origin["path"] for origin in work.plan.origins if not origin["held_out"]]
        raise _nothing(", ".join(names))


def _nothing(where: str) -> FlyweightError:
    return FlyweightError(
        f"nothing is left of {where}: every document is empty, held out, or dropped by a rule;"
        " name text that is none of these"
    )


def _save(work: Work, name: str, array: npt.NDArray[Any]) -> None:
    out = io.BytesIO()
    np.save(out, array)
    write_bytes(work.folder / name, out.getvalue())
