"""Tokenizers as GGUF's keys and back: exactly through ours, and by llama.cpp's keys alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from flyweight.files.gguf_writer import write_gguf
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.gguf_tokens import placeholder, vocabulary
from flyweight.text.gguf_vocabulary import OWN, document_of
from flyweight.text.load import load_tokenizer
from flyweight.text.piece_tokenizer import PieceTokenizer
from flyweight.text.pieces import holds_pieces, read_document
from flyweight.text.sentencepiece import read_model
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import Tokenizer

DATA = Path(__file__).resolve().parents[3] / "shared/data/tokenizer"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SAMPLES = [
    "def f(x):\n    return x  # it's 12345 €\n",
    "  two spaces, don’t; \t tab\r\n\r\n日本語 naïve 🙂",
    "",
    "\0\x7f",
]


def sentencepiece_bpe(texts: list[str], **options: Any) -> PieceTokenizer:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(texts).split("\n")),
        model_writer=made,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    return PieceTokenizer(read_model(made.getvalue()))


def by_keys_alone(keys: dict[str, Any]) -> Tokenizer:
    """The tokenizer that another program makes of llama.cpp's keys."""
    document = document_of({key: value for key, value in keys.items() if key != OWN})
    if holds_pieces(document):
        return PieceTokenizer(read_document(document))
    return SubwordTokenizer(document)


