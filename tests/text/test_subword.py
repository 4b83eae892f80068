"""Trained tokenizers come back exactly and train alike; published ones load as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.load import load_tokenizer
from flyweight.text.subword import SubwordTokenizer, of_parts
from flyweight.text.tokenizer import StreamDecoder, Tokenizer, byte_lengths

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(text=TEXT)
def test_any_text_comes_back_exactly(trained: SubwordTokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.decode_bytes(ids) == text.encode()
    assert trained.encode_documents([text])[0].tolist() == ids
    assert not {trained.eot_id, trained.pad_id} & set(ids)


def test_every_byte_is_a_token_and_specials_are_last(trained: SubwordTokenizer) -> None:
    assert trained.vocab_size == 600
    assert (trained.pad_id, trained.eot_id) == (598, 599)
    spelled = [trained.token_bytes(id) for id in range(trained.vocab_size)]
    assert {bytes([byte]) for byte in range(256)} <= set(spelled)
    assert spelled[598:] == [b"", b""]
    assert byte_lengths(trained).tolist() == [len(token) for token in spelled]


def test_real_text_and_the_library_agree(
    trained: SubwordTokenizer, texts: list[str], tmp_path: Path
) -> None:
    trained.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == trained.digest
    assert loaded.to_json() == trained.to_json()
    encoded = loaded.encode_documents(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert library.encode(text, add_special_tokens=False).ids == ids.tolist()
        assert library.decode(ids.tolist()) == loaded.decode(ids) == text
        assert library.encode(text).ids == loaded.encode(text, bos=True)
        # It has learnt something of the language: clearly fewer tokens than bytes.
        assert len(ids) < 0.55 * len(text.encode())


def test_the_same_text_trains_the_same_bytes_in_another_process(
    trained: SubwordTokenizer, texts: list[str], tmp_path: Path
) -> None:
    program = (
        "import json, sys\n"
        "from flyweight.text.subword import SubwordTokenizer\n"
        "texts = json.load(sys.stdin)\n"
        f"SubwordTokenizer.train({trained.kind!r}, 600, texts).save(sys.argv[1])\n"
    )
    file = tmp_path / "tokenizer.json"
    subprocess.run(
        [sys.executable, "-c", program, str(file)],
        input=json.dumps(texts).encode(),
        check=True,
        env={"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(_root())},
    )
    assert file.read_bytes().decode() == trained.to_json()


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def test_tokens_cross_neither_numbers_nor_words(bpe: SubwordTokenizer) -> None:
    pieces = [bpe.token_bytes(id) for id in bpe.encode("return 1234567 + self.value\n\n        x")]
    assert b"".join(pieces) == b"return 1234567 + self.value\n\n        x"
    assert all(len(piece) <= 3 for piece in pieces if piece.isdigit())
    assert b" self" in pieces or b"self" in pieces


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("text", ["a", "to be or not to be, that is the question\n" * 3])
def test_a_small_text_gives_fewer_tokens_and_a_warning(kind: str, text: str) -> None:
    with pytest.warns(UserWarning, match="size = 5000 was asked for"):
        tokenizer = SubwordTokenizer.train(kind, 5000, [text])  # type: ignore[arg-type]
    assert 258 <= tokenizer.vocab_size < 5000
    assert tokenizer.decode(tokenizer.encode(text + "ψ\0")) == text + "ψ\0"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("size", [258, 259, 270, 310])
def test_sizes_near_the_alphabet_are_exact(kind: str, size: int, texts: list[str]) -> None:
    tokenizer = SubwordTokenizer.train(kind, size, texts[:1])  # type: ignore[arg-type]
    assert tokenizer.vocab_size == size
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("longest", [2, 4, 6])
def test_the_length_of_tokens_can_be_bounded(kind: str, longest: int, texts: list[str]) -> None:
    tokenizer = SubwordTokenizer.train(kind, 500, texts[:2], max_bytes=longest)  # type: ignore[arg-type]
    assert byte_lengths(tokenizer).max() == longest
    assert tokenizer.decode(tokenizer.encode(texts[2])) == texts[2]


def test_a_size_below_the_alphabet_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="size = 257 is too small"):
        SubwordTokenizer.train("bpe", 257, ["text"])


def test_specials_in_a_text_are_text_unless_asked(trained: SubwordTokenizer) -> None:
    text = "a<eot>b<pad>"
    assert trained.eot_id not in trained.encode(text)
    assert trained.decode(trained.encode(text)) == text
    ids = trained.encode(text, specials=True)
    assert ids.count(trained.eot_id) == 1
    assert ids[-1] == trained.pad_id
    assert trained.decode(ids) == "ab"


def test_a_lone_surrogate_is_one_clear_error(trained: SubwordTokenizer) -> None:
    with pytest.raises(FlyweightError, match=r"U\+DFFF\) at character 2"):
        trained.encode("ab\udfff")
    with pytest.raises(FlyweightError, match=r"document 1 .* at character 1"):
        trained.encode_documents(["fine", "x\ud800"])
    with pytest.raises(FlyweightError, match=r"document 0 .* at character 0"):
        SubwordTokenizer.train("bpe", 300, ["\ud800"])


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)


@given(text=TEXT, junk=st.lists(st.integers(0, 257), max_size=5), data=st.data())
def test_streaming_gives_whole_characters_and_all_of_them(
    any_tokenizer: Tokenizer, text: str, junk: list[int], data: st.DataObject
) -> None:
    ids = any_tokenizer.encode(text)
    at = data.draw(st.integers(0, len(ids)))
    ids[at:at] = junk
    decoder = StreamDecoder(any_tokenizer)
    pieces = [decoder.push(id) for id in ids]
    assert "".join(pieces) + decoder.flush() == any_tokenizer.decode(ids)
    if not junk:
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
        assert "".join(pieces) == text
    # After a flush the decoder is as new.
    assert decoder.push(any_tokenizer.encode("é")) == "é"


def test_streaming_holds_back_half_a_character() -> None:
    decoder = StreamDecoder(ByteTokenizer())
    assert [decoder.push(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert decoder.push(0xE2) == ""
    assert decoder.push(ord("a")) == "\ufffda"
    assert decoder.push(0xC3) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


# -- tokenizers that others made


def _llama_like() -> tokenizers.Tokenizer:
    """SentencePiece BPE as Llama 2 has it: byte fallback, a dummy space first, <s> in front."""
    words = ["▁", "a", "b", "c", "▁a", "bc", "▁abc"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {word: 259 + i for i, word in enumerate(words)}
    merges = [("▁", "a"), ("b", "c"), ("▁a", "bc")]
    made = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return made


@given(text=st.text("abc é€ \n", min_size=1))
def test_a_sentencepiece_like_tokenizer_decodes_as_the_library_does(text: str) -> None:
    library = _llama_like()
    ours = SubwordTokenizer(json.loads(library.to_str()))
    assert (ours.bos_id, ours.eot_id, ours.add_bos) == (1, 2, True)
    ids = ours.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, bos=True) == library.encode(text).ids
    assert ours.decode([1, *ids]) == library.decode(ids) == text
    decoder = StreamDecoder(ours)
    assert decoder.push([1, *ids]) + decoder.flush() == text


def _gpt2_like() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.add_tokens([AddedToken("  four  ", normalized=False)])
    made.enable_truncation(3)
    return made


def test_a_gpt2_like_tokenizer_adds_nothing_and_is_never_truncated() -> None:
    ours = SubwordTokenizer(json.loads(_gpt2_like().to_str()))
    assert not ours.add_bos
    assert ours.eot_id == ours.bos_id == 256
    text = "a  four  é" + "x" * 50
    ids = ours.encode(text)
    assert 257 in ids
    assert ours.decode(ids) == text
    assert ours.token_bytes(257) == b"  four  "


def test_the_configuration_beside_a_tokenizer_decides_on_bos(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(_llama_like().to_str())
    config = {"add_bos_token": False, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).add_bos is False
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert load_tokenizer(tmp_path).add_bos is True


def test_a_run_folder_holds_its_tokenizer_in_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    ByteTokenizer().save(tmp_path / "model" / "tokenizer.json")
    assert load_tokenizer(tmp_path).kind == "bytes"


def test_what_is_no_tokenizer_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(FlyweightError, match=r"no tokenizer in .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FlyweightError, match=r"no such tokenizer: .*nowhere\.json"):
        load_tokenizer(tmp_path / "nowhere.json")
    file = tmp_path / "tokenizer.json"
    for content, error in [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "it has no `model`"),
        ('{"model": {"type": "Nonsense"}}', r"tokenizer\.json: not a tokenizer\.json"),
    ]:
        file.write_text(content)
        with pytest.raises(CorruptFileError, match=error):
            load_tokenizer(file)
    word_piece = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    word_piece.decoder = decoders.WordPiece()
    file.write_text(word_piece.to_str())
    with pytest.raises(FlyweightError, match="decoder \\(WordPiece\\) is not supported"):
        load_tokenizer(file)


def handed_over(document: dict[str, Any]) -> dict[str, Any]:
    """What the library says of a tokenizer whose vocabulary was handed over, beside one that it
    read from text: the same, or the first of them is not made."""
    read = json.loads(tokenizers.Tokenizer.from_str(json.dumps(document)).to_str())
    made = of_parts(document)
    assert made is None or json.loads(made.to_str()) == read
    return {} if made is None else read


def test_a_vocabulary_that_is_handed_over_is_the_one_that_is_read(bpe: SubwordTokenizer) -> None:
    document = json.loads(bpe.to_json())
    assert handed_over(document)
    flags = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": True}
    inside = {"id": 3, "content": bpe.decode([3]), **flags, "special": False}
    behind = {"id": 600, "content": "<more>", **flags, "special": True}
    document["added_tokens"] = [inside, *document["added_tokens"], behind]
    assert len(handed_over(document)["added_tokens"]) == 4
    document["model"] |= {"merges": [], "unk_token": "a", "fuse_unk": True, "byte_fallback": True}
    assert handed_over(document)["model"]["unk_token"] == "a"


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": [{"id": 900, "content": "<far>"}]},
        {"model": {"merges": ["t h"]}},
    ],
)
def test_what_cannot_be_handed_over_is_read_as_text(
    bpe: SubwordTokenizer, change: dict[str, Any]
) -> None:
    document = json.loads(bpe.to_json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token in change.get("added_tokens", []):
        document["added_tokens"].append({**token, **flags, "special": True})
    document["model"] |= change.get("model", {})
    assert not handed_over(document)
    assert SubwordTokenizer(document).decode([5, 6]) == bpe.decode([5, 6])


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("vocab", {"a": -1}),
        ("vocab", {"a": 1 << 40}),
        ("vocab", {"a": "b"}),
        ("merges", [["no", "such"]]),
        ("merges", [["a"]]),
        ("merges", [[1, 2]]),
        ("dropout", "often"),
    ],
)
def test_a_vocabulary_that_is_none_is_one_clear_error(
    bpe: SubwordTokenizer, key: str, wrong: Any
) -> None:
    document = json.loads(bpe.to_json())
    document["model"][key] = wrong
    with pytest.raises(CorruptFileError, match=r"not a tokenizer\.json that can be read"):
        SubwordTokenizer(document)
