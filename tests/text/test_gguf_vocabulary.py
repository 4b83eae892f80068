"""Vocabularies inside GGUF files: llama.cpp's own vectors, and files made here byte by byte."""

from __future__ import annotations

import json
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.byte_level import byte_level_document
from flyweight.text.gguf_metadata import read_metadata
from flyweight.text.load import load_tokenizer
from flyweight.text.tokenizer import Tokenizer, byte_characters

DATA = Path(__file__).resolve().parents[3] / "shared/data/tokenizer"
NEEDS_VECTORS = pytest.mark.skipif(
    not DATA.is_dir(), reason="shared/data/tokenizer is not beside the repository"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def unpacked(name: str, folder: Path) -> Path:
    packed = (DATA / f"ggml-vocab-{name}.gguf.zst").read_bytes()
    file = folder / f"{name}.gguf"
    file.write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    return file


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("gguf")
    return {n: load_tokenizer(unpacked(n, folder)) for n in ("falcon", "gpt-2", "phi-3")}


@NEEDS_VECTORS
@pytest.mark.parametrize("name", ["falcon", "gpt-2", "phi-3"])
def test_the_published_vectors(name: str, published: dict[str, Tokenizer], tmp_path: Path) -> None:
    loaded = published[name]
    loaded.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    lines = (DATA / f"ggml-{name}.vectors.jsonl").read_text(encoding="utf-8").split("\n")
    vectors = [json.loads(line) for line in lines if line]
    assert len(vectors) == 46
    for vector in vectors:
        assert loaded.encode(vector["text"]) == vector["ids"], vector["id"]
        assert again.encode(vector["text"]) == vector["ids"], vector["id"]
        assert loaded.decode(vector["ids"]) == vector["text"], vector["id"]
    for tokenizer in loaded, again:
        assert tokenizer.digest == loaded.digest
        specials = tokenizer.bos_id, tokenizer.eot_id, tokenizer.add_bos
        assert (
            specials
            == {
                "falcon": (11, 11, False),
                "gpt-2": (50256, 50256, False),
                "phi-3": (1, 32000, True),
            }[name]
        )


BYTES: dict[str, set[int]] = {}


def single_bytes(tokenizer: Tokenizer) -> set[int]:
    """The bytes that have a token of their own."""
    tokens = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    return {token[0] for token in tokens if len(token) == 1}


@NEEDS_VECTORS
@given(text=TEXT)
def test_any_text_comes_back_exactly(published: dict[str, Tokenizer], text: str) -> None:
    for name, tokenizer in published.items():
        # Falcon's vocabulary lacks some bytes (control characters, rare planes), and has no piece
        # to say so: its tokenizer drops them.
        if not set(text.encode()) <= BYTES.setdefault(name, single_bytes(tokenizer)):
            assert name == "falcon"
            continue
        # SentencePiece writes a space as ▁, and so cannot tell the two apart.
        expected = text.replace("▁", " ") if name == "phi-3" else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected


@NEEDS_VECTORS
@pytest.mark.parametrize("word", ["a", "\0", "\u0378"])
def test_a_word_of_a_megabyte(published: dict[str, Tokenizer], word: str) -> None:
    text = word * (1_000_000 // len(word.encode()))
    for name in "gpt-2", "phi-3":
        assert published[name].decode(published[name].encode(text)) == text


@NEEDS_VECTORS
def test_a_wordpiece_vocabulary_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(FlyweightError, match=r"bert-bge\.gguf: .*'bert'; llama .* and gpt2"):
        load_tokenizer(unpacked("bert-bge", tmp_path))


# -- files made here


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(it: Any) -> bytes:
    """A type and a value as GGUF writes them."""
    match it:
        case bool():
            return struct.pack("<I?", 7, it)
        case int():
            return struct.pack("<II", 4, it)
        case float():
            return struct.pack("<If", 6, it)
        case str():
            return struct.pack("<I", 8) + string(it)
        case _:
            inner = [value(each) for each in it]
            (kind,) = {each[:4] for each in inner}
            return (
                struct.pack("<I", 9)
                + kind
                + struct.pack("<Q", len(inner))
                + b"".join(each[4:] for each in inner)
            )


def gguf(keys: dict[str, Any], tensors: int = 0) -> bytes:
    made = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys))
    return made + b"".join(string(key) + value(it) for key, it in keys.items())


