"""SentencePiece models, against the sentencepiece package: published vectors and trained models."""

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

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.load import load_tokenizer
from flyweight.text.piece_tokenizer import PieceTokenizer
from flyweight.text.sentencepiece import read_model
from flyweight.text.tokenizer import StreamDecoder, byte_lengths

VECTORS = Path(__file__).resolve().parents[3] / "shared/data/tokenizer/sentencepiece"
NEEDS_VECTORS = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="shared/data/tokenizer is not beside the repository"
)
# What the trained models are asked for; every branch of the encoder is in one of them.
SYMBOLS = {"user_defined_symbols": ["<sep>", "a b", "  ", "return", "\n"]}
PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "llama": {**PLAIN, "byte_fallback": True, "allow_whitespace_only_pieces": True},
    "symbols": {"normalization_rule_name": "nmt_nfkc_cf", "control_symbols": ["<ctl>"], **SYMBOLS},
    "bare": {**PLAIN, **SYMBOLS, "add_dummy_prefix": False, "unk_surface": "??", "pad_id": 3},
    "suffix": {"treat_whitespace_as_suffix": True, "bos_id": -1},
    "sentences": {"split_by_whitespace": False, "byte_fallback": True},
}
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.one_of(
    st.text(CHARACTERS),
    st.text(st.sampled_from("abdefnorstux  \n\t._=()▁\0\u0301\u200b\u0378\u3000éﬁＡ½日🙂-")),
    st.lists(
        st.sampled_from(
            [
                *("<sep>", "<s>", "</s>", "<unk>", "<ctl>", "<0x41>", "a b", "  ", " ", "▁▁"),
                *("return ", "self.", "____", "\n", "\0", "e\u0301", "日本", "............"),
            ]
        )
    ).map("".join),
)


