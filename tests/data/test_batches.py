"""A batch is a function of the step; its rows are the stream's; the union over workers is it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.data.batches import Batch, Batches
from flyweight.data.shards import Dataset
from flyweight.spec.errors import ConfigurationError, FlyweightError

EOT = 257
WriteDataset = Callable[..., Dataset]


def equal(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.tokens_BT, other.tokens_BT)
        and np.array_equal(one.targets_BT, other.targets_BT)
        and np.array_equal(one.documents_BT, other.documents_BT)
    )


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    context=st.integers(1, 16),
    rows=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
    shard_tokens=st.integers(1, 100),
)
def test_an_epoch_sees_every_window_once_and_targets_follow(
    write_dataset: WriteDataset,
    sizes: list[int],
    context: int,
    rows: int,
    seed: int,
    shard_tokens: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Every token of the stream says where it is, but for the eots.
        texts = ["".join(chr(97 + (i + n) % 26) for i in range(n)) for n in sizes]
        dataset = write_dataset(Path(folder) / "d", texts, shard_tokens=shard_tokens)
        stream = dataset.train.read(0, dataset.train.tokens)
        if len(stream) < context:
            with pytest.raises(
                FlyweightError, match=f"{len(stream)} tokens .* context = {context}"
            ):
                Batches(dataset, context, rows * context, seed)
            return
        batches = Batches(dataset, context, rows * context, seed)
        windows = len(stream) // context
        assert batches.windows == windows
        for epoch in (0, 1):
            seen = np.zeros(len(stream), dtype=int)
            for index in range(epoch * windows, (epoch + 1) * windows):
                start = int(batches._starts(np.array([index]))[0][0])
                places = (start + np.arange(context + 1)) % len(stream)
                seen[places[:-1]] += 1
                batch = batches.batch(index // rows, slice(index % rows, index % rows + 1))
                assert batch.tokens_BT[0].tolist() == stream[places[:-1]].tolist()
                assert batch.targets_BT[0].tolist() == stream[places[1:]].tolist()
                document, expected = 0, []
                for place, token in enumerate(batch.tokens_BT[0].tolist()):
                    document += token == EOT and place > 0
                    expected.append(document)
                assert batch.documents_BT[0].tolist() == expected
            assert seen.max() == 1
            assert seen.sum() == windows * context


@given(step=st.integers(0, 10**9), seed=st.integers(0, 1000), workers=st.sampled_from([1, 2, 3, 8]))
def test_workers_together_have_the_global_batch(
    ring: Dataset, step: int, seed: int, workers: int
) -> None:
    whole = Batches(ring, 16, 16 * 24, seed).batch(step)
    assert whole.tokens_BT.shape == whole.targets_BT.shape == whole.documents_BT.shape == (24, 16)
    assert (whole.tokens_BT.dtype, whole.documents_BT.dtype) == (np.int64, np.int32)
    # Each worker has a dataset of its own, opened anew, and asks for steps in any order.
    parts = []
    for rank in range(workers):
        mine = Batches(Dataset.open(ring.path), 16, 16 * 24, seed)
        mine.batch(step + rank + 1)
        parts.append(mine.batch(step, slice(rank, None, workers)))
    for name in ("tokens_BT", "targets_BT", "documents_BT"):
        together = np.empty_like(getattr(whole, name))
        for rank, part in enumerate(parts):
            together[rank::workers] = getattr(part, name)
        assert np.array_equal(together, getattr(whole, name))
    share = 24 // workers
    for rank in range(workers):
        rows = slice(rank * share, (rank + 1) * share)
        contiguous = Batches(ring, 16, 16 * 24, seed).batch(step, rows)
        assert np.array_equal(contiguous.tokens_BT, whole.tokens_BT[rows])


@given(step=st.integers(0, 1000), context=st.sampled_from([1, 2, 4, 8, 16]))
def test_a_shorter_context_has_the_same_tokens_in_the_same_order(
    ring: Dataset, step: int, context: int
) -> None:
    batches = Batches(ring, 16, 64, 5)
    whole, cut = batches.batch(step), batches.batch(step, context=context)
    assert cut.tokens_BT.shape == (64 // context, context)
    assert np.array_equal(cut.tokens_BT.ravel(), whole.tokens_BT.ravel())
    assert np.array_equal(cut.targets_BT.ravel(), whole.targets_BT.ravel())
    assert (cut.documents_BT[:, 0] == 0).all()
    changes = np.diff(cut.documents_BT, axis=1)
    assert np.array_equal(changes, (cut.tokens_BT[:, 1:] == EOT).astype(np.int32))
    some = batches.batch(step, slice(1, None, 2), context)
    assert np.array_equal(some.tokens_BT, cut.tokens_BT[1::2])


@pytest.fixture(scope="module")
def ring(write_dataset: WriteDataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    texts = [f"{n}: " + "text " * (n % 11) for n in range(60)]
    return write_dataset(tmp_path_factory.mktemp("ring") / "d", texts, shard_tokens=300)


def test_seeds_and_epochs_have_orders_of_their_own(ring: Dataset) -> None:
    one, other = Batches(ring, 16, 64, 0), Batches(ring, 16, 64, 1)
    assert not equal(one.batch(0), other.batch(0))
    epoch = one.windows
    first, second = (one._starts(np.arange(e * epoch, (e + 1) * epoch))[0] for e in (0, 1))
    assert not np.array_equal(first, second)
    # The cuts move as well, so that windows differ and not their order alone.
    assert set(first % ring.train.tokens) != set(second % ring.train.tokens)


def test_the_order_is_what_it_was(ring: Dataset) -> None:
    batches = Batches(ring, 16, 64, 42)
    assert batches.order == {"version": 1, "seed": 42, "context": 16, "batch_tokens": 64}
    assert batches._starts(np.arange(6))[0].tolist() == [1273, 1129, 886, 1481, 1289, 1545]


@given(step=st.integers(0, 500))
def test_the_documents_of_a_batch_are_those_in_its_rows(ring: Dataset, step: int) -> None:
    batches = Batches(ring, 16, 64, 3)
    rows = batches.documents_of(step)
    for tokens, spans in zip(batches.batch(step).tokens_BT.tolist(), rows, strict=True):
        expected = bytes(token for token in tokens if token != EOT)
        parts = []
        for span in spans:
            assert span.name == ring.train.entries[span.document].name
            data = ring.tokenizer.decode_bytes(ring.train.document(span.document).tolist())
            assert (span.start, span.end) == (span.start_byte, span.end_byte)
            parts.append(data[span.start_byte : span.end_byte])
        assert b"".join(parts) == expected
    assert batches.documents_of(step, slice(1, 3)) == rows[1:3]


def test_settings_that_do_not_fit_are_refused(ring: Dataset) -> None:
    with pytest.raises(ConfigurationError, match="batch_tokens = 100 is no multiple"):
        Batches(ring, 16, 100, 0)
    with pytest.raises(ConfigurationError, match="context 5 does not divide 16"):
        Batches(ring, 16, 64, 0).batch(0, context=5)
    with pytest.raises(
        FlyweightError, match=r"context = 65536; set train\.context to 1024 or less"
    ):
        Batches(ring, 65536, 65536, 0)
