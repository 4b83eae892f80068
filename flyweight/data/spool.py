"""Standard input, kept in a file, for a build reads its text more than once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from flyweight.files.atomic import sha256
from flyweight.spec.errors import FlyweightError


def spool(folder: Path) -> Path:
    """The file that holds what standard input gave. A build that goes on may be given the same
    again, or nothing."""
    file, new = folder / "stdin", folder / "stdin.new"
    if sys.stdin is not None and not sys.stdin.isatty():
        with new.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out, 1 << 20)
    if new.is_file() and new.stat().st_size:
        if file.is_file() and sha256(file) != sha256(new):
            new.unlink()
            raise FlyweightError(
                f"standard input is not what the unfinished build in {folder} was begun with;"
                " throw that away with --restart"
            )
        if not file.is_file():
            new.replace(file)
    new.unlink(missing_ok=True)
    if not file.is_file():
        raise FlyweightError('a source is "-", standard input, and nothing comes from there')
    return file
