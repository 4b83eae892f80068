"""Small datasets, written by the real writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flyweight.data.shards import Dataset, Entry
from flyweight.data.writer import SHARD_TOKENS, Writer
from flyweight.text.bytes import ByteTokenizer


def _write_dataset(
    out: Path,
    train: Sequence[str],
    held_out: Sequence[str] = (),
    shard_tokens: int = SHARD_TOKENS,
) -> Dataset:
    """A dataset of bytes; documents are named train-0, train-1, ..., held_out-0, ..."""
    tokenizer = ByteTokenizer()
    with Writer(out, tokenizer, shard_tokens) as writer:
        for split, texts in (("train", train), ("held_out", held_out)):
            for i, ids in enumerate(tokenizer.encode_documents(texts)):
                writer.add(split, Entry(f"{split}-{i}", split, len(ids)), ids)
        return writer.finish("test")


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Dataset]:
    return _write_dataset


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    texts = [f"document {n}: " + "words " * (n % 7) for n in range(40)]
    return _write_dataset(tmp_path / "small", texts, ["held out é", "too"], shard_tokens=200)
