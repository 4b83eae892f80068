"""What is written comes back; what was changed is found; what is there is never overwritten."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.data import writer as writer_module
from flyweight.data.shards import Dataset, Entry
from flyweight.data.writer import Writer
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.bytes import ByteTokenizer

EOT = 257
WriteDataset = Callable[..., Dataset]
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8)


@settings(max_examples=25)
@given(train=TEXTS, held_out=TEXTS, shard_tokens=st.integers(1, 80))
def test_documents_come_back_whatever_the_size_of_the_shards(
    write_dataset: WriteDataset, train: list[str], held_out: list[str], shard_tokens: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "d", train, held_out, shard_tokens)
        dataset = Dataset.open(dataset.path, check="full")
        for split, texts in ((dataset.train, train), (dataset.held_out, held_out)):
            expected = [text.encode() for text in texts]
            stream = [id for data in expected for id in (EOT, *data)]
            assert split.read(0, split.tokens).tolist() == stream
            assert [text for _, text in split.texts(dataset.tokenizer)] == expected
            assert [e.name for e in split.entries] == [
                f"{split.name}-{i}" for i in range(len(texts))
            ]
            assert (split.documents, split.bytes) == (len(texts), sum(map(len, expected)))
            assert split.starts.tolist()[-1] == split.tokens == len(stream)
            assert [stream[start] for start in split.starts[:-1]] == [EOT] * len(texts)
            if stream:
                starts = np.arange(len(stream))
                ring = stream * 4
                gathered = split.gather(starts, min(2 * len(stream), 40))
                assert gathered.tolist() == [ring[s : s + gathered.shape[1]] for s in starts]


def test_the_record_counts_sources_and_bytes(small: Dataset) -> None:
    record = json.loads((small.path / "dataset.json").read_text())
    assert record["sources"]["held_out"] == {"documents": 2, "bytes": len("held out étoo".encode())}
    assert record["vocab_size"] == 258
    assert record["dtype"] == "uint16"
    assert len(record["splits"]["train"]["shards"]) > 2
    assert record["tokenizer"] == ByteTokenizer().digest


def test_the_fingerprint_is_of_the_tokens_alone(
    write_dataset: WriteDataset, tmp_path: Path
) -> None:
    one = write_dataset(tmp_path / "one", ["a", "b"], ["c"])
    same = write_dataset(tmp_path / "same", ["a", "b"], ["c"])
    assert one.fingerprint == same.fingerprint
    for train, held_out in ((["a", "c"], ["b"]), (["ab"], ["c"]), (["b", "a"], ["c"])):
        other = write_dataset(tmp_path / "-".join(train), train, held_out)
        assert other.fingerprint != one.fingerprint


# -- damage


def files_of(dataset: Dataset) -> list[str]:
    return sorted(path.name for path in dataset.path.iterdir() if path.name != "dataset.json")


def test_a_file_cut_short_or_missing_is_named(small: Dataset) -> None:
    for name in files_of(small):
        file = small.path / name
        data = file.read_bytes()
        file.write_bytes(data[:-1])
        with pytest.raises(CorruptFileError, match=f"{name} (is cut short|has changed).*delete"):
            Dataset.open(small.path)
        file.unlink()
        with pytest.raises(CorruptFileError, match=f"{name} is missing"):
            Dataset.open(small.path)
        file.write_bytes(data)
    assert Dataset.open(small.path).fingerprint == small.fingerprint


def test_a_flipped_bit_is_found_by_the_full_check(small: Dataset) -> None:
    for name in files_of(small):
        file = small.path / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(CorruptFileError, match=f"{name} has changed"):
            Dataset.open(small.path, check="full")
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def test_a_damaged_record_is_named(small: Dataset, tmp_path: Path) -> None:
    file = small.path / "dataset.json"
    record = json.loads(file.read_text())
    for content in ["", "{", "[]", '{"format": 1}', json.dumps(record | {"splits": 5})]:
        file.write_text(content)
        with pytest.raises(CorruptFileError, match=r"dataset\.json is damaged"):
            Dataset.open(small.path)
    file.write_text(json.dumps(record | {"eot_id": 3}))
    with pytest.raises(CorruptFileError, match=r"dataset\.json was changed by hand"):
        Dataset.open(small.path)
    file.write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(FlyweightError, match="has format 2, this program reads 1"):
        Dataset.open(small.path)
    with pytest.raises(FlyweightError, match="is no dataset"):
        Dataset.open(tmp_path)


# -- writing


def test_an_existing_dataset_is_kept(write_dataset: WriteDataset, tmp_path: Path) -> None:
    out = tmp_path / "d"
    first = write_dataset(out, ["a"])
    inode = (out / "dataset.json").stat().st_ino
    assert write_dataset(out, ["a"]).fingerprint == first.fingerprint
    assert (out / "dataset.json").stat().st_ino == inode
    with pytest.raises(FlyweightError, match=r"d holds another dataset .* delete that one"):
        write_dataset(out, ["b"])
    assert Dataset.open(out, check="full").fingerprint == first.fingerprint
    assert os.listdir(tmp_path) == ["d"]


def test_other_files_are_kept(write_dataset: WriteDataset, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert write_dataset(tmp_path / "d", ["into the empty folder"]).train.documents == 1
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine.txt").write_text("mine")
    with pytest.raises(FlyweightError, match="exists and is no dataset"):
        write_dataset(tmp_path / "e", ["a"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FlyweightError, match="exists and is no dataset"):
        write_dataset(tmp_path / "file", ["a"])
    assert (tmp_path / "e" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    write_dataset: WriteDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer_module, "_sync", full)
    with pytest.raises(FlyweightError, match=r"d cannot be written: No space left .* free some"):
        write_dataset(tmp_path / "d", ["a"])
    assert os.listdir(tmp_path) == []


def test_an_end_of_text_inside_a_document_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(FlyweightError, match="end-of-text"),
        Writer(tmp_path / "d", ByteTokenizer()) as writer,
    ):
        writer.add("train", Entry("a", "s", 1), np.array([97, EOT], dtype=np.uint16))
