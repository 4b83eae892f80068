"""How a process of a job ends when another one has gone: at once, and saying so."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# Seconds between two signs of life: no exchange may wait longer than the group's timeout.
SIGN = 3600.0


def is_lost(error: Exception) -> bool:
    """Whether an exchange failed because another process has gone."""
    if isinstance(error, dist.DistError):
        return True
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return any(sign in str(error) for sign in signs)


class Ending:
    """Says once that the job has lost a process, and ends this one, whatever it is doing.

    torchrun sends SIGTERM when a process of the job ended. One that waits for it inside an
    exchange runs no Python then, so a thread of its own listens.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.quiet = rank, size, False
        self._lock = threading.Lock()
        if threading.current_thread() is not threading.main_thread():
            return
        self._heard, told = socket.socketpair()
        told.setblocking(False)
        self._told = told
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while said := self._heard.recv(1):
            if said[0] == signal.SIGTERM:
                if self.quiet:
                    os._exit(1)
                self.lost("told to stop (SIGTERM)")

    def watch(self, group: Any) -> None:
        """Notice when the next process has gone, whatever this one is doing: where a card waits
        for the card of a process that was killed, no exchange ever fails.

        In a ``group`` of their own, each process gives the one before it a sign of life now and
        then, and a farewell; a thread waits for the next one's.
        """

        def hear() -> None:
            alive = torch.ones(1)
            while alive.item():
                dist.recv(alive, src=(self.rank + 1) % self.size, group=group)

        def say() -> None:
            while True:
                done = self._done.wait(SIGN)
                sign = torch.tensor([0.0 if done else 1.0])
                dist.send(sign, dst=(self.rank - 1) % self.size, group=group)
                if done:
                    return

        def kept(exchange: Callable[[], None]) -> None:
            try:
                exchange()
            except RuntimeError as error:
                if not self.quiet:
                    self.lost(error)

        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=kept, args=(do,), daemon=True) for do in (hear, say)
        ]
        for thread in self._threads:
            thread.start()

    def part(self) -> None:
        """The job is done: bid the process before this one farewell, and hear the next one's."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def lost(self, cause: RuntimeError | str) -> None:
        # Without the place in PyTorch's source that an exchange's error begins with.
        reason = re.sub(r"^\[[^]]*\] *", "", str(cause).split("\n")[0])[:160]
        with self._lock:
            print(
                f"error: rank {self.rank} of {self.size} ends: another process of this job was"
                f" killed or has failed, or the job was stopped ({reason}). What was saved before"
                " is whole; to go on, start the same job with: -m flyweight resume RUN",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
