"""Whole programs: threads, instruction sets, sequences, and programs that are not valid."""

from __future__ import annotations

import copy
import dataclasses
import gc
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flyweight.engine.program import Kind, Op, Program, Rows, Spelling
from flyweight.spec.errors import FlyweightError

from .tiny import Array, Tiny, frequencies, native, small_model

RNG = np.random.default_rng(0)
MODEL = small_model(RNG)
TOKENS = RNG.integers(0, 40, 590)


def begin(executor: Any, **more: Any) -> Any:
    return executor.begin(frequencies(8), **more)


def whole(threads: int, isa: str = "") -> Array:
    executor = MODEL.executor(threads, isa)
    return np.asarray(executor.feed([begin(executor)], [TOKENS.tolist()], "all"))


@pytest.fixture(scope="module")
def logits() -> Array:
    return whole(1)


def test_the_same_bits_whatever_the_threads_and_the_calls(logits: Array) -> None:
    for threads in (1, 2, 3):
        executor = MODEL.executor(threads)
        sequence, parts, done = begin(executor), [], 0
        for count in (1, 1, 4, 5, 200, 1, 1, 377):
            parts.append(executor.feed([sequence], [TOKENS[done : done + count].tolist()], "all"))
            done += count
        assert done == len(TOKENS)
        assert np.array_equal(np.concatenate(parts), logits), threads
        assert np.array_equal(whole(threads), logits)


def test_instruction_sets_agree(logits: Array) -> None:
    for isa in native.kernels.instruction_sets():
        np.testing.assert_allclose(whole(2, isa), logits, rtol=1e-3, atol=1e-4)
    with pytest.raises(FlyweightError, match="'sse9' is none that this processor can run"):
        MODEL.executor(1, "sse9")


def test_the_environment_names_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWEIGHT_ISA", "portable")
    assert MODEL.executor(1, "").isa == "portable"


def test_several_sequences_decode_together_as_alone(logits: Array) -> None:
    executor = MODEL.executor(2)
    starts = [3, 300, 17, 1, 64, 256]
    sequences = [begin(executor) for _ in starts]
    executor.feed(sequences, [TOKENS[:n].tolist() for n in starts], "none")
    for step in range(3):
        fed = [[int(TOKENS[n + step])] for n in starts]
        found = executor.feed(sequences, fed)
        assert np.array_equal(found, logits[[n + step for n in starts]])


def test_scores_are_the_log_softmax(logits: Array) -> None:
    executor = MODEL.executor(2)
    targets = [*TOKENS[1:].tolist(), -1]
    halves = [(TOKENS.tolist(), targets), (TOKENS[:7].tolist(), targets[:7])]
    found = executor.score(
        [begin(executor), begin(executor)], [t for t, _ in halves], [t for _, t in halves]
    )
    x = logits.astype(np.float64)
    expected = x - np.log(np.exp(x).sum(-1, keepdims=True))
    assert np.isnan(found[0][-1])
    near = expected[np.arange(len(TOKENS) - 1), TOKENS[1:]]
    np.testing.assert_allclose(found[0][:-1], near, atol=2e-6)
    assert np.array_equal(found[1], found[0][:7])


def test_a_large_vocabulary_is_scored_in_chunks_of_rows() -> None:
    vocab = 300_000
    tiny = Tiny(vocab, 64)
    x = tiny.embed(np.random.default_rng(1).standard_normal((vocab, 4)))
    chosen, tiny.program.logits = tiny.buffer(4, Rows.WANTED), tiny.buffer(vocab, Rows.WANTED)
    head = np.random.default_rng(2).standard_normal((vocab, 4)).astype(np.float32)
    tiny.op(Kind.SELECT, (x,), (chosen,), rows=Rows.WANTED)
    weights = (tiny.weight(head), -1)
    tiny.op(
        Kind.PRODUCT, (chosen,), (tiny.program.logits,), weights, (0, 0, 1, 0), (1.0,), Rows.WANTED
    )
    executor = tiny.executor(2)
    tokens = list(range(40))
    (found,) = executor.score([executor.begin()], [tokens], [tokens])
    table = tiny.program.weights[0].data.view(np.float32).reshape(vocab, 4)[:40].astype(np.float64)
    x64 = table @ head.T
    expected = x64[np.arange(40), tokens] - np.log(np.exp(x64).sum(-1))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert executor.buffer_bytes < 40 * vocab * 4


