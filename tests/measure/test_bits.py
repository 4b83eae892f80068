"""Bits per byte of models whose probabilities are known, and of compressors beside their tools."""

from __future__ import annotations

import math
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.measure.bits import Document, bits_per_byte, compressors, sample
from flyweight.spec.errors import FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.subword import SubwordTokenizer

SOURCE = Path(str(textwrap.__file__)).read_bytes()


class Uniform:
    """Every byte at 1/256, the first one too."""

    def logprobs(self, text: str, bos: bool | None = None) -> list[tuple[int, float]]:
        return [(byte, -math.log(256)) for byte in text.encode()]


class Known:
    """Bytes at fixed probabilities; ``tokenizer`` decides whether the first one is scored."""

    def __init__(self, tokenizer: object, share: dict[int, float]) -> None:
        self.tokenizer, self.share = tokenizer, share

    def logprobs(self, text: str, bos: bool | None = None) -> list[tuple[int, float]]:
        ids = list(text.encode())
        first = 0 if self.tokenizer.add_bos else 1  # type: ignore[attr-defined]
        return [(id, math.log(self.share[id])) for id in ids[first:]]


class WithoutBos(ByteTokenizer):
    add_bos = False


def test_a_uniform_model_needs_eight_bits_a_byte() -> None:
    documents: list[Document] = [("a", SOURCE), ("b", "é, 水".encode()), ("c", b"")]
    result = bits_per_byte(Uniform(), documents)
    assert result.bits_per_byte == pytest.approx(8.0)
    assert (result.bytes, result.documents, result.sampled) == (len(SOURCE) + 7, 3, False)
    assert bits_per_byte(Uniform(), documents[:1], True).sampled


def test_a_models_cost_is_its_entropy() -> None:
    # a: 1 bit, b: 2 bits, c and d: 3 bits each.
    share = dict(zip(b"abcd", (0.5, 0.25, 0.125, 0.125), strict=True))
    documents = [("x", b"aaaabbcd"), ("y", b"dd")]
    found = bits_per_byte(Known(ByteTokenizer(), share), documents).bits_per_byte
    assert found == pytest.approx((4 * 1 + 2 * 2 + 2 * 3 + 2 * 3) / 10)


def test_what_a_model_cannot_score_costs_it_eight_bits_a_byte() -> None:
    share = dict.fromkeys(b"abcd", 0.5)
    documents = [("x", b"abcd"), ("y", b"a")]
    found = bits_per_byte(Known(WithoutBos(), share), documents).bits_per_byte
    assert found == pytest.approx((8 + 3 * 1 + 8) / 5)


def test_a_first_token_of_many_bytes_costs_all_of_them() -> None:
    tokenizer = SubwordTokenizer.train("bpe", 300, [SOURCE.decode()])
    tokenizer.add_bos = False
    text = "    def wrap(self, text):"
    ids = tokenizer.encode(text)
    first = len(tokenizer.token_bytes(ids[0]))
    assert first > 1

    class Half:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def logprobs(self, text: str, bos: bool | None = None) -> list[tuple[int, float]]:
            return [(id, math.log(0.5)) for id in tokenizer.encode(text)[1:]]

    found = bits_per_byte(Half(), [("x", text.encode())]).bits_per_byte
    assert found == pytest.approx((8 * first + len(ids) - 1) / len(text))


def test_no_text_is_an_error_and_progress_is_told() -> None:
    with pytest.raises(FlyweightError, match="no text to score"):
        bits_per_byte(Uniform(), [("a", b"")])
    seen: list[tuple[int, int]] = []
    bits_per_byte(Uniform(), [("a", b"12"), ("b", b"345")], progress=lambda *p: seen.append(p))
    assert seen == [(2, 5), (5, 5)]


TOOLS = {"gzip -9": "gzip", "bzip2 -9": "bzip2", "xz -9e": "xz"}


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_compressors_are_the_command_lines(name: str) -> None:
    if shutil.which(TOOLS[name]) is None:
        pytest.skip(f"{TOOLS[name]} is not installed")
    run = subprocess.run([*name.split(), "-c"], input=SOURCE, capture_output=True, check=True)
    documents = [("a", SOURCE[:1000]), ("b", SOURCE[1000:])]
    row = next(row for row in compressors(documents) if row["name"] == name)
    # Containers differ by a few bytes of header; the tool's xz checks by CRC64, as lzma does.
    assert row["bytes"] == pytest.approx(len(run.stdout), abs=24)
    assert row["bits_per_byte"] == pytest.approx(8 * row["bytes"] / len(SOURCE))


DOCUMENTS = st.lists(
    st.tuples(st.text(max_size=3), st.binary(max_size=20)), min_size=1, max_size=12
)


@given(DOCUMENTS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_a_sample_does_not_depend_on_the_order(
    documents: list[Document], most: int, random: object
) -> None:
    shuffled = documents.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    taken, left_out = sample(documents, most)
    assert sample(shuffled, most) == (taken, left_out)
    assert left_out == (len(taken) < len(documents))
    assert taken, "at least one document, however large"
    assert len(taken) == 1 or sum(len(text) for _, text in taken) <= most
    assert all(document in documents for document in taken)


def test_a_sample_stays_the_one_that_it_is() -> None:
    """Figures of yesterday compare with those of tomorrow."""
    documents = [(f"module{i}.py", bytes(100)) for i in range(20)]
    taken, left_out = sample(documents, 350)
    assert left_out
    assert [name for name, _ in taken] == ["module4.py", "module3.py", "module12.py"]
