"""Ctrl-C during training: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal

from flyweight.train.processes import ALONE, Processes


class Interrupt:
    """Turns the first Ctrl-C into a request to stop after the step; the second one kills.

    Among several processes a request to one is one to all. torchrun hands its Ctrl-C on to those
    that had it from the terminal already: there a second one does nothing more.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes, self._here = processes, False

    def __enter__(self) -> Interrupt:
        try:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread: Ctrl-C does not reach it
            self.previous = None
        return self

    def _ask(self, *_: object) -> None:
        self._here = True
        if self.processes.size == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(self) -> bool:
        """Whether to stop after this step; the same in every process, which must all call it."""
        return self.processes.sum(float(self._here)) > 0

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