def agree(one: Tokenizer, other: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = one.encode(text)
        assert other.encode(text) == ids
        assert other.decode(ids) == one.decode(ids)
    for name in ("bos_id", "eot_id", "pad_id", "add_bos"):
        assert getattr(other, name) == getattr(one, name), name


def through_a_file(keys: dict[str, Any], folder: Path) -> Tokenizer:
    path = folder / "out.gguf"
    path.unlink(missing_ok=True)
    write_gguf(path, keys, [])
    return load_tokenizer(path)


def test_bytes(tmp_path: Path) -> None:
    bytes_ = ByteTokenizer()
    made = vocabulary(bytes_, 258)
    assert made.notes == ()
    assert made.keys["tokenizer.ggml.model"] == "gpt2"
    assert made.keys["tokenizer.ggml.merges"] == []
    agree(bytes_, by_keys_alone(made.keys), SAMPLES)
    assert isinstance(through_a_file(made.keys, tmp_path), ByteTokenizer)


def test_a_trained_bpe(bpe: SubwordTokenizer, texts: list[str], tmp_path: Path) -> None:
    made = vocabulary(bpe, bpe.vocab_size)
    assert made.notes == ()
    assert made.keys["tokenizer.ggml.pre"] == "llama-bpe"
    agree(bpe, by_keys_alone(made.keys), [*SAMPLES, *texts])
    assert through_a_file(made.keys, tmp_path).digest == bpe.digest


def test_a_byte_level_unigram_is_for_flyweight(unigram: SubwordTokenizer, tmp_path: Path) -> None:
    made = vocabulary(unigram, unigram.vocab_size)
    assert made.keys["tokenizer.ggml.model"] == "none"
    assert "token ids alone" in made.notes[0]
    assert through_a_file(made.keys, tmp_path).digest == unigram.digest


def test_sentencepiece_as_llama_has_it(texts: list[str], tmp_path: Path) -> None:
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    pieces = sentencepiece_bpe(texts, **plain)
    made = vocabulary(pieces, pieces.vocab_size)
    assert made.notes == ()
    assert made.keys["tokenizer.ggml.model"] == "llama"
    agree(pieces, by_keys_alone(made.keys), [*SAMPLES, *texts])
    assert through_a_file(made.keys, tmp_path).digest == pieces.digest


def test_a_normaliser_that_llama_cpp_lacks_is_said_aloud(texts: list[str]) -> None:
    pieces = sentencepiece_bpe(texts)
    made = vocabulary(pieces, pieces.vocab_size)
    assert "does not normalise" in made.notes[0]
    assert "repeated spaces" in made.notes[1]
    assert OWN in made.keys


def converted(texts: list[str], metaspace: bool) -> SubwordTokenizer:
    """Llama's vocabulary as transformers' converter writes it: merges by rank, byte fallback."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    words = [word for text in texts for word in text.split()]
    made.train_from_iterator(words, trainer)
    document = json.loads(made.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return SubwordTokenizer(document)


@pytest.mark.parametrize("metaspace", [False, True])
def test_a_converted_sentencepiece(metaspace: bool, texts: list[str], tmp_path: Path) -> None:
    ours = converted(texts, metaspace)
    made = vocabulary(ours, ours.vocab_size)
    assert made.keys["tokenizer.ggml.model"] == "llama"
    assert [("a text that begins" in note) for note in made.notes] == [True] * metaspace
    other = by_keys_alone(made.keys)
    for text in [
        SAMPLES[0],
        SAMPLES[1].lstrip() if metaspace else SAMPLES[1],
        " ".join(texts[0].split()[:500]),
    ]:
        assert other.encode(text) == ours.encode(text)
    assert through_a_file(made.keys, tmp_path).digest == ours.digest


CUTTERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    ),
    None: pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "": pre_tokenizers.ByteLevel(add_prefix_space=True),
}


@pytest.mark.parametrize("pre", list(CUTTERS))
def test_ways_to_cut_words(pre: str | None, texts: list[str], tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = CUTTERS[pre], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens(["<|endoftext|>"])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    ours = SubwordTokenizer(json.loads(made.to_str()))
    found = vocabulary(ours, 512)
    if not pre:
        assert found.keys["tokenizer.ggml.model"] == "none"
    else:
        assert (found.keys["tokenizer.ggml.pre"], found.notes) == (pre, ())
        assert found.keys["tokenizer.ggml.tokens"][502:] == [f"[PAD{id}]" for id in range(502, 512)]
        assert found.keys["tokenizer.ggml.token_type"][499:503] == [1, 3, 4, 5]
        agree(ours, by_keys_alone(found.keys), [*SAMPLES, "a<think>b<|endoftext|>", *texts])
    assert through_a_file(found.keys, tmp_path).digest == ours.digest


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/tokenizer is not beside the repository")
def test_gpt2s_own_vocabulary(tmp_path: Path) -> None:
    ours = load_tokenizer(DATA / "gpt2")
    found = vocabulary(ours, 50257)
    assert (found.keys["tokenizer.ggml.pre"], found.notes) == ("gpt-2", ())
    other = through_a_file(found.keys, tmp_path)
    for line in (DATA / "ggml-gpt-2.vectors.jsonl").read_text(encoding="utf-8").splitlines():
        vector = json.loads(line)
        assert other.encode(vector["text"]) == vector["ids"]


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/tokenizer is not beside the repository")
@pytest.mark.parametrize("name", ["gpt-2", "phi-3"])
def test_a_vocabulary_from_llama_cpp_needs_no_keys_of_ours(name: str, tmp_path: Path) -> None:
    import zstandard

    packed = (DATA / f"ggml-vocab-{name}.gguf.zst").read_bytes()
    (tmp_path / "in.gguf").write_bytes(
        zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    )
    ours = load_tokenizer(tmp_path / "in.gguf")
    found = vocabulary(ours, ours.vocab_size)
    assert OWN not in found.keys
    assert through_a_file(found.keys, tmp_path).digest == ours.digest


@pytest.mark.parametrize("size", [257, 258, 300, 32_000])
def test_placeholders(size: int, tmp_path: Path) -> None:
    made = placeholder(size)
    assert made.vocab_size == size
    found = vocabulary(made, size)
    assert found.notes == ()
    assert len(found.keys["tokenizer.ggml.tokens"]) == size
    back = through_a_file(found.keys, tmp_path)
    assert back.encode("é") == list("é".encode())
    agree(made, back, SAMPLES)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(FlyweightError, match="a vocabulary of 256 tokens is too small"):
        placeholder(256)
    with pytest.raises(FlyweightError, match="has 258 tokens and the model 257"):
        vocabulary(ByteTokenizer(), 257)


@pytest.mark.parametrize("text", ["{", "[]", "{}", 7, "[" * 100_000])
def test_a_tokenizer_json_of_ours_that_is_none(text: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"out\.gguf: flyweight\.tokenizer is no"):
        through_a_file({OWN: text}, tmp_path)


@given(text=TEXT)
def test_any_text_by_the_keys_alone(bpe: SubwordTokenizer, text: str) -> None:
    other = by_keys_alone(vocabulary(bpe, bpe.vocab_size).keys)
    assert other.encode(text) == bpe.encode(text)
