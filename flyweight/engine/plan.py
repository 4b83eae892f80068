"""Where buffers lie: those that are never alive together share their place.

Each of the three sets of rows has an arena of its own, counted in numbers per row.
"""

from __future__ import annotations

from dataclasses import replace

from flyweight.engine.program import Program, Rows

# Every buffer begins at a multiple of a cache line.
_ALIGNMENT = 16


def plan(program: Program) -> None:
    """Set the offset of every buffer, first fit in the order of their first use.

    A buffer lives from the first operation that names it to the last, both included: sources
    and targets of one operation never overlap unless they are one buffer.
    """
    lives = _lives(program)
    for rows in Rows:
        alive: list[int] = []
        own = [b for b in lives if program.buffers[b].rows == rows]
        for b in sorted(own, key=lambda b: lives[b]):
            width = _rounded(program.buffers[b].width)
            at = 0
            alive = [other for other in alive if lives[other][1] >= lives[b][0]]
            for other in sorted(alive, key=lambda o: program.buffers[o].offset):
                begin = program.buffers[other].offset
                end = begin + _rounded(program.buffers[other].width)
                if begin < at + width and at < end:
                    at = end
            program.buffers[b] = replace(program.buffers[b], offset=at)
            alive.append(b)


def arena(program: Program, rows: Rows) -> int:
    """Numbers per row that all buffers of a set take together."""
    ends = (b.offset + _rounded(b.width) for b in program.buffers if b.rows == rows)
    return max(ends, default=0)


def _lives(program: Program) -> dict[int, tuple[int, int]]:
    """First and last operation that names each buffer. The logits are read after the last."""
    lives: dict[int, tuple[int, int]] = {}
    for at, op in enumerate(program.ops):
        for b in (*op.sources, *op.targets):
            lives[b] = (lives[b][0] if b in lives else at, at)
    if program.logits >= 0:
        lives[program.logits] = (lives[program.logits][0], len(program.ops))
    return lives


def _rounded(width: int) -> int:
    return -(-width // _ALIGNMENT) * _ALIGNMENT
