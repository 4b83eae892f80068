"""What comes in between: signals, forks, other threads, and a system that gives no more."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.spec.errors import FlyweightError

from .tiny import Tiny, frequencies, native, small_model

_ROOT = Path(__file__).parents[2]
LONG = small_model(np.random.default_rng(0), context=100_000)
TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 40, 12_000)]


def another_process(code: str) -> subprocess.CompletedProcess[str]:
    """With these tests to be imported, whatever package of ours is tested."""
    code = f"import sys; sys.path.append({str(_ROOT)!r})\n{code}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True)


def begin(executor: Any) -> Any:
    return executor.begin(frequencies(8))


@pytest.fixture
def alarm() -> Iterator[Callable[[Any], None]]:
    """A handler that is called after 50 ms of computing from now, in the middle of it."""
    before = signal.getsignal(signal.SIGVTALRM)

    def set_(handler: Any) -> None:
        signal.signal(signal.SIGVTALRM, handler)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)

    yield set_
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("call", ["feed", "score"])
def test_a_signal_ends_a_long_run(call: str, alarm: Callable[[Any], None]) -> None:
    """It takes effect between runs of 512 tokens, and the sequence holds those that were read."""
    executor = LONG.executor()
    sequence = begin(executor)
    calls: dict[str, Callable[[], Any]] = {
        "feed": lambda: executor.feed([sequence], [TOKENS]),
        "score": lambda: executor.score([sequence], [TOKENS], [TOKENS]),
    }
    alarm(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    done = sequence.length
    assert 0 < done < len(TOKENS) and done % 512 == 0
    assert sequence.tokens.tolist() == TOKENS[:done]
    some = TOKENS[done : done + 30]
    again = executor.feed([sequence], [some], "all")
    whole = executor.feed([begin(executor)], [TOKENS[:done] + some], "all")
    assert np.array_equal(again, whole[done:])


def test_a_stream_goes_on_where_a_signal_stopped_it(alarm: Callable[[Any], None]) -> None:
    made = []
    for interrupted in (True, False):
        executor = LONG.executor()
        generation = native.Generation(executor)
        generation.add(begin(executor), TOKENS[:5000], max_tokens=3)
        if interrupted:
            alarm(signal.default_int_handler)
            with pytest.raises(KeyboardInterrupt):
                generation.next(3)
        made.append([piece[1] for piece in generation.next(3)])
    assert made[0] == made[1] and len(made[0][0]) == 3


def test_a_handler_that_uses_the_model_gets_an_error(alarm: Callable[[Any], None]) -> None:
    executor = LONG.executor()
    sequence = begin(executor)
    alarm(lambda *_: sequence.truncate(0))
    with pytest.raises(FlyweightError, match="a signal handler"):
        executor.feed([sequence], [TOKENS])
    assert 0 < sequence.length < len(TOKENS)


def test_streams_that_end_while_others_are_cancelled() -> None:
    """An ended stream lets go of its sequence, which Python frees: nobody may wait for Python then
    who holds what the other waits for."""
    executor = small_model(np.random.default_rng(0)).executor()
    generation = native.Generation(executor)
    over = threading.Event()

    def work() -> None:
        for _ in range(300):
            for _ in range(4):
                generation.add(begin(executor), [1], max_tokens=1)
            generation.next()
        over.set()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while not over.is_set() and worker.is_alive():
        for stream in range(100):
            generation.cancel(5000 + stream)
    assert over.is_set()


def test_a_sequence_in_two_generations() -> None:
    executor = LONG.executor()
    sequence = begin(executor)

    def work() -> None:
        generation = native.Generation(executor)
        generation.add(sequence, [1, 2, 3], max_tokens=300)
        made = 0
        while pieces := generation.next():
            made += len(pieces[0][1])
        counts.append(made)

    counts: list[int] = []
    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    lengths = []
    while any(worker.is_alive() for worker in workers):
        lengths.append(sequence.length)
    assert counts == [300, 300, 300]
    assert sequence.length == 3 * (3 + 299) and lengths == sorted(lengths)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_computes_gets_an_error_and_does_not_hang() -> None:
    code = """
import os, signal, sys, threading, time
from tests.engine.test_interruptions import LONG, TOKENS, begin, native
from flyweight.spec.errors import FlyweightError
executor = LONG.executor(2)
sequence = begin(executor)
generation = native.Generation(executor)
generation.add(sequence, TOKENS[:600], max_tokens=90_000)
worker = threading.Thread(target=generation.next, args=(90_000,))
worker.start()
time.sleep(0.05)
child = os.fork()
if child == 0:
    signal.alarm(60)
    refused = 0
    for call in (lambda: executor.feed([sequence], [[1]]), lambda: sequence.length,
                 generation.next, lambda: executor.buffer_bytes):
        try:
            call()
        except FlyweightError as error:
            refused += "forked" in str(error)
    del executor, generation, sequence
    os._exit(0 if refused == 4 else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
generation.cancel(0)
worker.join()
sys.exit(status)
"""
    assert another_process(code).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_threads_that_the_system_does_not_give_are_one_clear_error() -> None:
    code = """
import resource
from tests.engine.test_interruptions import LONG
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20),) * 2)
LONG.executor(1000)
"""
    done = another_process(code)
    assert done.returncode == 1
    assert "threads = 1000: the system gives no more than" in done.stderr


@pytest.mark.parametrize("wrong", ["strided", "float32", "int8", "list"])
def test_weights_that_would_have_to_be_converted_are_refused(wrong: str) -> None:
    """The engine keeps the arrays' memory, and a conversion's would be gone."""
    tiny = Tiny(8, 16)
    tiny.logits(tiny.embed(np.ones((8, 8))))
    (weight,) = tiny.program.weights
    data = weight.data
    changed: Any = {
        "strided": np.repeat(data, 2)[::2],
        "float32": data.astype(np.float32),
        "int8": data.view(np.int8),
        "list": data.tolist(),
    }[wrong]
    tiny.program.weights[0] = dataclasses.replace(weight, data=changed)
    with pytest.raises(FlyweightError, match="data is no contiguous array"):
        tiny.executor()
