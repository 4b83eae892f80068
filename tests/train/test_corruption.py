"""Spans to fill in and prefixes: rows changed exactly as said, by seed and place alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from flyweight.data.batches import Batch  # noqa: E402
from flyweight.spec.errors import ConfigurationError  # noqa: E402
from flyweight.spec.run import Objective  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402
from flyweight.train.configure import check_tables  # noqa: E402
from flyweight.train.corruption import Sentinels, changed  # noqa: E402
from flyweight.train.objective import Part, training_loss  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

Fresh, Sessions = Callable[..., TrainState], Callable[..., Session]
EOT, MOST = 257, 4
SENTINELS = Sentinels.of(ByteTokenizer(), 258 + MOST + 2, MOST)
MASKS, SEP, EOM = (263, 262, 261, 260), 259, 258


def batch_of(stream_BT: np.ndarray) -> Batch:
    """As data makes it: a document begins with its <eot>."""
    tokens_BT = stream_BT[:, :-1].copy()
    documents_BT = np.cumsum(tokens_BT == EOT, axis=1, dtype=np.int32)
    documents_BT -= documents_BT[:, :1].copy()
    return Batch(tokens_BT, stream_BT[:, 1:].copy(), documents_BT)


def stream_of(batch: Batch) -> np.ndarray:
    return np.concatenate((batch.tokens_BT, batch.targets_BT[:, -1:]), axis=1)


@st.composite
def streams(draw: st.DrawFn) -> np.ndarray:
    rows, length = draw(st.integers(1, 4)), draw(st.integers(2, 90))
    stream = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (rows, length + 1))
    for row in stream:
        row[draw(st.lists(st.integers(0, length), max_size=4))] = EOT
    return stream


def restored(row: list[int]) -> tuple[list[int], int]:
    """The text of a changed row with its spans put back, and how many there were; slow and plain.

    What was cut at the row's end is missing at the end of what comes back.
    """
    if SEP not in row:
        return row, 0
    at = row.index(SEP)
    assert row[at - 1] == EOT
    before, told = row[: at - 1], row[at + 1 :]
    spans: list[list[int]] = []
    while told and told[0] == MASKS[len(spans)] if len(spans) < MOST else False:
        end = told.index(EOM)
        spans.append(told[1:end])
        told = told[end + 1 :]
    text: list[int] = []
    for token in before:
        text += spans[MASKS.index(token)] if token in MASKS else [token]
    assert [token for token in before if token in MASKS] == list(MASKS[: len(spans)])
    return text + told, len(spans)


@given(streams(), st.floats(0.01, 0.5), st.floats(1, 6), st.integers(0, 2**62))
def test_spans_come_back(stream: np.ndarray, density: float, length: float, seed: int) -> None:
    spans = {"share": 1.0, "density": density, "length": length, "most": MOST}
    objective = Objective.parse({"spans": spans})
    batch = batch_of(stream)
    found = changed(batch, objective, SENTINELS, seed, 7)
    assert np.array_equal(stream_of(batch), stream), "the batch itself is left alone"
    again = changed(batch_of(stream), objective, SENTINELS, seed, 7)
    assert np.array_equal(stream_of(again), stream_of(found))
    assert found.tokens_BT.shape == batch.tokens_BT.shape
    for before, after, documents in zip(
        stream.tolist(), stream_of(found).tolist(), found.documents_BT.tolist(), strict=True
    ):
        text, count = restored(after)
        longest = max(len(part) for part in "".join(
            "|" if token == EOT else "x" for token in before
        ).split("|"))  # fmt: skip
        if not count:
            assert after == before
            assert longest < 8 + 2 + 3 * (MOST + 1) or density * longest < 1
            continue
        # The text without what had to give way: the tail of the long document, or of the row.
        sep = after.index(SEP)
        first = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
        assert EOT not in after[first : sep - 1], "spans are of one document"
        start = max((i + 1 for i in range(first) if before[i] == EOT), default=0)
        size = len(restored(after[: sep - 1] + after[sep - 1 :])[0])
        assert size < len(before)
        kept = next(n for n in range(len(text), -1, -1) if text[:n] == before[:n])
        assert kept >= start + 8
        stop = next((i for i in range(start, len(before)) if before[i] == EOT), len(before))
        rest = text[kept:]
        assert rest == before[stop : stop + len(rest)], "what follows is what followed"
        # All of it, the answers too, is one document for attention.
        last = max(i for i, token in enumerate(after) if token == EOM)
        inside = documents[start : min(last + 1, len(documents))]
        assert len(set(inside)) == 1
        assert documents[0] == 0
        assert all(b - a in (0, 1) for a, b in pairwise(documents))


def test_the_share_the_density_and_the_lengths() -> None:
    rng = np.random.default_rng(0)
    stream = rng.integers(0, 256, (2000, 201))
    spans = {"share": 0.5, "density": 0.1, "length": 5.0, "most": MOST}
    found = stream_of(changed(batch_of(stream), Objective.parse({"spans": spans}), SENTINELS, 1, 0))
    corrupted = found[(found == SEP).any(axis=1)]
    assert 0.45 < len(corrupted) / len(stream) < 0.55
    counts = (corrupted == EOM).sum(axis=1)
    assert counts.max() == 4 == counts.min(), "200 * 0.1 / 5"
    hidden = [len(row) - 1 - row.index(SEP) - 8 for row in corrupted.tolist()]
    # A tenth of the text, told behind it between two times four sentinels.
    assert {round(n / (200 - 14), 1) for n in hidden} == {0.1}
    places = np.concatenate([np.flatnonzero(np.isin(row, MASKS))[:4] for row in corrupted])
    assert 60 < places.mean() < 120 and places.min() < 5, "all over the text"


def test_codegens_own_sentinels_are_taken() -> None:
    """CodeGen2's ids, from a tokenizer that has them: 51200 - N, 50299 and 50300."""

    class Named(ByteTokenizer):
        own = {"<sep>": 50299, "<eom>": 50300} | {f"<mask_{n}>": 51200 - n for n in range(1, 101)}

        def encode(self, text: str, specials: bool = False, **more: Any) -> list[int]:
            return [self.own[text]] if specials and text in self.own else super().encode(text)

    found = Sentinels.of(Named(), 51200, 3)
    assert found == Sentinels((51199, 51198, 51197), 50299, 50300, EOT)