def test_cutting_and_copying(logits: Array) -> None:
    executor = MODEL.executor(2)
    sequence = begin(executor)
    executor.feed([sequence], [TOKENS[:520].tolist()], "none")
    other = sequence.copy()
    used = executor.cache_bytes
    assert sequence.truncate(1000) == 520 and sequence.truncate(250) == 250
    assert executor.cache_bytes < used and sequence.length == 250
    assert np.array_equal(sequence.tokens, TOKENS[:250])
    again = executor.feed([sequence], [TOKENS[250:].tolist()], "all")
    assert np.array_equal(again, logits[250:])
    assert np.array_equal(executor.feed([other], [TOKENS[520:].tolist()], "all"), logits[520:])
    assert sequence.truncate(0) == 0
    assert np.array_equal(executor.feed([sequence], [TOKENS[:9].tolist()], "all"), logits[:9])
    with pytest.raises(FlyweightError, match="cannot be cut to -1"):
        sequence.truncate(-1)
    del sequence, other
    gc.collect()
    assert executor.cache_bytes == 0


def test_positions_may_be_read_otherwise_from_here_on(logits: Array) -> None:
    executor = MODEL.executor()
    sequence = begin(executor)
    executor.feed([sequence], [TOKENS[:8].tolist()], "none")
    sequence.set_positions(frequencies(8))
    assert np.array_equal(executor.feed([sequence], [[int(TOKENS[8])]])[0], logits[8])
    sequence.set_positions([0.5 * f for f in frequencies(8)])
    assert not np.array_equal(executor.feed([sequence], [[int(TOKENS[9])]])[0], logits[9])
    with pytest.raises(FlyweightError, match="takes 4 frequencies, not 1"):
        sequence.set_positions([1.0])


def test_what_does_not_fit_is_said_and_changes_nothing(logits: Array) -> None:
    executor = MODEL.executor()
    sequence, stranger = begin(executor), begin(MODEL.executor())
    executor.feed([sequence], [TOKENS[:5].tolist()], "none")
    wrong = [
        (([sequence], [[]]), "no tokens"),
        (
            ([sequence], [[1] * 596]),
            "5 tokens and 596 more are longer than the model's context of 600",
        ),
        (([sequence], [[40]]), "token 40 is not within the model's vocabulary of 40"),
        (([sequence], [[-1]]), "token -1"),
        (([sequence, sequence], [[1], [1]]), "given twice"),
        (([stranger], [[1]]), "of another model"),
        (([sequence], [[1], [2]]), "1 sequences and 2 lists"),
        (([sequence], [[1]], "some"), "want = 'some'"),
    ]
    for arguments, message in wrong:
        with pytest.raises(FlyweightError, match=message):
            executor.feed(*arguments)
    with pytest.raises(FlyweightError, match="target 40"):
        executor.score([sequence], [[1]], [[40]])
    with pytest.raises(FlyweightError, match="cache of type 2"):
        begin(executor, cache_format=2)
    with pytest.raises(FlyweightError, match="threads = 0"):
        MODEL.executor(0)
    assert np.array_equal(executor.feed([sequence], [[int(TOKENS[5])]])[0], logits[5])


def test_the_caches_have_a_limit() -> None:
    executor = MODEL.executor(cache_limit=1 << 20)
    sequences = []
    with pytest.raises(FlyweightError, match=r"no room for .* 1 MiB are allowed"):
        for _ in range(1000):
            sequences.append(begin(executor))
            executor.feed(sequences[-1:], [[1, 2, 3]])
    assert len(sequences) > 2 and executor.cache_bytes <= 1 << 20
    executor.feed(sequences[:1], [[4]])