class Pair:
    """A model as we have it and as the sentencepiece package has it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ours = PieceTokenizer(read_model(data))
        self.theirs = sentencepiece.SentencePieceProcessor(model_proto=data)


@pytest.fixture(
    scope="module", params=[f"{kind}-{name}" for kind in ("bpe", "unigram") for name in TRAININGS]
)
def pair(request: pytest.FixtureRequest, texts: list[str]) -> Pair:
    kind, name = request.param.split("-")
    lines = [line for text in texts[1:4] for line in text.split("\n") if line.strip()]
    options = {"model_type": kind, "vocab_size": 700, "num_threads": 1, "minloglevel": 2}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *["Ａ ﬁne é ½ 日本"] * 9]),
        model_writer=written,
        **options,
        **TRAININGS[name],
    )
    return Pair(written.getvalue())


@given(text=TEXT)
def test_ids_and_text_are_sentencepieces_own(pair: Pair, text: str) -> None:
    ids = pair.theirs.encode(text)
    assert pair.ours.encode(text) == ids
    assert pair.ours.encode_documents([text])[0].tolist() == ids
    assert pair.ours.decode(ids) == pair.theirs.decode(ids)
    decoder = StreamDecoder(pair.ours)
    assert "".join(decoder.push(id) for id in ids) + decoder.flush() == pair.ours.decode(ids)


def test_real_text_and_long_words_too(pair: Pair, texts: list[str]) -> None:
    # Long enough for the sum of log probabilities to lose its last bits.
    for text in ["\n".join(texts[1:]), "x" * 20_000, "ab" * 20_000, " " * 20_000, "日" * 9_999]:
        ids = pair.theirs.encode(text)
        assert pair.ours.encode(text) == ids
        assert pair.ours.decode(ids) == pair.theirs.decode(ids)


@given(data=st.data())
def test_any_ids_decode_as_sentencepiece_decodes_them(pair: Pair, data: st.DataObject) -> None:
    size = pair.ours.vocab_size
    bytes_too = set(pair.ours._pieces.bytes_of())  # invalid UTF-8 is replaced in another way
    ids = data.draw(st.lists(st.integers(0, size - 1).filter(lambda id: id not in bytes_too)))
    assert pair.ours.decode(ids) == pair.theirs.decode(ids)
    if pair.theirs.unk_id() not in ids:
        assert pair.ours.decode_bytes(ids).decode() == pair.theirs.decode(ids)


def test_special_ids_and_the_bytes_of_tokens(pair: Pair) -> None:
    ours, theirs = pair.ours, pair.theirs
    assert ours.vocab_size == theirs.vocab_size()
    ids = {"bos": ours.bos_id, "eos": ours.eot_id, "pad": ours.pad_id}
    for name, id in ids.items():
        assert getattr(theirs, f"{name}_id")() == (-1 if id is None else id)
    assert not ours.add_bos
    for id, length in enumerate(byte_lengths(ours)):
        if theirs.is_control(id) or theirs.is_unknown(id):
            assert length == 0
        elif not theirs.is_byte(id):
            assert ours.token_bytes(id) == theirs.id_to_piece(id).replace("▁", " ").encode()
    assert {ours.token_bytes(id) for id in range(700) if theirs.is_byte(id)} in (
        set(),
        {bytes([byte]) for byte in range(256)},
    )


def test_it_saves_as_a_file_that_loads_to_the_same(
    pair: Pair, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pair.data)
    first = load_tokenizer(tmp_path)
    assert (first.digest, first.kind) == (pair.ours.digest, pair.ours.kind)
    first.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert isinstance(again, PieceTokenizer)
    assert again._pieces == pair.ours._pieces
    assert again.to_json() == first.to_json()
    assert again.encode(texts[0]) == pair.theirs.encode(texts[0])


def test_other_programs_read_the_file(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.get_vocab_size() == pair.ours.vocab_size
    if not pair.ours._pieces.suffix:  # which the library has no word for
        text = "the name of a class"
        assert library.encode(text, add_special_tokens=False).ids == pair.ours.encode(text)
        assert library.decode(pair.ours.encode(text)) == text


def test_control_pieces_are_text_unless_asked(pair: Pair) -> None:
    eos = pair.ours.eot_id
    assert eos is not None
    assert eos not in pair.ours.encode("a</s>b")
    ours = pair.ours.encode("a</s>b", specials=True)
    assert ours == [*pair.theirs.encode("a"), eos, *pair.theirs.encode("b")]
    assert pair.ours.encode("</s></s>", specials=True) == [eos, eos]


def test_bos_only_when_asked(pair: Pair) -> None:
    if pair.ours.bos_id is None:
        with pytest.raises(FlyweightError, match="no beginning-of-text token"):
            pair.ours.encode("a", bos=True)
    else:
        assert pair.ours.encode("a", bos=True) == [1, *pair.theirs.encode("a")]


def test_a_lone_surrogate_is_one_clear_error(pair: Pair) -> None:
    with pytest.raises(FlyweightError, match=r"U\+D83D\) at character 1"):
        pair.ours.encode("é\ud83d")
    with pytest.raises(FlyweightError, match=r"document 1 "):
        pair.ours.encode_documents(["fine", "\udc00"])


@given(data=st.data())
def test_a_damaged_file_is_refused_with_one_message(pair: Pair, data: st.DataObject) -> None:
    damaged = bytearray(pair.data)
    for _ in range(data.draw(st.integers(1, 3))):
        # Near the ends lie what is not a piece: the specs, the charsmap.
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        made = PieceTokenizer(read_model(bytes(damaged)))
    except FlyweightError as error:
        assert str(error)
    else:  # a score or a letter is another: still a vocabulary
        made.decode(made.encode("a\0 é </s>"))


# -- the published model


@NEEDS_VECTORS
def test_the_published_vectors() -> None:
    ours = load_tokenizer(VECTORS / "test_model.model")
    lines = (VECTORS / "test_model.vectors.jsonl").read_text(encoding="utf-8").split("\n")
    vectors = [json.loads(line) for line in lines if line]
    assert len(vectors) == 230
    for vector in vectors:
        assert ours.encode(vector["text"]) == vector["ids"], vector["id"]
        assert ours.decode(vector["ids"]) == vector["decoded"], vector["id"]


@NEEDS_VECTORS
@pytest.mark.parametrize("word", ["ab", "\0", "\u0378", "xyz hello "])
def test_a_text_of_a_megabyte_that_repeats_itself(word: str) -> None:
    data = (VECTORS / "test_model.model").read_bytes()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    text = word * (1_000_000 // len(word.encode()))
    assert load_tokenizer(VECTORS / "test_model.model").encode(text) == theirs.encode(text)


# -- what lies beside it, and what is not supported


def field(number: int, value: bytes | int) -> bytes:
    """One field of a protocol buffer: a varint below 128, or bytes."""
    if isinstance(value, int):
        return bytes([*varint(number << 3), value])
    return bytes([*varint(number << 3 | 2), *varint(len(value))]) + value


def varint(value: int) -> list[int]:
    return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]


def model(*, pieces: str = "abc", trainer: bytes = b"", rest: bytes = b"") -> bytes:
    """A model of <unk>, <s>, </s> and letters."""
    made = b""
    for piece, type in [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((c, 1) for c in pieces)]:
        made += field(1, field(1, piece.encode()) + field(3, type))
    return made + field(2, trainer or field(3, 2)) + rest


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "the file ends within a number|0 unknown pieces"),
        (b"\x0a", "ends within a number"),
        (b"\x0a\xff\xff\xff\xff\x0f", r"field 1 claims 4294967295 bytes and 0 are left"),
        (b"\x0a" + b"\xff" * 12, "more than ten bytes"),
        (b"{}", "not a protocol buffer"),
        (model(pieces="aa"), r"piece 4 has the text of another \('a'\)"),
        (model(trainer=field(3, 2) + field(35, 1)), "lacks some of the 256"),
        (model(rest=field(1, field(1, b"x") + field(3, 2))), "2 unknown pieces"),
        (model(rest=field(1, field(1, b"x") + field(3, 9))), "unknown type 9"),
        (model(rest=field(1, field(3, 1))), "piece 6 has no text"),
        (model(rest=field(1, field(1, b"x" * 10**6))), "piece 6 has 1000000 characters"),
        (model(rest=field(1, field(1, b"\xff"))), "not UTF-8"),
        (model(rest=field(1, field(1, b"x") + b"\x15\0\0\xc0\x7f")), r"\('x'\) scores nan"),
        (model(rest=field(1, field(1, b"<0x41>") + field(3, 6))), "says that it has none"),
        (model(rest=field(1, 1)), "field 1 is a varint where bytes is wanted"),
        (model(rest=field(3, field(2, b"\4\0\0"))), "charsmap of 3 bytes"),
        (model(rest=field(3, field(2, b"\xf0\xff\xff\xff1234"))), "claims a trie of 4294967280"),
    ],
)
def test_what_is_no_model_is_said_to_be_none(data: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(CorruptFileError, match=rf"(?s)x\.model: .*({error})"):
        load_tokenizer(tmp_path / "x.model")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (model(trainer=field(3, 4)), "of type char: unigram and bpe are supported"),
        (model(rest=field(5, field(2, b"1234"))), "denormaliser"),
    ],
)
def test_what_is_not_supported_is_said(data: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(FlyweightError, match=error):
        load_tokenizer(tmp_path / "x.model")


def test_the_configuration_beside_a_model_decides_on_bos_and_adds_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model())
    config = tmp_path / "tokenizer_config.json"
    for content, add_bos in [
        ({}, False),
        ({"add_bos_token": True}, True),
        ({"tokenizer_class": "LlamaTokenizer"}, True),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, False),
        ({"tokenizer_class": "T5Tokenizer"}, False),
    ]:
        config.write_text(json.dumps(content))
        loaded = load_tokenizer(tmp_path)
        assert (loaded.add_bos, loaded.bos_id, loaded.eot_id) == (add_bos, 1, 2)
        loaded.save(tmp_path / "saved.json")
        assert load_tokenizer(tmp_path / "saved.json").add_bos == add_bos
    added = {
        "1": {"content": "<s>", "special": True},
        "6": {"content": "<|end|>", "special": True},
        "7": {"content": "<think>", "special": False},
    }
    config.write_text(json.dumps({"added_tokens_decoder": added, "eos_token": "<|end|>"}))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.eot_id) == (8, 6)
    assert loaded.encode("ab<think>c")[-3:] == [4, 7, 5]
    assert loaded.encode("c<|end|>", specials=True)[-2:] == [5, 6]
    assert loaded.decode([3, 7, 4, 6]) == "a<think>b"
    config.write_text(json.dumps({"added_tokens_decoder": {"2": {"content": "<x>"}}}))
    with pytest.raises(FlyweightError, match="'<x>' as id 2, which does not fit the 6 pieces"):
        load_tokenizer(tmp_path)


def test_a_saved_file_changed_by_hand_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(model())
    document = json.loads(load_tokenizer(tmp_path / "x.model").to_json())
    file = tmp_path / "tokenizer.json"
    changes: list[tuple[str, Any]] = [
        ("types", "233111"[:-1]),
        ("types", "23311x"),
        ("bos_id", 99),
        ("bos_id", True),
        ("add_bos", None),
        ("add_dummy_prefix", False),
        ("scores", [0.0]),
        ("scores", ["a"] * 6),
    ]
    for key, value in changes:
        changed = json.loads(json.dumps(document))
        changed["model"]["flyweight"][key] = value
        file.write_text(json.dumps(changed))
        with pytest.raises(CorruptFileError, match=r"tokenizer\.json: "):
            load_tokenizer(file)