@given(streams(), st.floats(0, 1), st.integers(0, 2**62))
def test_a_prefix_is_not_scored(stream: np.ndarray, share: float, seed: int) -> None:
    batch = batch_of(stream)
    found = changed(batch, Objective(prefix=share), None, seed, 3)
    if not share:
        assert found is batch
        return
    assert found.prefix_B is not None
    for row, prefix in enumerate(found.prefix_B.tolist()):
        assert 0 <= prefix < max(2, stream.shape[1] - 1)
        inside = max(0, prefix - 1)
        assert (found.targets_BT[row, :inside] == -1).all()
        assert np.array_equal(found.targets_BT[row, inside:], batch.targets_BT[row, inside:])
    assert np.array_equal(found.tokens_BT, batch.tokens_BT)


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": {"kind": "alibi"}}, {"attention": {"heads": 2, "window": 6}}],
)
def test_a_prefix_sees_both_ways_and_the_rest_does_not(
    fresh: Fresh, changes: dict[str, Any]
) -> None:
    model = fresh("tokens", init={"kind": "normal", "std": 0.3}, **changes).model
    tokens = torch.arange(40, 60)[None].repeat(2, 1)
    prefix = torch.tensor([8, 0])
    documents = torch.zeros(2, 20, dtype=torch.int32)
    documents[:, 5:] = 1

    def moved(at: int, of: torch.Tensor | None = None) -> torch.Tensor:
        """Which positions' hidden states change with the token at ``at``. (2, T)"""
        other = tokens.clone()
        other[:, at] = 99
        with torch.no_grad():
            one, two = (model.hidden(t, of, prefix_B=prefix) for t in (tokens, other))
        return (one - two).abs().amax(dim=-1) > 1e-6

    window = model.spec.attention.window
    reach = 20 if window is None else 2 * (window - 1)
    assert moved(7)[0, :7].tolist() == [7 - t <= reach for t in range(7)], "the prefix sees it"
    assert not moved(7)[1, :7].any(), "a row without a prefix does not"
    for at in (8, 15):
        assert not moved(at)[:, :at].any(), "nobody sees a target that comes later"
    assert not moved(7, documents)[0, :5].any(), "nor another document's prefix"
    assert moved(7, documents)[0, 6]


def test_a_changed_batch_in_parts_is_the_whole(fresh: Fresh, session: Sessions) -> None:
    """Ignored targets: the mean is over those that are scored, however the rows are cut."""
    from flyweight.train.loop import backward

    state = fresh("tokens", init={"kind": "normal", "std": 0.2})
    losses, gradients = [], []
    for micro in (256, 32):
        used = session(micro_batch_tokens=micro, objective={"prefix": 0.7})
        batch = used.batch(used.plan.at(2))
        assert 0 < (batch.targets_BT < 0).sum() < batch.targets_BT.size
        losses.append(backward(state, used, batch))
        gradients.append(state.model.blocks[0].attention.qkv.weight.grad.clone())
        state.optimizer.forget()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
    part = Part.of(batch, slice(None), "cpu")
    with torch.no_grad():
        hidden = state.model.hidden(part.tokens_BT, part.documents_BT, prefix_B=part.prefix_B)
        logits = state.model.logits(hidden).double().flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(logits, part.targets_BT.flatten(), ignore_index=-1)
    assert losses[0] == pytest.approx(float(wanted), rel=1e-6)
    loss, plain = training_loss(state.model, part, Objective(), torch.float32)
    assert torch.equal(loss, plain)


MODEL = {"width": 32, "depth": 1, "attention": {"heads": 2}, "feedforward": {"hidden": 32}}


@pytest.mark.parametrize(
    ("model", "objective", "said"),
    [
        ({"use": "quickstart"}, {"prefix": 0.5}, r"objective\.prefix does not apply .*'patches'"),
        ({"use": "quickstart"}, {"spans": {}}, r"objective\.spans does not apply .*'patches'"),
        ({"use": "stlm-bytes"}, {"z_loss": 0.1}, r"objective\.z_loss does not apply .*'slots'"),
        ({"use": "quickstart", "ahead": 2}, {}, "ahead applies to decoders with"),
        (MODEL, {"spans": {"density": 0.9}}, r"0\.5 or less is wanted"),
        (MODEL, {"label_smoothing": 1.0}, "less than 1"),
    ],
)
def test_what_cannot_be_is_refused(
    model: dict[str, Any], objective: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_tables({"model": model, "train": {"objective": objective}})


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"needs 6 ids behind the tokenizer's 258"):
        Sentinels.of(ByteTokenizer(), 258, 4)