def test_several_python_threads_may_use_one_executor(logits: Array) -> None:
    executor = MODEL.executor(2)
    wrong = []

    def work(n: int) -> None:
        sequence = begin(executor)
        for i in range(n, n + 20):
            found = executor.feed([sequence], [[int(TOKENS[i - n])]])
            if not np.array_equal(found[0], logits[i - n]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_gets_an_error_and_does_not_hang() -> None:
    executor = MODEL.executor(2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            executor.feed([begin(executor)], [[1]])
        except FlyweightError as error:
            status = 0 if "forked" in str(error) else 2
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_mapped_file_is_read_packed_and_let_go(tmp_path: Path) -> None:
    """The same numbers from a mapping, whose table is read where it lies."""
    rng = np.random.default_rng(4)
    tiny = Tiny(64, 16)
    x = tiny.embed(rng.standard_normal((64, 32)))
    tiny.program.logits = tiny.buffer(64, Rows.WANTED)
    chosen = tiny.buffer(32, Rows.WANTED)
    tiny.op(Kind.SELECT, (x,), (chosen,), rows=Rows.WANTED)
    head = (tiny.weight(rng.standard_normal((64, 32))), -1)
    tiny.op(
        Kind.PRODUCT, (chosen,), (tiny.program.logits,), head, (0, 0, 1, 0), (1.0,), Rows.WANTED
    )
    expected = tiny.run(range(10))
    path = tmp_path / "weights"
    path.write_bytes(b"".join(w.data.tobytes() for w in tiny.program.weights))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data, end = np.frombuffer(mapped, np.uint8), 0
    for i, w in enumerate(tiny.program.weights):
        own = data[end : end + len(w.data)]
        end += len(w.data)
        tiny.program.weights[i] = dataclasses.replace(w, data=own)
    executor = tiny.executor()
    del data, mapped, own
    tiny.program.weights.clear()
    gc.collect()
    found = executor.feed([executor.begin()], [list(range(10))], "all")
    assert np.array_equal(found, expected)


def mutate(program: Program, draw: Any) -> None:
    """Changes one number somewhere."""
    value = draw(
        st.sampled_from([-1, 0, 1, 2, 3, 7, 8, 31, 33, 64, 2**22, 2**31 - 1, 2**40, -(2**62)])
    )
    where = draw(
        st.sampled_from(["program", "buffer", "weight", "op", "op", "op", "slot", "spelling"])
    )
    if where == "program":
        name = draw(st.sampled_from(["vocab_size", "context", "logits", "frequencies"]))
        setattr(program, name, value)
        return
    if where == "spelling" and program.spelling is not None:
        symbols, value = program.spelling.symbols.copy(), max(-(2**31), min(value, 2**31 - 1))
        what = draw(st.sampled_from(["pad", "symbol", "rows", "slots", "none"]))
        row = draw(st.integers(0, len(symbols) - 1))
        symbols[row, 0] = value if what == "symbol" else symbols[0, 0]
        symbols = {"rows": symbols[:-1], "slots": symbols[:, :1]}.get(what, symbols)
        pad = value if what == "pad" else program.spelling.pad
        made = Spelling(np.ascontiguousarray(symbols), pad)
        program.spelling = None if what == "none" else made
        return
    things: list[Any] = {
        "buffer": program.buffers, "weight": program.weights, "op": program.ops,
        "slot": program.slots, "spelling": program.ops,
    }[where]  # fmt: skip
    i = draw(st.integers(0, len(things) - 1))
    fields = [f.name for f in dataclasses.fields(things[i]) if f.name not in ("name", "data")]
    name = draw(st.sampled_from(fields))
    old = getattr(things[i], name)
    new: Any = value
    if isinstance(old, tuple):
        items = list(old)
        change = draw(st.sampled_from(["set", "drop", "add"]))
        if change == "add" or not items:
            items.append(value)
        else:
            place = draw(st.integers(0, len(items) - 1))
            items[place : place + 1] = [] if change == "drop" else [value]
        new = tuple(float(v) for v in items) if name == "floats" else tuple(items)
    elif name == "order":
        count = min(max(1, things[i].rows), 64)  # the rows may have been changed before
        new = np.arange(count)
        new[draw(st.integers(0, count - 1))] = value
    elif isinstance(old, str):
        new = draw(st.sampled_from(["matrix", "table", "vector", "other"]))
    elif draw(st.booleans()):
        new = old + draw(st.sampled_from([-1, 1, 16]))
    things[i] = dataclasses.replace(things[i], **{name: new})


def all_kinds() -> Tiny:
    """A program with every operation, so that each is mutated."""
    rng = np.random.default_rng(6)
    tiny = Tiny(32, 40, 2)
    table = rng.standard_normal((32, 16))
    x, grams = tiny.embed(table, kind="matrix"), tiny.buffer(16)
    tiny.op(
        Kind.EMBED, (), (x,), (tiny.weight(rng.standard_normal((40, 16)), "table"),), (1, 1), (1.0,)
    )
    tiny.op(
        Kind.NGRAMS, (), (grams,), (tiny.weight(rng.standard_normal((10, 8)), "table"),), (5, 2, 3)
    )
    tiny.op(
        Kind.MATCHES, (), (x,), (tiny.weight(rng.standard_normal((66, 16)), "table"),), (32, 1, 2)
    )
    tiny.op(Kind.ADD, (grams,), (x,), (), (), (1.0,))
    symbols = np.stack((np.arange(32) % 9, np.arange(32) % 2 * 9), 1).astype(np.int32)
    tiny.program.spelling = Spelling(symbols, 9)
    letters, read = tiny.buffer(24, Rows.SYMBOLS), tiny.buffer(8, Rows.SYMBOLS)
    alphabet = tiny.weight(rng.standard_normal((10, 24)), "table")
    tiny.op(Kind.EMBED, (), (letters,), (alphabet,), (3, 0), (1.0,), Rows.SYMBOLS)
    tiny.op(Kind.WITHIN, (letters,), (read,), (), (2, 4, 1), (0.5,), Rows.SYMBOLS)
    mean, widen = tiny.buffer(8), tiny.weight(rng.standard_normal((16, 8)))
    tiny.op(Kind.MEAN, (read,), (mean,))
    tiny.op(Kind.PRODUCT, (mean,), (x,), (widen, -1), (1, 0, 1, 0), (1.0,))
    core = tiny.buffer(32, Rows.PATCHES)
    tiny.op(Kind.POOL, (x,), (core,), (), (0, 3), rows=Rows.PATCHES)
    qkv, out = tiny.buffer(24, Rows.PATCHES), tiny.buffer(8, Rows.PATCHES)
    product = (
        tiny.weight(rng.standard_normal((24, 32))),
        tiny.weight(rng.standard_normal(24), "vector"),
    )
    tiny.op(Kind.PRODUCT, (core,), (qkv,), product, (0, 1, 1, 0), (1.0,), Rows.PATCHES)
    tiny.op(Kind.ROTATE, (), (qkv,), (), (0, 2, 4, 4, 1), rows=Rows.PATCHES)
    slot = tiny.slot(2, 4, Rows.PATCHES)
    tiny.op(Kind.STORE, (qkv,), (), (), (slot, 8, 16, 2, 4), rows=Rows.PATCHES)
    slopes = tiny.weight(rng.random(2), "vector")
    tiny.op(Kind.ATTENTION, (qkv,), (out,), (slopes,), (slot, 0, 2, 2, 4, 5), (0.5,), Rows.PATCHES)
    wide = tiny.buffer(16, Rows.PATCHES)
    gated = (
        tiny.weight(rng.standard_normal((16, 8))),
        tiny.weight(rng.standard_normal((16, 8))),
        -1,
        -1,
    )
    tiny.op(Kind.GATED, (out,), (wide,), gated, (1,), rows=Rows.PATCHES)
    tiny.op(Kind.SPREAD, (wide,), (x,))
    tiny.op(Kind.SCALE, (x,), (grams,), (), (), (2.0,))
    tiny.op(Kind.ACTIVATE, (grams, x), (grams,), (), (3,))
    normed = tiny.buffer(16)
    tiny.op(Kind.NORM, (grams,), (normed,), (-1, -1), (1, 16, 0, 16), (1e-5,))
    chosen, tiny.program.logits = tiny.buffer(16, Rows.WANTED), tiny.buffer(32, Rows.WANTED)
    tiny.op(Kind.SELECT, (normed,), (chosen,), rows=Rows.WANTED)
    wide = tiny.buffer(32, Rows.WANTED)
    tiny.op(Kind.PRODUCT, (chosen,), (wide,), (0, -1), (0, 0, 1, 0), (1.0,), Rows.WANTED)
    spelled = tiny.buffer(16, Rows.SPELLED)
    tiny.op(Kind.CUT, (wide,), (spelled,), rows=Rows.SPELLED)
    tiny.op(Kind.LOGS, (spelled,), (spelled,), rows=Rows.SPELLED)
    tiny.op(Kind.SPELL, (spelled,), (tiny.program.logits,), rows=Rows.WANTED)
    return tiny


def test_every_kind_is_in_the_mutated_program() -> None:
    tiny = all_kinds()
    assert {op.kind for op in tiny.program.ops} == set(Kind)
    assert np.isfinite(tiny.run(range(32), 2, begin=([1.0, 0.5],))).all()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), changes=st.integers(1, 3))
