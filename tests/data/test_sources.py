"""What becomes a document, what is skipped and said, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.encoding import NotTextError, decode
from flyweight.data.sources import Skipped, documents, standard_library
from flyweight.spec.errors import CorruptFileError, FlyweightError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]))


def read(*paths: object) -> dict[str, str]:
    return {d.name: d.text for d in documents([str(path) for path in paths], Skipped())}


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# -- encodings


@given(text=TEXT, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_marked_unicode_comes_back(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text.removeprefix("\ufeff")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    [
        "plain words\nin lines\n",
        "Ωμέγα, δεύτερη γραμμή\n",
        "日本 語\n",
        "достопримечательности Владивостока\n",
        "एक लड़का और उसकी बहन\n",
    ],
)
def test_utf16_without_a_mark_is_recognised(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == (text, encoding)


def test_legacy_encodings() -> None:
    assert decode("naïve “quotes” – 5 €".encode("cp1252")) == ("naïve “quotes” – 5 €", "cp1252")
    assert decode(b"caf\xe9 \x81" + b"e" * 99) == ("café \x81" + "e" * 99, "latin-1")
    source = "# -*- coding: koi8-r -*-\ns = 'Привет'\n"
    assert decode(source.encode("koi8-r"), python=True) == (source, "koi8-r")
    assert decode(source.encode("koi8-r"))[1] == "cp1252"


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        bytes(range(256)),
        bytes(range(1, 32)) * 4,
        # Little-endian 16-bit samples: zeros on one side, but no characters on the other.
        b"".join(n.to_bytes(2, "little") for n in range(1, 30)),
        b"text with one \0 in it",
        b"abc\0def and no UTF-16\n",
    ],
)
def test_binary_is_no_text(data: bytes) -> None:
    with pytest.raises(NotTextError):
        decode(data)


def test_terminal_colours_are_text() -> None:
    assert decode(b"\x1b[31mred\x1b[0m\n\f")[0] == "\x1b[31mred\x1b[0m\n\f"


# -- files, folders, globs


def test_a_folder_is_walked_in_order_with_relative_names(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.py", "a/y/x.md", ".hidden", ".git/config", "a/__pycache__/z.pyc"]:
        write(tmp_path / name, name)
    assert list(read(tmp_path)) == ["a/y/x.md", "a/z.py", "b.txt"]
    assert read(tmp_path)["a/z.py"] == "a/z.py"


def test_globs_name_what_is_below_their_fixed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["one/a.txt", "one/b.md", "two/deep/c.txt"]:
        write(tmp_path / "texts" / name, name)
    assert list(read(tmp_path / "texts" / "*" / "*.txt")) == ["one/a.txt"]
    assert list(read(tmp_path / "texts" / "**" / "*.txt")) == ["one/a.txt", "two/deep/c.txt"]
    assert list(read(tmp_path / "texts" / "**")) == ["one/a.txt", "one/b.md", "two/deep/c.txt"]
    assert list(read(tmp_path / "texts" / "t*")) == ["two/deep/c.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(read("~/texts/one/*")) == ["a.txt", "b.md"]
    assert list(read("~/texts/one/a.txt")) == ["a.txt"]
    monkeypatch.chdir(tmp_path / "texts")
    assert list(read("*/a.txt")) == ["one/a.txt"]


def test_sources_are_as_the_user_wrote_them(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    (document,) = documents([f"{tmp_path}/*.txt"], Skipped())
    assert document.source == f"{tmp_path}/*.txt"


# -- formats


def test_json_lines_plain_and_packed(tmp_path: Path) -> None:
    data = b'{"id": "first", "text": "one"}\n\n{"text": "two\\u00e9", "other": 1}\n'
    data += b'{"id": 7, "text": ""}'
    write(tmp_path / "a.jsonl", data)
    # Two frames one after the other are one file, as `cat` makes it.
    half = len(data) // 2
    packed = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    write(tmp_path / "b.jsonl.zst", packed)
    write(tmp_path / "c.jsonl.gz", gzip.compress(data))
    for name in ["a.jsonl", "b.jsonl.zst", "c.jsonl.gz"]:
        expected = {"first": "one", f"{name}:3": "twoé", "7": ""}
        assert read(tmp_path / name) == expected


def test_packed_text_has_its_encoding_found_too(tmp_path: Path) -> None:
    text = "naïve\n" * 1000
    write(tmp_path / "a.txt.zst", zstandard.compress(text.encode("cp1252")))
    write(tmp_path / "b.txt.gz", gzip.compress(text.encode("utf-16")))
    skipped = Skipped()
    found = list(documents([str(tmp_path)], skipped))
    assert [document.text for document in found] == [text, text]
    assert skipped.encodings == {"cp1252": 1, "utf-16": 1}
    assert any("cp1252" in line for line in skipped.lines())


def test_parquet_reads_or_says_what_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    try:
        import pyarrow  # type: ignore[import-untyped,unused-ignore]
        from pyarrow import parquet
    except ImportError:
        write(file, b"PAR1")
        with pytest.raises(FlyweightError, match=r"a\.parquet needs the package `pyarrow`"):
            read(file)
        return
    parquet.write_table(
        pyarrow.table({"id": ["x", "y"], "text": ["one", "two"], "n": [1, 2]}), file
    )
    assert read(file) == {"x": "one", "y": "two"}
    parquet.write_table(pyarrow.table({"body": ["one"]}), file)
    with pytest.raises(FlyweightError, match=r"row 1: no `text` \(it has body\)"):
        read(file)
    write(file, b"PAR1 and no more")
    with pytest.raises(CorruptFileError, match=r"a\.parquet"):
        read(file)


# -- what is broken


def lines_of(parts: Iterable[str]) -> bytes:
    return "\n".join(parts).encode()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (lines_of(['{"text": "a"}', '{"text": "b"']), "line 2: not valid JSON"),
        (lines_of(['{"text": "a"}', "[1]"]), "line 2: a list, not an object"),
        (lines_of(['{"text": "a"}', '{"body": "b"}']), r"line 2: no `text` \(it has body\)"),
        (lines_of(['{"text": 5}']), "line 1: `text` is a int"),
        (lines_of(['{"text": "a"}', r'{"text": "x\ud83d"}']), r"line 2 holds a lone surrogate"),
        (b'{"text": "\xff"}', "line 1: not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, error: str) -> None:
    file = write(tmp_path / "a.jsonl", content)
    with pytest.raises(FlyweightError, match=rf"a\.jsonl, {error}"):
        read(file)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.txt.zst", "a.txt.gz"])
def test_packed_files_that_end_early_or_are_damaged_are_refused(tmp_path: Path, name: str) -> None:
    data = rows(*(f"text number {n}, {'x' * (n % 97)}" for n in range(20_000)))
    packed = zstandard.compress(data) if name.endswith("zst") else gzip.compress(data)
    where = r"after line \d+" if "jsonl" in name else r"after \d+ bytes"
    file = write(tmp_path / name, packed[: len(packed) * 2 // 3])
    with pytest.raises(CorruptFileError, match=rf"{name}, {where}: .* ends early"):
        read(file)
    write(file, b"not packed at all")
    with pytest.raises(CorruptFileError, match=rf"{name}, {where}: not valid"):
        read(file)


# -- what is skipped


def test_binary_and_unreadable_files_are_counted_with_reasons(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "b.bin", b"\0\1\2")
    write(tmp_path / "c.bin", b"\0\1\2")
    write(tmp_path / "d.jsonl", '{"event": 1}\n')
    (tmp_path / "e.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "f.txt")
    skipped = Skipped()
    assert [document.name for document in documents([str(tmp_path)], skipped)] == ["a.txt"]
    assert skipped.counts == {
        "binary": 2,
        "JSON lines without a `text`": 1,
        "unreadable, no such file or directory": 1,
        "no regular file": 1,
    }
    assert "skipped 2: binary (b.bin, c.bin)" in skipped.lines()


def test_nothing_to_read_is_an_error_that_says_what_was_found(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    write(empty / ".hidden", "text")
    with pytest.raises(FlyweightError, match="empty holds no files"):
        read(empty)
    write(tmp_path / "binaries" / "a.bin", b"\0")
    write(tmp_path / "binaries" / "b.bin", b"\0")
    with pytest.raises(FlyweightError, match=r"no text in .*binaries \(2 files: 2 binary\)"):
        read(tmp_path / "binaries")
    with pytest.raises(FlyweightError, match=r"a\.bin is a binary file"):
        read(tmp_path / "binaries" / "a.bin")
    with pytest.raises(FlyweightError, match=r"no such file or folder: .*nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(FlyweightError, match=r"no file matches .*\*\.rst"):
        read(tmp_path / "*.rst")
    # One good path does not hide a bad one.
    write(tmp_path / "good.txt", "text")
    with pytest.raises(FlyweightError, match="empty holds no files"):
        read(tmp_path / "good.txt", empty)


def test_the_standard_library_is_text_without_tests() -> None:
    found = {document.name: document.text for document in standard_library()}
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= found.keys()
    assert list(found) == sorted(found, key=lambda name: name.split("/"))
    assert not any(
        {"test", "tests", "idle_test", "site-packages"} & set(name.split("/")) for name in found
    )
    assert "class ArgumentParser" in found["argparse.py"]
