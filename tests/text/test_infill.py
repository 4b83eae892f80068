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
from flyweight.text.infill import END_OF_MASK, infill_prompt, infilled
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import byte_characters

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


def test_a_tokenizer_without_masks() -> None:
    with pytest.raises(FlyweightError, match="no token <mask_1>; CodeGen2"):
        infill_prompt(ByteTokenizer(), "a", "b")