def test_a_mutated_program_is_refused_or_runs(data: Any, changes: int) -> None:
    tiny = all_kinds()
    for _ in range(changes):
        mutate(tiny.program, data.draw)
    context = tiny.program.context
    try:
        executor = tiny.executor(2)
        sequence = executor.begin([1.0] * min(100, max(0, tiny.program.frequencies)))
        tokens = [t % max(1, tiny.program.vocab_size) for t in range(30)]
        for some in (tokens[:1], tokens[1:2], tokens[2:20], tokens[20:]):
            executor.feed([sequence], [some], "all")
    except FlyweightError as error:
        assert str(error)
    else:
        assert context >= 30


def first_op(program: Program, **changes: Any) -> None:
    program.ops[0] = dataclasses.replace(program.ops[0], **changes)


ADD = Op(Kind.ADD, Rows.TOKENS, (0,), (0,), (), (), (1.0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: setattr(p, "logits", 99), "logits = 99 is not within"),
        (lambda p: p.ops.append(ADD), "come last"),
        (lambda p: setattr(p, "buffers", None), "buffers is None"),
        (lambda p: first_op(p, ints=(0.5, 0)), "ints is"),
        (lambda p: first_op(p, floats=(float("nan"),)), "finite"),
    ],
)
def test_errors_of_programs_say_where(change: Any, message: str) -> None:
    program = copy.deepcopy(MODEL.program)
    change(program)
    with pytest.raises(FlyweightError, match=message):
        native.Executor(program)


