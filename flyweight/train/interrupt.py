"""Ctrl-C during training: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal


class Interrupt:
    """Turns the first Ctrl-C into a request to stop after the step; the second one kills."""

    asked = False

    def __enter__(self) -> Interrupt:
        try:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread: Ctrl-C does not reach it
            self.previous = None
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
