"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flyweight.files import atomic


class PowerCut(BaseException):
    """What no `except Exception` catches, as a killed process."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_by_its_new_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("one", "", "zwei ü"):
        atomic.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def fail(*_: object) -> None:
        raise PowerCut

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(PowerCut):
        atomic.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with pytest.raises(TypeError):
        atomic.write_bytes(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_content_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, then the rename, then fsync of the folder."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def spy_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to tell a folder's handle by")
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    atomic.write_text(tmp_path / "a", "text")
    assert calls == ["file", "rename", "folder"]


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "000001"
    with atomic.new_folder(path) as folder:
        (folder / "a").write_text("a")
        assert not path.exists()
    assert (path / "a").read_text() == "a"
    assert names(path.parent) == {"000001"}


def test_a_folder_half_filled_is_none(tmp_path: Path) -> None:
    path = tmp_path / "000001"
    with pytest.raises(PowerCut), atomic.new_folder(path) as folder:
        (folder / "a").write_text("a")
        raise PowerCut
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "000001"
    left = tmp_path / f".000001.{os.getpid()}.tmp"
    left.mkdir()
    (left / "old").write_text("old")
    with atomic.new_folder(path) as folder:
        (folder / "a").write_text("a")
    assert names(path) == {"a"}


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert atomic.sha256(path) == known
