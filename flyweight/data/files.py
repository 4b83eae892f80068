"""Which files a path, a folder or a glob stands for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flyweight.data.document import printable
from flyweight.spec.errors import FlyweightError

_IGNORED_FOLDERS = {"__pycache__", "node_modules"}
_GITIGNORE = ".gitignore"


@dataclass(frozen=True, slots=True)
class Found:
    """A file and its name relative to what the user wrote; ``why``: the reason to pass it over."""

    path: Path
    name: str
    why: str | None = None


def find(path: str, base: Path, ignore: Sequence[str] = ()) -> tuple[list[Found], bool]:
    """(the files that a file's, folder's or glob's path stands for, is it one file by itself?).

    Inside folders and globs, sorted, these are left out: hidden files and folders, __pycache__,
    node_modules, what .gitignore files name (those above the folder too, up to the repository's
    root, unless they name the folder itself) and the patterns in ``ignore``. Links to folders are
    not followed, so that a loop of links ends. A relative path is below ``base``. Raises
    FlyweightError where nothing is there.
    """
    here = base / Path(path).expanduser()
    if here.is_dir():
        return list(walk(here, _Ignored.above(here, ignore))), False
    if os.path.lexists(here):
        return [Found(here, printable(here.name))], True
    if not glob.has_magic(path):
        raise FlyweightError(f"no such file or folder: {path}")
    parts = here.parts
    magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:magic])
    pattern = parts[magic:]
    files = list(walk(root, _Ignored.above(root, ignore), pattern)) if root.is_dir() else []
    if not files:
        raise FlyweightError(f"no file matches {path}")
    return files, False


def walk(
    root: Path,
    ignored: _Ignored | None = None,
    pattern: Sequence[str] = (),
    above: tuple[str, ...] = (),
) -> Iterator[Found]:
    """Every file below ``root``, a folder's entries sorted; only those that ``pattern`` (a glob's
    parts) matches, or that lie in a folder that it matches. ``above``: the parts of root's name.

    ``ignored``: None reads no .gitignore files.
    """
    ignored = ignored and ignored.within(root)
    hidden = any(part.startswith(".") for part in pattern)
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        path, parts = Path(entry.path), (*above, entry.name)
        if (entry.name.startswith(".") and not hidden) or entry.name in _IGNORED_FOLDERS:
            continue
        folder = entry.is_dir(follow_symlinks=False)
        if not _matches(parts, pattern, below=folder) or (ignored and ignored.has(path, folder)):
            continue
        name = printable("/".join(parts))
        link = not folder and entry.is_symlink() and path.is_dir()
        if link and not (pattern and "**" not in pattern and len(parts) == len(pattern)):
            yield Found(path, name, "a link to a folder, not followed")
        elif folder or link:
            try:
                below = list(walk(path, ignored, pattern, parts))
            except OSError as error:
                yield Found(path, name, f"unreadable, {(error.strerror or 'unknown').lower()}")
                continue
            yield from below
        else:
            yield Found(path, name)


def _matches(
    parts: Sequence[str], pattern: Sequence[str], below: bool, inside: bool | None = None
) -> bool:
    """Whether a path matches a glob (no pattern: any), or, with ``below``, something below could.

    ``inside``: so does all that lies in a folder that matches (not with **, which says how deep).
    """
    inside = "**" not in pattern if inside is None else inside
    if not pattern:
        return inside or not parts
    if not parts:
        return below or all(part == "**" for part in pattern)
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        deeper = not hidden and _matches(parts[1:], pattern, below, inside)
        return deeper or _matches(parts, pattern[1:], below, inside)
    return (
        not hidden
        and fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:], below, inside)
    )


class _Ignored:
    """What the .gitignore files from the repository's root down to a folder leave out."""

    def __init__(self, chain: Sequence[tuple[Path, Any]]) -> None:
        self._chain = chain

    @classmethod
    def above(cls, folder: Path, patterns: Sequence[str]) -> _Ignored:
        """The user's ``patterns`` for ``folder``, and the .gitignore files of the folders above."""
        made = cls([])
        folder = folder.resolve()
        steps = [folder, *folder.parents]
        for depth, top in enumerate(steps):
            if (top / ".git").exists():
                for step in reversed(steps[1 : depth + 1]):
                    made = made.within(step)
                # Who names an ignored folder means it; data often lies in one.
                if any(made.has(step, True) for step in steps[:depth]):
                    made = cls([])
                break
        return cls([*made._chain, (folder, _spec(patterns))]) if patterns else made

    def within(self, folder: Path) -> _Ignored:
        file = folder / _GITIGNORE
        if not file.is_file():
            return self
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return _Ignored([*self._chain, (folder.resolve(), _spec(lines))])

    def has(self, path: Path, folder: bool) -> bool:
        """Git's rule: of the files from the deepest up, the first that says something decides."""
        if not self._chain:
            return False
        whole = path.parent.resolve() / path.name
        for top, spec in reversed(self._chain):
            if whole.is_relative_to(top):
                name = str(whole.relative_to(top)) + ("/" if folder else "")
                said = spec.check_file(name).include
                if said is not None:
                    return bool(said)
        return False


def _spec(lines: Sequence[str]) -> Any:
    import pathspec

    return pathspec.GitIgnoreSpec.from_lines(lines)