def test_rows_in_another_order() -> None:
    rng = np.random.default_rng(7)
    head = rng.standard_normal((40, 32)).astype(np.float32)
    order = rng.permutation(40)

    def model(values: Array, places: Any, kind: str = "matrix") -> Tiny:
        tiny = Tiny(40, 16)
        x = tiny.embed(rng.standard_normal((40, 32)) * 0 + np.arange(32) / 32)
        chosen, tiny.program.logits = tiny.buffer(32, Rows.WANTED), tiny.buffer(40, Rows.WANTED)
        tiny.op(Kind.SELECT, (x,), (chosen,), rows=Rows.WANTED)
        w = tiny.weight(values, kind)
        tiny.program.weights[w] = dataclasses.replace(tiny.program.weights[w], order=places)
        where = (chosen,), (tiny.program.logits,)
        tiny.op(Kind.PRODUCT, *where, (w, -1), (0, 0, 1, 0), (1.0,), Rows.WANTED)
        return tiny

    expected = model(head[order], None).run([1, 2])
    for threads in (1, 2):
        assert np.array_equal(model(head, order).run([1, 2], threads), expected)
    for wrong, said in (
        (order[:-1], "40 rows in an order of 39"),
        (np.where(order == 7, 40, order), "a row's place = 40"),
        (np.where(order == 7, -1, order), "a row's place = -1"),
        ("0123", "order is no contiguous array"),
    ):
        with pytest.raises(FlyweightError, match=said):
            model(head, wrong).executor()
