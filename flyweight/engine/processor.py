"""Which of the kernels' instruction sets is used, and what the machine can do at most."""

from __future__ import annotations

import os

from flyweight.spec.errors import FlyweightError


def forced_instruction_set() -> str:
    """What FLYWEIGHT_ISA names, or "": the best there is.

    Raises FlyweightError where this processor or build has it not.
    """
    from flyweight.engine._native import kernels

    isa, known = os.environ.get("FLYWEIGHT_ISA", ""), kernels.instruction_sets()
    if isa and isa not in known:
        raise FlyweightError(
            f"FLYWEIGHT_ISA = {isa}: this processor and build have {', '.join(known)}"
        )
    return isa


def read_bandwidth(threads: int) -> float | None:
    """Bytes a second that ``threads`` threads together read from memory, from many places at once:
    what bounds decoding. None where the kernels are not built."""
    try:
        from flyweight.engine._native import kernels
    except ImportError:
        return None
    return float(kernels.read_bandwidth(threads))