def keys(**changes: Any) -> dict[str, Any]:
    """A small byte-level vocabulary's keys; a change to None leaves the key out."""
    tokens = [*byte_characters(), "he", "hel", "<s>", "<think>", "<e>"]
    made: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [1] * 258 + [3, 4, 3],
        "merges": ["h e", "he l"],
        "bos_token_id": 258,
        "eos_token_id": 260,
    } | changes
    kept = {f"tokenizer.ggml.{key}": it for key, it in made.items() if it is not None}
    return {"general.architecture": "llama", **kept}


def pieces(**changes: Any) -> dict[str, Any]:
    """A small SentencePiece vocabulary's keys."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    made: dict[str, Any] = {
        "model": "llama",
        "pre": None,
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * 3,
        "scores": [0.0] * 259 + [-2.0, -3.0, -1.0],
        "merges": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return keys(**(made | changes))


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def of(content: dict[str, Any] | bytes) -> Tokenizer:
        file = tmp_path / "made.gguf"
        file.write_bytes(content if isinstance(content, bytes) else gguf(content))
        return load_tokenizer(file)

    return of


def test_a_byte_level_vocabulary(load: Any) -> None:
    made = load(keys())
    assert (made.kind, made.vocab_size, made.bos_id, made.eot_id) == ("bpe", 261, 258, 260)
    assert not made.add_bos
    l_id = byte_characters().index("l")
    assert made.encode("hell") == [257, l_id]
    assert len(made.encode("<s>")) == 3
    assert made.encode("<s>", specials=True) == [258]
    assert made.encode("<think>") == [259]  # user-defined: found in any text
    assert made.decode([258, 257, 259, 260]) == "hel<think>"
    with pytest.raises(FlyweightError, match=r"U\+DC00\) at character 1"):
        made.encode("a\udc00")


def test_a_sentencepiece_vocabulary(load: Any) -> None:
    made = load(pieces())
    assert (made.kind, made.bos_id, made.eot_id, made.add_bos) == ("bpe", 1, 2, True)
    assert made.encode("a a") == [261, 261]
    assert made.encode("é\0") == [259, 3 + 0xC3, 3 + 0xA9, 3]
    assert made.encode("a", bos=True) == [1, 261]
    assert made.decode([1, 261, 261]) == "a a"
    assert made.decode([0]) == ""
    without = load(pieces(add_space_prefix=False))
    assert without.encode("a a") == [260, 261]
    assert without.decode([261]) == " a"


@pytest.mark.parametrize("make", [keys, pieces])
@pytest.mark.parametrize("add", [True, False, None])
def test_a_bos_is_added_as_the_file_says(load: Any, make: Any, add: bool | None) -> None:
    made = load(make(add_bos_token=add))
    assert made.add_bos == (add if add is not None else make is pieces)


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


DIGITS = {"type": "Digits", "individual_digits": True}
BLOOM = split(" ?[^(\\s|[.,!?…。，、।۔،])]+")
HAN = split("[一-龥ࠀ-一가-퟿]+")
# How the makers' own tokenizer.json files cut before byte level. "deepseek-llm" lists letters in
# ranges; those of its list in Latin, Greek and Cyrillic are the ones with a case.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "tekken": [
        split(
            "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*"
            "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?"
            "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
            "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    ],
    "bloom": [BLOOM],
    "viking": [BLOOM, DIGITS],
    "deepseek-llm": [
        split("[\r\n]"),
        split("\\s?[[\\p{Lu}\\p{Ll}\\p{Lt}]&&[\\p{Latin}\\p{Greek}\\p{Cyrillic}µ]]+"),
        split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
        split("\\s+$"),
        HAN,
        {"type": "Digits", "individual_digits": False},
    ],
    "deepseek-coder": [*(split("[\r\n]"), split("\\s?\\p{L}+"), split("\\s?\\p{P}+"), HAN, DIGITS)],
    "deepseek-v3": [
        split("\\p{N}{1,3}"),
        split("[一-龥\u3040-ゟ゠-ヿ]+"),
        split(
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
            "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
        ),
    ],
}
SCRIPTS = st.text(
    st.one_of(
        st.sampled_from(
            " \t\r\n 0123456789٣aZéßΩдЖ你好日本カな한국,.!?…。，、।۔،()|[]{}'\"-_/\\$<>=~^`×£"
        ),
        st.characters(codec="ascii"),
    ),
    max_size=40,
)


@pytest.mark.parametrize("pre", PUBLISHED)
@given(text=SCRIPTS)
def test_words_are_cut_as_the_makers_own_files_cut_them(pre: str, text: str) -> None:
    """Word for word what the `tokenizers` library makes of the published pre-tokenizers."""
    vocab = {character: id for id, character in enumerate(byte_characters())}
    document = byte_level_document(vocab, [], pre, [])
    ours = tokenizers.Tokenizer.from_str(json.dumps(document)).pre_tokenizer
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts = [*PUBLISHED[pre], byte_level | {"use_regex": False}]
    sequence = {"type": "Sequence", "pretokenizers": parts}
    theirs = tokenizers.Tokenizer.from_str(json.dumps({**document, "pre_tokenizer": sequence}))
    assert ours.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)


def test_words_of_the_new_cuts(load: Any) -> None:
    """By hand; and from a file, whose token `hel` no cut goes through."""
    l_id = byte_characters().index("l")
    for pre in PUBLISHED:
        assert load(keys(pre=pre)).encode("hell") == [257, l_id], pre
    cuts = {
        "tekken": ("helHel 12", ["hel", "Hel", "Ġ", "1", "2"]),
        "bloom": ("hel, l12", ["hel", ",", "Ġl12"]),
        "viking": ("hel, l12", ["hel", ",", "Ġl", "1", "2"]),
        "deepseek-llm": ("hel, l12\n", ["hel", ",", "Ġl", "12", "Ċ"]),
        "deepseek-coder": ("hel, l12\n", ["hel", ",", "Ġl", "1", "2", "Ċ"]),
        "deepseek-v3": ("hel, l1234.hel", ["hel", ",", "Ġl", "123", "4", ".hel"]),
    }
    for pre, (text, words) in cuts.items():
        vocab = {character: id for id, character in enumerate(byte_characters())}
        made = tokenizers.Tokenizer.from_str(json.dumps(byte_level_document(vocab, [], pre, [])))
        assert [word for word, _ in made.pre_tokenizer.pre_tokenize_str(text)] == words, pre


def test_no_beginning_of_text_token(load: Any) -> None:
    assert not load(pieces(bos_token_id=None)).add_bos
    for make in keys, pieces:
        with pytest.raises(CorruptFileError, match=r"made\.gguf: .* there is none|no bos_token_id"):
            load(make(bos_token_id=None, add_bos_token=True))


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        ("gpt-2", ["he", "’", "s", " 1234", "!", "  ", " x"]),
        ("llama-bpe", ["he", "’s", " ", "123", "4", "!", "  ", " x"]),
        ("qwen2", ["he", "’s", " ", "1", "2", "3", "4", "!", "  ", " x"]),
        ("smollm", ["he", "’", "s", " ", "1", "2", "3", "4", "!", "  ", " x"]),
        ("falcon", ["he", "’", "s", " ", "123", "4", "!", "  ", " x"]),
        ("default", ["he", "’", "s", " ", "123", "4", "!", "  ", " x"]),
        ("gpt-4o", ["he", "’s", " ", "123", "4", "!", "  ", " x"]),
    ],
)
def test_the_named_ways_to_cut_words(load: Any, pre: str, cut: list[str]) -> None:
    made = load(keys(pre=pre))
    document = json.loads(made.to_json())
    import tokenizers

    cutter = tokenizers.Tokenizer.from_str(json.dumps(document)).pre_tokenizer
    found = cutter.pre_tokenize_str("he’s 1234!   x")
    back = {c: byte for byte, c in enumerate(byte_characters())}
    assert [bytes(back[c] for c in word).decode() for word, _ in found] == cut


def test_a_missing_way_to_cut_is_a_warning_and_an_unknown_one_an_error(load: Any) -> None:
    with pytest.warns(UserWarning, match=r"does not say how .*tokenizer\.ggml\.pre.*'default'"):
        load(keys(pre=None))
    with pytest.raises(FlyweightError, match=r"pre = 'qwen-2' .* did you mean `qwen2`"):
        load(keys(pre="qwen-2"))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (keys(model=None), "it holds no vocabulary"),
        (keys(model=7), "model is 7: str is wanted"),
        (keys(tokens=None), "tokens is missing"),
        (keys(tokens=[1, 2]), "tokens is something else"),
        (keys(tokens=["a", "a"], token_type=None, merges=["a a"]), "'a' stands in it twice"),
        (keys(token_type=[1]), "261 tokens and 1 types"),
        (keys(merges=["h"]), "'h' is not two tokens"),
        (keys(merges=["h z"]), "tokens that are not in it"),
        (keys(bos_token_id=261), "bos_token_id = 261 in a vocabulary of 261"),
        (keys(add_bos_token=1), "add_bos_token is 1: bool is wanted"),
        (pieces(scores=None), "scores is missing"),
        (pieces(scores=[0.0]), "262 pieces, 1 scores"),
        (pieces(scores=[float("nan")] * 262), "scores nan"),
        (pieces(token_type=[2, 3, 3] + [6] * 255 + [1] * 4), "lacks some of the 256"),
        (pieces(unknown_token_id=999), "unknown_token_id = 999"),
    ],
)
def test_keys_that_make_no_vocabulary(load: Any, content: Any, error: str) -> None:
    with pytest.raises(FlyweightError, match=rf"made\.gguf: .*{error}"):
        load(content)


def test_headers_that_lie_are_refused_before_anything_is_allocated(load: Any) -> None:
    head = b"GGUF" + struct.pack("<I", 3)
    most = (1 << 64) - 1
    key = string("tokenizer.ggml.tokens")
    strings = struct.pack("<II", 9, 8)
    floats = struct.pack("<II", 9, 6)
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + struct.pack("<IQ", 4, 0)
    one = head + struct.pack("<QQ", 0, 1)
    twice = head + struct.pack("<QQ", 0, 2) + (string("k") + value(1)) * 2
    cases = [
        (b"", "too short"),
        (b"GGUF", "too short"),
        (b"GGML" + one[4:] + bytes(9), "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 0x3000000"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 0x1 "),
        (head + struct.pack("<QQ", 0, most), f"{most} keys are claimed"),
        (one + struct.pack("<Q", most) + bytes(9), f"{most} bytes are claimed"),
        (one + key + strings + struct.pack("<Q", 10**10), "10000000000 values are claimed"),
        (one + key + floats + struct.pack("<Q", 10**10), "10000000000 values are claimed"),
        (one + key + struct.pack("<I", 13), "type 13 is none"),
        (one + key + nested, "an array of type 9 at depth 4"),
        (one + key + struct.pack("<IB", 7, 2), "a bool is 2"),
        (one + key + struct.pack("<I", 8) + string(b"\xff"), "not UTF-8"),
        (one + key + strings + struct.pack("<Q", 1), "claimed"),
        (twice, "'k' stands in it twice"),
    ]
    for content, error in cases:
        tracemalloc.start()
        with pytest.raises(CorruptFileError, match=rf"made\.gguf .*{error}"):
            load(content)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "made.gguf"


@pytest.mark.parametrize("make", [keys, pieces])
@given(data=st.data())
def test_a_damaged_file_is_refused_with_one_message(
    made_once: Path, make: Any, data: st.DataObject
) -> None:
    damaged = bytearray(gguf(make()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    made_once.write_bytes(damaged)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = load_tokenizer(made_once)
    except FlyweightError as error:
        assert "made.gguf" in str(error)
    else:
        made.decode(made.encode("hell a\0é"))


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            st.booleans(),
            st.integers(0, (1 << 32) - 1),
            st.floats(width=32, allow_nan=False),
            st.text(),
            st.lists(st.text(), min_size=1),
            st.lists(st.booleans(), min_size=1),
            st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1),
        ),
    )
)
def test_metadata_comes_back_without_the_tensors(made_once: Path, content: dict[str, Any]) -> None:
    made_once.write_bytes(gguf(content, tensors=3) + b"\xff" * 99)
    assert read_metadata(made_once) == content
    some = {key: it for key, it in content.items() if key.startswith("a")}
    assert read_metadata(made_once, "a") == some
