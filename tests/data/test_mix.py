"""Sources in proportion: exact counts, epochs of their own, an order that can be inverted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.data.batches import Batches
from flyweight.data.mix import PERIOD, Interleaving, inline, weights_of
from flyweight.data.order import permute, unpermute
from flyweight.data.shards import Dataset, Entry
from flyweight.data.writer import Writer
from flyweight.spec.data import Mix
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.text.bytes import ByteTokenizer

EOT = 257
LETTERS = {"books": "b", "web": "w", "code": "c"}


def write(folder: Path, sizes: dict[str, list[int]], shard_tokens: int = 1000) -> Dataset:
    """A dataset of sources whose tokens are their own letter."""
    tokenizer = ByteTokenizer()
    with Writer(folder, tokenizer, shard_tokens) as writer:
        for source, lengths in sizes.items():
            for n, length in enumerate(lengths):
                ids = np.full(length, ord(LETTERS[source]), np.uint16)
                writer.add("train", Entry(f"{source}{n}", source, length), ids)
        return writer.finish("test")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    sizes = {"books": [300, 7, 400], "web": [60] * 30, "code": [90, 10]}
    return write(tmp_path_factory.mktemp("mix") / "d", sizes)


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 9))
def test_unpermute_is_the_inverse(n: int, seed: int, epoch: int) -> None:
    images = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(unpermute(images, n, seed, epoch), np.arange(n))
    assert np.array_equal(unpermute(images[: n // 2], n, seed, epoch), np.arange(n // 2))


@settings(max_examples=30)
@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=7).filter(lambda w: sum(w) > 0.01),
    stretch=st.tuples(st.integers(0, 3 * PERIOD), st.integers(1, 5000)),
)
def test_every_stretch_has_the_shares(weights: list[float], stretch: tuple[int, int]) -> None:
    mix = Interleaving(weights)
    assert mix.rows.sum() == PERIOD
    exact = np.array(weights) / sum(weights) * PERIOD
    assert np.abs(mix.rows - exact).max() <= len(weights)
    assert all((rows > 0) == (weight > 0) for rows, weight in zip(mix.rows, weights, strict=True))
    begin, length = stretch
    index = np.arange(begin, begin + length)
    source, number = mix.sources(index)
    found = np.bincount(source, minlength=len(weights))
    assert np.abs(found - mix.rows / PERIOD * length).max() < len(weights) + 1
    assert np.array_equal(mix.counts(begin + length) - mix.counts(begin), found)
    for which in np.unique(source).tolist():
        here = source == which
        # A source's windows come in order, none left out, and say where they were.
        first = int(mix.counts(begin)[which])
        assert number[here].tolist() == list(range(first, first + int(here.sum())))
        assert np.array_equal(mix.numbers(which, number[here]), index[here])


@settings(max_examples=20)
@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    context=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    weights=st.tuples(*[st.floats(0.1, 5)] * 3),
    count=st.integers(1, 60),
    shard_tokens=st.integers(1, 90),
)
def test_the_order_can_be_inverted_and_sources_have_epochs_of_their_own(
    sizes: list[list[int]],
    context: int,
    seed: int,
    weights: tuple[float, ...],
    count: int,
    shard_tokens: int,
) -> None:
    names = list(LETTERS)[: len(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = write(Path(folder) / "d", dict(zip(names, sizes, strict=True)), shard_tokens)
        mix = dict(zip(names, weights, strict=False))
        if min(tokens for _, tokens in dataset.train.sources) < context:
            with pytest.raises(FlyweightError, match="tokens to train on"):
                Batches(dataset, context, context, seed, mix=mix)
            return
        after = [3] * len(names)
        for batches in (
            Batches(dataset, context, context, seed),
            Batches(dataset, context, context, seed, mix=mix),
            Batches(dataset, context, context, seed, mix=mix, after=after),
        ):
            stream = dataset.train.read(0, dataset.train.tokens)
            # The slow way: the places of every window's tokens, one at a time.
            held: list[set[int]] = []
            for number in range(count):
                starts, source = batches._starts(np.array([number]))
                ring = batches._rings[int(source[0])]
                inside = (int(starts[0]) - ring.begin + np.arange(context + 1)) % ring.tokens
                places = ring.begin + inside
                batch = batches.take(number, 1)
                assert batch.tokens_BT[0].tolist() == stream[places[:-1]].tolist()
                assert batch.targets_BT[0].tolist() == stream[places[1:]].tolist()
                letters = set(batch.tokens_BT[0].tolist()) - {EOT}
                assert len(letters) <= 1 or len(batches._rings) == 1
                held.append(set(places[:-1].tolist()))
            begins = np.arange(0, dataset.train.tokens, 3)
            ends = np.minimum(begins + 5, dataset.train.tokens)
            which, number = batches.places_of(begins, ends, count)
            expected = [
                (hit, window)
                for hit, (begin, end) in enumerate(zip(begins, ends, strict=True))
                for window in range(count)
                if held[window] & set(range(begin, end))
            ]
            assert list(zip(which.tolist(), number.tolist(), strict=True)) == expected


def test_a_source_goes_through_all_its_windows_before_it_begins_again(three: Dataset) -> None:
    batches = Batches(three, 10, 40, 7, mix={"books": 1, "web": 3, "code": 0})
    counts = batches.counts(400)
    assert counts == [100, 300, 0]
    starts, source = batches._starts(np.arange(400))
    windows = [ring.windows for ring in batches._rings]
    for which in (0, 1):
        mine = starts[source == which]
        for epoch in range(len(mine) // windows[which]):
            once = mine[epoch * windows[which] : (epoch + 1) * windows[which]]
            assert len(set(once.tolist())) == len(once)
    often = batches.epochs(400)
    assert often == {"books": 100 / windows[0], "web": 300 / windows[1], "code": 0.0}
    # What another mix took before is not taken again: the decay goes on where the main mix ended.
    later = Batches(three, 10, 40, 7, mix={"books": 1, "web": 1, "code": 2}, after=counts)
    after, which = later._starts(np.arange(8))
    whole = batches._rings[0].starts(np.arange(100, 102))
    assert after[which == 0].tolist() == whole.tolist()
    assert later.order["after"] == {"books": 100, "web": 300, "code": 0}
    assert later.order["version"] == 2


def test_a_new_mix_of_the_same_dataset_keeps_each_sources_own_order(three: Dataset) -> None:
    one = Batches(three, 10, 40, 7, mix={"books": 1, "web": 3, "code": 1})
    other = Batches(three, 10, 40, 7, mix={"books": 5, "web": 1, "code": 0})
    for which in (0, 1):
        mine, theirs = (
            batches._starts(np.arange(100))[0][batches._starts(np.arange(100))[1] == which]
            for batches in (one, other)
        )
        most = min(len(mine), len(theirs))
        assert mine[:most].tolist() == theirs[:most].tolist()


def test_weights_temperature_epochs_and_files(tmp_path: Path) -> None:
    sizes = {"a": 100, "b": 10_000}
    assert weights_of(Mix(weights={"a": 1, "b": 0}), sizes) == {"a": 1, "b": 0}
    assert weights_of(Mix(temperature=2), sizes) == {"a": 10, "b": 100}
    assert weights_of(Mix(epochs={"a": 3}), sizes) == {"a": 300, "b": 10_000}
    law = tmp_path / "law.json"
    law.write_text('{"weights": {"a": 0.25, "b": 0.75}, "loss": 1.5}')
    assert weights_of(Mix(file=str(law)), sizes) == {"a": 0.25, "b": 0.75}
    toml = tmp_path / "law.toml"
    toml.write_text("[weights]\na = 1\nb = 3\n")
    decay = Mix(weights={"a": 1, "b": 1}, decay=Mix(file=str(toml)))
    assert inline(decay).decay == Mix(weights={"a": 1, "b": 3})
    for wrong, error in (
        (Mix(weights={"a": 1, "bb": 1}), "no source `bb`; did you mean `b`"),
        (Mix(weights={"a": 1}), "weights say nothing of `b`; 0 leaves a source out"),
        (Mix(weights={"a": 0, "b": 0}), "all sources are 0"),
        (Mix(file=str(tmp_path / "none.toml")), r"none\.toml: No such file"),
    ):
        with pytest.raises(ConfigurationError, match=error):
            weights_of(wrong, sizes)
    with pytest.raises(FlyweightError, match="is no mix"):
        law.write_text("{}")
        weights_of(Mix(file=str(law)), sizes)
