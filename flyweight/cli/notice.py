"""What a command remarks besides its result."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
