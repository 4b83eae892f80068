"""CodeGen2's infilling: the ids of the model card's text, and what an answer is cut to."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from flyweight.spec.errors import FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.infill import END_OF_MASK, infill_prompt, infilled, with_sentinels
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import Tokenizer, byte_characters

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def codegen2() -> tokenizers.Tokenizer:
    """Bytes, and CodeGen2's added tokens as its tokenizer.json has them."""
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    spaces = [" " * n for n in range(31, 1, -1)]
    names = [*spaces, "<sep>", "<eom>", "<mask_2>", "<mask_1>"]
    made.add_tokens([AddedToken(name, normalized=True) for name in names])
    return made


THEIRS = codegen2()
OURS = SubwordTokenizer(json.loads(THEIRS.to_str()))


@given(prefix=TEXT, suffix=TEXT)
def test_the_ids_are_those_of_the_model_cards_text(prefix: str, suffix: str) -> None:
    assume("<|endoftext|>" not in prefix + suffix)  # which is ordinary text to us
    text = prefix + "<mask_1>" + suffix + "<|endoftext|>" + "<sep>" + "<mask_1>"
    assert infill_prompt(OURS, prefix, suffix) == THEIRS.encode(text).ids


def test_an_answer_ends_where_the_mask_does() -> None:
    prompt = infill_prompt(OURS, "def hello_world():\n    ", "    return name")
    assert prompt[-3:] == [THEIRS.token_to_id(t) for t in ("<|endoftext|>", "<sep>", "<mask_1>")]
    answer = OURS.decode(OURS.encode("name = 'World'\n<eom>def f"))
    assert END_OF_MASK in answer
    assert infilled(answer) == "name = 'World'\n"
    assert infilled("cut short") == "cut short"


BPE = SubwordTokenizer.train("bpe", 300, ["a tale of a king and a tale of a queen\n" * 9])


@pytest.mark.parametrize("plain", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])
@given(text=TEXT, masks=st.integers(1, 40))
def test_sentinels_stand_behind_a_tokenizer_s_own_tokens(
    plain: Tokenizer, text: str, masks: int
) -> None:
    made = with_sentinels(plain, masks)
    size = plain.vocab_size + masks + 2
    assert made.vocab_size == size
    named = {"<eom>": size - masks - 2, "<sep>": size - masks - 1}
    named |= {f"<mask_{n}>": size - n for n in range(1, masks + 1)}
    assert {name: made.encode(name) for name in named} == {n: [id] for n, id in named.items()}
    assert all(made.decode([id]) == name for name, id in named.items())
    for key in ("bos_id", "eot_id", "pad_id", "add_bos"):
        assert getattr(made, key) == getattr(plain, key), key
    assume(not any(name in text for name in named))
    assert made.encode(text) == plain.encode(text)
    assert made.encode(f"{text}<eot>", specials=True) == plain.encode(f"{text}<eot>", specials=True)
    assert made.decode(made.encode(text)) == text
    assert infill_prompt(made, text, "b")[-3:] == [made.eot_id, size - masks - 1, size - 1]
    assert with_sentinels(made, masks) is made


def test_a_tokenizer_without_masks() -> None:
    with pytest.raises(FlyweightError, match="no token <mask_1>; CodeGen2"):
        infill_prompt(ByteTokenizer(), "a", "b")
