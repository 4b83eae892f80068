"""Evaluation text in documents: found where a search over sets of tuples finds it, and gone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.data.decontaminate import Decontaminator, passed_over
from flyweight.data.document import Document
from flyweight.data.evaluation import items
from flyweight.data.tally import Tally
from flyweight.spec.cleaning import Decontaminate
from flyweight.spec.errors import CorruptFileError, FlyweightError

SlowWords = Callable[[str], list[tuple[str, int, int]]]
EVAL = Path(__file__).resolve().parents[3] / "shared/data/eval"
VERSE = "It was many and many a year ago, in a kingdom by the sea, that a maiden there lived."


def opened(table: Decontaminate, folder: Path) -> Decontaminator:
    Decontaminator.prepare(table, folder)
    return Decontaminator.open(table, folder)


def kept_of(stage: Decontaminator, text: str, tally: Tally) -> Document | None:
    """What is left of one document, or None."""
    return next(stage([Document("d", text, "s")], tally), None)


def write(file: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(file.suffix, bytes)
    file.write_bytes(pack(text))
    return file


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.jsonl.zst"])
def test_items_are_the_rows_strings(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": "q-1", "query": "one", "choices": ["two", "three"], "gold": 1},
        {"context": {"deep": ["four"]}, "id": 7},
        {"text": "five"},
    ]
    found = list(items([str(write(tmp_path / name, rows))]))
    assert [(item.file, item.id, item.texts) for item in found] == [
        (name, "q-1", ["one", "two", "three"]),
        (name, "7", ["four"]),
        (name, "3", ["five"]),
    ]


def test_items_of_a_text_are_its_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    found = [(item.id, item.texts) for item in items([str(tmp_path)])]
    assert found == [("1", ["one\ntwo"]), ("5", ["three"])]


def test_broken_files_are_named_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    file.write_text('{"a": "b"}\n[1]\n', encoding="utf-8")
    with pytest.raises(CorruptFileError, match="e.jsonl, line 2: a list, no object"):
        list(items([str(file)]))
    file.write_text('{"a": "b"}\n{"a": \n', encoding="utf-8")
    with pytest.raises(CorruptFileError, match="e.jsonl, line 2: not JSON"):
        list(items([str(file)]))
    packed = write(tmp_path / "e.jsonl.zst", [{"a": "b" * 99}])
    packed.write_bytes(packed.read_bytes()[:-3])
    with pytest.raises(CorruptFileError, match="ends early"):
        list(items([str(packed)]))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FlyweightError, match="not UTF-8 text"):
        list(items([str(tmp_path / "b.txt")]))
    with pytest.raises(FlyweightError, match="no item has a text of 8 words"):
        Decontaminator.prepare(
            Decontaminate(files=[str(write(tmp_path / "s.jsonl", [{"a": "too short"}]))]), tmp_path
        )


TOKENS = st.lists(st.sampled_from(["a", "B", "c", "中"]), max_size=14)


@given(
    evaluation=st.lists(TOKENS, min_size=1, max_size=4),
    document=TOKENS,
    n=st.integers(2, 5),
    least=st.integers(1, 5),
    margin=st.integers(0, 4),
)
@settings(max_examples=60)
def test_what_is_found_is_what_a_slow_search_finds(
    tmp_path_factory: pytest.TempPathFactory,
    slow_words: SlowWords,
    evaluation: list[list[str]],
    document: list[str],
    n: int,
    least: int,
    margin: int,
) -> None:
    least = min(least, n)
    folder = tmp_path_factory.mktemp("eval")
    rows = [{"id": str(i), "text": " ".join(tokens)} for i, tokens in enumerate(evaluation)]
    grams: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        tokens = [word for word, _, _ in slow_words(row["text"])]
        if len(tokens) >= least:
            for i in range(max(1, len(tokens) - n + 1)):
                grams.setdefault(tuple(tokens[i : i + n]), set()).add(row["id"])
    files = [str(write(folder / "e.jsonl", rows))]
    table = Decontaminate(files=files, ngram=n, min_words=least, action="cut", margin=margin)
    if not grams:
        with pytest.raises(FlyweightError, match="no item has a text"):
            Decontaminator.prepare(table, folder)
        return
    text = ", ".join(document)

    def found(text: str) -> dict[str, int]:
        tokens = [word for word, _, _ in slow_words(text)]
        counts: dict[str, int] = {}
        for length in {len(gram) for gram in grams}:
            for i in range(len(tokens) - length + 1):
                for item in grams.get(tuple(tokens[i : i + length]), ()):
                    counts[item] = counts.get(item, 0) + 1
        return counts

    tally = Tally()
    stage = opened(table, folder)
    kept = kept_of(stage, text, tally)
    assert {finding.item: finding.ngrams for finding in tally.findings} == found(text)
    if not found(text):
        assert kept is not None
        assert kept.text == text
    if kept is not None:
        assert not found(kept.text)
        assert kept.text.strip() or not text.strip()
    dropping = opened(table.replace(action="drop"), folder)
    assert (kept_of(dropping, text, Tally()) is None) == bool(found(text))
    # In any company the same: no n-gram runs from one document into the next.
    many = [Document(f"d{i}", ", ".join(document[i:]), "s") for i in range(len(document) + 1)]
    tally = Tally()
    stays = [other.name for other in dropping(many, tally)]
    assert stays == [other.name for other in many if not found(other.text)]
    mine = {(row.document, row.item): row.ngrams for row in tally.findings}
    assert mine == {(d.name, item): n for d in many for item, n in found(d.text).items()}


def test_a_passage_is_dropped_or_cut_with_its_margin(tmp_path: Path) -> None:
    file = str(write(tmp_path / "e.jsonl", [{"id": "lee", "query": VERSE, "choices": ["sea"]}]))
    before, after = "alpha beta gamma delta " * 9, " epsilon zeta eta theta" * 9
    text = before + VERSE.upper().replace(",", "") + after
    tally = Tally()
    stage = opened(Decontaminate(files=[file]), tmp_path)
    assert kept_of(stage, text, tally) is None
    assert tally.rules["contaminated"].dropped == 1
    (finding,) = tally.findings
    assert (finding.document, finding.file, finding.item, finding.ngrams) == (
        "d",
        "e.jsonl",
        "lee",
        7,
    )
    assert finding.passage.startswith("IT WAS MANY")
    cut = opened(Decontaminate(files=[file], action="cut", margin=20), tmp_path)
    kept = kept_of(cut, text, tally)
    assert kept is not None
    head, tail = kept.text.split("\n\n")
    # The word that the margin's end runs through goes too.
    assert before.startswith(head)
    assert 20 <= len(before) - len(head) < 32
    assert after.endswith(tail)
    assert 20 <= len(after) - len(tail) < 32
    assert tally.rules["contaminated"].edited == 1
    # Twelve words of the thirteen are no finding; a short item counts whole.
    # Where no spaces are written the margin ends where it ends.
    (tmp_path / "zh").mkdir()
    chinese = "床前明月光疑是地上霜舉頭望明月低頭思故鄉"
    zh = str(write(tmp_path / "zh/e.jsonl", [{"id": "li", "query": chinese}]))
    cut = opened(Decontaminate(files=[zh], action="cut", margin=5), tmp_path / "zh")
    kept = kept_of(cut, "天" * 90 + chinese + "地" * 90, tally)
    assert kept is not None
    assert kept.text == "天" * 85 + "\n\n" + "地" * 85
    twelve = " ".join(VERSE.split()[:12])
    assert kept_of(stage, f"{twelve} and so on", tally) is not None


def test_short_items_are_looked_for_whole_or_with_their_choices(tmp_path: Path) -> None:
    rows = [
        {
            "id": "copa",
            "query": "The man turned on the faucet, therefore",
            "choices": ["water flowed from the spout."],
        },
        {"id": "eight", "good": "the cat sat on the old red mat"},
        {"id": "short", "context": "25-759=", "continuation": "-734"},
    ]
    table = Decontaminate(files=[str(write(tmp_path / "e.jsonl", rows))])
    Decontaminator.prepare(table, tmp_path / "index")
    (notice,) = passed_over(tmp_path / "index")
    assert "1 of 3 evaluation items" in notice
    stage = Decontaminator.open(table, tmp_path / "index")
    tally = Tally()
    found = [
        ("a", "The man turned on the faucet; therefore water flowed from the spout. So."),
        ("b", "Yes: the cat sat on the old red mat all day"),
        ("c", "the cat sat on the old red rug; 25-759=-734"),
    ]
    stays = stage([Document(name, text, "s") for name, text in found], tally)
    assert [document.name for document in stays] == ["c"]
    assert [(finding.document, finding.item) for finding in tally.findings] == [
        ("a", "copa"),
        ("b", "eight"),
    ]


@given(st.data())
@settings(max_examples=25)
def test_real_items_planted_anywhere_are_found(
    real: tuple[Decontaminator, list[tuple[str, str]]], data: st.DataObject
) -> None:
    stage, planted = real
    id, passage = data.draw(st.sampled_from(planted))
    tokens = passage.split()
    start = data.draw(st.integers(0, max(0, len(tokens) - 30)))
    before = data.draw(st.integers(0, 200))
    text = " ".join(["lorem"] * before + tokens[start : start + 30] + ["ipsum"] * 50)
    tally = Tally()
    assert kept_of(stage, text, tally) is None
    assert id in {finding.item for finding in tally.findings}


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Decontaminator, list[tuple[str, str]]]:
    file = EVAL / "lambada_openai.jsonl.zst"
    if not file.is_file():
        pytest.skip("the shared evaluation files are not beside this checkout")
    table = Decontaminate(files=[str(file)])
    found = [(item.id, item.texts[0]) for item in items(table.files)]
    return opened(table, tmp_path_factory.mktemp("index")), found[:400]
