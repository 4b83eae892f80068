"""GPT-2's two files, against tiktoken and the published vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.load import load_tokenizer
from flyweight.text.tokenizer import Tokenizer, byte_characters

DATA = Path(__file__).resolve().parents[3] / "shared/data/tokenizer"
NEEDS_VECTORS = pytest.mark.skipif(
    not DATA.is_dir(), reason="shared/data/tokenizer is not beside the repository"
)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.sampled_from("ab'sltvedrem 12½\n\t\r\0.,é日\u0301\u0378\u200d\u00a0🙂")),
)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer(DATA / "gpt2")


@pytest.fixture(scope="module")
def tiktokens() -> tiktoken.Encoding:
    encoder = json.loads((DATA / "gpt2/encoder.json").read_text(encoding="utf-8"))
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    end = encoder.pop("<|endoftext|>")
    return tiktoken.Encoding(
        "gpt2-from-its-files",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks={bytes(byte_of[c] for c in token): id for token, id in encoder.items()},
        special_tokens={"<|endoftext|>": end},
    )


@NEEDS_VECTORS
def test_the_published_vectors(gpt2: Tokenizer) -> None:
    lines = (DATA / "gpt2/vectors_tiktoken.jsonl").read_text(encoding="utf-8").split("\n")
    vectors = [json.loads(line) for line in lines if line]
    assert len(vectors) == 230
    for vector in vectors:
        assert gpt2.encode(vector["text"]) == vector["ids"], vector["id"]
        assert gpt2.decode(vector["ids"]) == vector["text"], vector["id"]


@NEEDS_VECTORS
@given(text=TEXT)
def test_ids_are_tiktokens(gpt2: Tokenizer, tiktokens: tiktoken.Encoding, text: str) -> None:
    ids = gpt2.encode(text)
    assert ids == tiktokens.encode_ordinary(text)
    assert gpt2.decode(ids) == text


@NEEDS_VECTORS
def test_every_character_is_cut_as_tiktoken_cuts_it(
    gpt2: Tokenizer, tiktokens: tiktoken.Encoding
) -> None:
    """Letters, numbers and spaces are what they are in both, and so is what is unassigned."""
    codes = [*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000, 3)]
    texts = [f"a{chr(c)}b {chr(c)}1{chr(c)} ." for c in codes]
    expected = tiktokens.encode_ordinary_batch(texts, num_threads=1)
    assert [ids.tolist() for ids in gpt2.encode_documents(texts)] == expected


@NEEDS_VECTORS
def test_its_special_token_and_its_copy(gpt2: Tokenizer, tmp_path: Path) -> None:
    assert (gpt2.vocab_size, gpt2.eot_id, gpt2.add_bos) == (50257, 50256, False)
    assert 50256 not in gpt2.encode("<|endoftext|>")
    assert gpt2.encode("<|endoftext|>", specials=True) == [50256]
    # As Hugging Face names the files.
    shutil.copy(DATA / "gpt2/encoder.json", tmp_path / "vocab.json")
    shutil.copy(DATA / "gpt2/vocab.bpe", tmp_path / "merges.txt")
    assert load_tokenizer(tmp_path).digest == gpt2.digest
    gpt2.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).digest == gpt2.digest


@NEEDS_VECTORS
def test_the_reference_vocabulary_of_a_training(tmp_path: Path) -> None:
    """Its tokens are the merges in their order, and applying those by hand gives the same ids."""
    shutil.copy(DATA / "bpe_train/reference_vocab.json", tmp_path / "vocab.json")
    shutil.copy(DATA / "bpe_train/reference_merges.txt", tmp_path / "merges.txt")
    tokenizer = load_tokenizer(tmp_path)
    text = (DATA / "bpe_train/tinystories_sample.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text, specials=True)
    assert tokenizer.eot_id == 0
    assert ids.count(0) == text.count("<|endoftext|>") > 0
    assert tokenizer.decode(ids) == text.replace("<|endoftext|>", "")
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    merges = [line.split() for line in (tmp_path / "merges.txt").read_text().splitlines()]
    for word in set(text.replace("<|endoftext|>", " ").split()):
        if not (word.isalpha() and word.isascii()):
            continue
        symbols = list("Ġ" + word)
        for left, right in merges:
            i = 0
            while i < len(symbols) - 1:
                if symbols[i : i + 2] == [left, right]:
                    symbols[i : i + 2] = [left + right]
                i += 1
        assert tokenizer.encode(" " + word) == [vocab[symbol] for symbol in symbols]


# -- files made here


def write(folder: Path, vocab: Any = None, merges: str = "h e\nhe l\n", config: Any = None) -> Path:
    tokens = [*byte_characters(), "he", "hel", "<|endoftext|>"]
    made = {token: id for id, token in enumerate(tokens)} if vocab is None else vocab
    text = made if isinstance(made, str) else json.dumps(made)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("version", ["", "#version: 0.2\n"])
def test_a_small_vocabulary(tmp_path: Path, version: str) -> None:
    made = load_tokenizer(write(tmp_path, merges=version + "h e\r\nhe l\r\n\n"))
    assert made.encode("hell") == [257, byte_characters().index("l")]
    assert made.eot_id == 258


def test_the_configuration_names_the_class_and_the_tokens(tmp_path: Path) -> None:
    of = load_tokenizer(write(tmp_path, config={"tokenizer_class": "Qwen2Tokenizer"}))
    assert of.decode(of.encode("e\u0301")) == "é"
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "hel", "add_bos_token": True}
    of = load_tokenizer(write(tmp_path, config=config))
    assert (of.eot_id, of.add_bos) == (257, True)
    (tmp_path / "saved").mkdir()
    of.save(tmp_path / "saved" / "tokenizer.json")  # where no configuration lies beside it
    again = load_tokenizer(tmp_path / "saved")
    assert (again.eot_id, again.add_bos, again.digest) == (257, True, of.digest)
    with pytest.raises(FlyweightError, match=r"is a BertTokenizer, whose way to cut words"):
        load_tokenizer(write(tmp_path, config={"tokenizer_class": "BertTokenizer"}))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"vocab": "{"}, "is not JSON"),
        ({"vocab": "[" * 100_000}, "is not JSON"),
        ({"vocab": []}, "is no vocabulary"),
        ({"vocab": {}}, "is no vocabulary"),
        ({"vocab": {"a": 1}}, "are not 0 to 0, each once"),
        ({"vocab": {"a": 0, "b": 0}}, "are not 0 to 1, each once"),
        ({"vocab": {"a": False}}, "are not 0 to 0, each once"),
        ({"merges": "he\n"}, "line 1: 'he' is not two tokens"),
        ({"merges": "h e\nh e l\n"}, "line 2: 'h e l' is not two tokens"),
        ({"merges": "h e\nh e\n"}, "lists a merge twice"),
        ({"merges": "h x\n"}, "needs 'hx', which is not in"),
    ],
)
def test_files_that_make_no_vocabulary(files: Any, error: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=error):
        load_tokenizer(write(tmp_path, **files))


@pytest.mark.parametrize(
    "mark", [7, {"bos_id": 259}, {"eot_id": "a"}, {"add_bos": 1}, {"pad_id": True}, {"other": 1}]
)
def test_what_is_saved_beside_the_format_is_checked(mark: Any, tmp_path: Path) -> None:
    document = json.loads(load_tokenizer(write(tmp_path)).to_json())
    document["model"]["flyweight"] = mark
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match="is none of its values"):
        load_tokenizer(tmp_path)
