"""Finding passages and the steps that read them, against reading everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.batches import Batches
from flyweight.data.find import Taken, find, readings
from flyweight.data.shards import Dataset, Entry
from flyweight.data.writer import Writer
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.subword import SubwordTokenizer

TEXTS = ["aabaab", "", "é aé", "baab" * 9, "a", "abé " * 5, "aa", "x" * 40, "b"]


def tokenizers() -> dict[str, Any]:
    bpe = SubwordTokenizer.train("bpe", 270, [*TEXTS, "aab aab aab abé é aé"])
    return {"bytes": ByteTokenizer(), "bpe": bpe, "llama": llama()}


def llama() -> SubwordTokenizer:
    """A SentencePiece-like tokenizer.json, which puts a space in front of every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "aa", "▁b", "é"]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    merges = [["▁", "a"], ["a", "a"], ["▁", "b"]]
    model = {
        "type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True,
        "unk_token": "<unk>",
        "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "ignore_merges": False,
    }  # fmt: skip
    specials = [
        {"id": id, "content": pieces[id], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for id in range(3)
    ]  # fmt: skip
    front = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": specials,
        "normalizer": {"type": "Sequence", "normalizers": [front, spaces]},
        "pre_tokenizer": None, "post_processor": None, "model": model,
        "decoder": {"type": "Sequence", "decoders": [
            back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
    }  # fmt: skip
    return SubwordTokenizer(document)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    made = {}
    for name, tokenizer in tokenizers().items():
        out = tmp_path_factory.mktemp("find") / name
        with Writer(out, tokenizer, 64) as writer:
            for i, ids in enumerate(tokenizer.encode_documents(TEXTS)):
                writer.add("train", Entry(f"text-{i}", "train", len(TEXTS[i].encode())), ids)
            writer.add(
                "held_out", Entry("held", "held_out", 1), tokenizer.encode_documents(["a"])[0]
            )
            made[name] = writer.finish(name)
    return made


def everywhere(text: bytes, passage: bytes) -> list[int]:
    return [i for i in range(len(text)) if text[i : i + len(passage)] == passage]


@pytest.mark.parametrize("name", ["bytes", "bpe", "llama"])
@given(st.sampled_from(["a", "b", "aa", "é", " a", " ", "é a", "aabaab", "baabbaab", "x" * 30, "xé",
                        "ab", "b" * 3, "abé abé"]), st.integers(1, 70))  # fmt: skip
def test_every_occurrence_is_found(
    datasets: dict[str, Dataset], name: str, passage: str, chunk: int
) -> None:
    dataset = datasets[name]
    stream, tokenizer = dataset.train, dataset.tokenizer
    hits = find(stream, tokenizer, dataset.eot_id, passage, chunk)
    expected = [
        (document, at)
        for document, (_, text) in enumerate(stream.texts(tokenizer))
        for at in everywhere(text, passage.encode())
    ]
    assert sorted(zip(hits.documents.tolist(), hits.at.tolist(), strict=True)) == expected
    for start, stop, document in zip(hits.starts, hits.stops, hits.documents, strict=True):
        assert stream.starts[document] < start < stop <= stream.starts[document + 1]
        held = b"".join(tokenizer.token_bytes(id) for id in stream.read(start, stop).tolist())
        assert passage.encode() in held
        for fewer in (stream.read(start + 1, stop), stream.read(start, stop - 1)):
            less = b"".join(tokenizer.token_bytes(id) for id in fewer.tolist())
            assert len(everywhere(less, passage.encode())) < len(everywhere(held, passage.encode()))


@given(
    st.integers(1, 12), st.integers(1, 3), st.integers(0, 99), st.integers(0, 60),
    st.integers(0, 2), st.data(),
)  # fmt: skip
def test_the_steps_are_those_whose_rows_hold_it(
    datasets: dict[str, Dataset],
    context: int,
    rows: int,
    seed: int,
    steps: int,
    gap: int,
    data: Any,
) -> None:
    """``gap`` windows are skipped before each step, as where spikes were."""
    dataset = datasets["bytes"]
    batches = Batches(dataset, context, rows * context, seed)
    start = data.draw(st.integers(0, dataset.train.tokens - 1))
    stop = data.draw(st.integers(start + 1, min(start + 30, dataset.train.tokens)))
    hits = find(dataset.train, dataset.tokenizer, dataset.eot_id, "\x00")
    hits = hits._replace(starts=np.array([start]), stops=np.array([stop]))
    firsts = np.arange(steps, dtype=np.int64) * (rows + gap) + gap
    numbers, counts = np.arange(steps) + 1, np.full(steps, rows)
    found = readings(hits, [Taken(batches, numbers, firsts, counts)])
    windows = (firsts[:, None] + np.arange(rows)).ravel()
    places = batches._starts(windows)[0]
    expected = [
        (0, n // rows + 1, n % rows)
        for n, place in enumerate(places.tolist())
        if {(place + i) % dataset.train.tokens for i in range(context)} & set(range(start, stop))
    ]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


def test_in_the_command_line(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"document {i}: " + "words and words " * i)
    (tmp_path / "d.toml").write_text('[data]\ntrain = ["texts"]\n')
    command("data", "build", "d.toml", "--out", "set").ok()
    order = ["--context", "16", "--batch-tokens", "64", "--seed", "3"]
    done = command("data", "inspect", "set", "--find", "document 7:", *order, "--json").ok().json()
    (where,) = done["occurrences"]
    assert where["name"].endswith("7.txt") and (where["start_byte"], where["end_byte"]) == (0, 11)
    assert 1 <= len(done["readings"]) <= 2
    for each in done["readings"]:
        step = command(
            "data", "inspect", "set", "--step", each["step"], *order, "--json"
        ).ok().json()  # fmt: skip
        assert any(part["name"] == where["name"] and part["start_byte"] < 11
                   for part in step["rows"][each["row"]])  # fmt: skip
    words = command("data", "inspect", "set", "--find", "words and", *order).ok()
    assert words.out.count("\n") == 21 and "more; --json has them all" in words.out
    assert "occurrences in" in words.err
    none = command("data", "inspect", "set", "--find", "nowhere in it", *order).ok()
    assert none.out == "" and "0 occurrences" in none.err
    command("data", "inspect", "set", "--find", "", *order).failed("empty passage")
    command("data", "inspect", "set", "--find", "a", "--step", "1").failed("ask one of them")
