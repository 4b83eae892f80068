"""The byte tokenizer against the definition of UTF-8 and against the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec.errors import FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.load import load_tokenizer

BYTES = ByteTokenizer()
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_ids_are_the_bytes_and_come_back(text: str) -> None:
    ids = BYTES.encode(text)
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text
    assert BYTES.encode_documents([text])[0].tolist() == ids
    assert b"".join(BYTES.token_bytes(id) for id in ids) == text.encode()


@given(st.lists(st.integers(0, 257)))
def test_any_ids_decode(ids: list[int]) -> None:
    expected = bytes(id for id in ids if id < 256)
    assert BYTES.decode_bytes(ids) == expected
    assert BYTES.decode(ids) == expected.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    file = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    BYTES.save(file)
    return tokenizers.Tokenizer.from_file(str(file))


@given(text=TEXT)
def test_the_library_reads_the_file_to_the_same_ids(
    library: tokenizers.Tokenizer, text: str
) -> None:
    library.encode_special_tokens = True
    assert library.encode(text, add_special_tokens=False).ids == BYTES.encode(text)
    assert library.encode(text).ids == BYTES.encode(text, bos=BYTES.add_bos)
    assert library.decode(BYTES.encode(text, bos=True)) == text


def test_the_library_agrees_on_specials(library: tokenizers.Tokenizer) -> None:
    assert library.get_vocab_size() == BYTES.vocab_size
    assert library.token_to_id("<eot>") == BYTES.eot_id
    assert library.token_to_id("<pad>") == BYTES.pad_id
    library.encode_special_tokens = False
    text = "a<eot>é<pad><pad>b<eot"
    expected = [97, 257, *"é".encode(), 256, 256, *b"b<eot"]
    assert library.encode(text, add_special_tokens=False).ids == expected
    assert BYTES.encode(text, specials=True) == expected
    assert BYTES.encode(text) == list(text.encode())


def test_loading_gives_the_byte_tokenizer_whatever_the_layout(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    document = json.loads(BYTES.to_json())
    file.write_text(json.dumps(document, indent=2, sort_keys=True))
    loaded = load_tokenizer(file)
    assert isinstance(loaded, ByteTokenizer)
    assert loaded.digest == BYTES.digest
    document["model"]["vocab"]["a"], document["model"]["vocab"]["b"] = 98, 97
    file.write_text(json.dumps(document))
    swapped = load_tokenizer(file)
    assert not isinstance(swapped, ByteTokenizer)
    assert swapped.encode("ab") == [98, 97]


def test_bos_only_when_asked() -> None:
    assert BYTES.encode("a") == BYTES.encode("a", bos=False) == [97]
    assert BYTES.encode("a", bos=True) == [257, 97]


@pytest.mark.parametrize("specials", [False, True])
def test_a_lone_surrogate_is_one_clear_error(specials: bool) -> None:
    with pytest.raises(FlyweightError, match=r"U\+D83D\) at character 6"):
        BYTES.encode("<eot>é\ud83d", specials=specials)
    with pytest.raises(FlyweightError, match=r"document 1 .*U\+DC00\) at character 0"):
        BYTES.encode_documents(["fine", "\udc00"])


@pytest.mark.parametrize("id", [-1, 258])
def test_ids_outside_of_the_vocabulary_are_refused(id: int) -> None:
    with pytest.raises(FlyweightError, match=str(id)):
        BYTES.decode([97, id])
    with pytest.raises(FlyweightError, match=str(id)):
        BYTES.token_bytes(id)


def test_decode_takes_numpy_ids() -> None:
    assert BYTES.decode(np.array([104, 105], dtype=np.uint16)) == "hi"
