"""torch.compile on a step's parts, where it pays; eager otherwise, said aloud."""

from __future__ import annotations

import torch
from torch import nn

from flyweight.model.decoder import Decoder
from flyweight.spec.errors import FlyweightError
from flyweight.train.ending import is_lost
from flyweight.train.loop import backward
from flyweight.train.session import Session
from flyweight.train.state import TrainState


def can_pay(model: Decoder) -> bool:
    """Whether compiling is worth a trial: the blocks' shapes must be the same at every step.

    A patch model's number of patches changes with the text, and each change compiles anew.
    """
    return model.patches is None


def parts_to_compile(model: Decoder) -> list[nn.Module]:
    """Each block and the last norm; what is between them stays eager."""
    ahead = [] if model.ahead is None else [step.block for step in model.ahead.steps]
    return [*model.blocks, model.norm, *ahead]


def compile_parts(state: TrainState, session: Session) -> bool:
    """Compile the parts in place, and run a batch through. No tensor changes name or value.

    False, with a notice, where compiling fails: all is eager again. Among several processes a
    compiler that is missing somewhere is found before; what fails in the midst of their exchanges
    is a FlyweightError, for no process can fall back alone.
    """
    several = session.processes.size > 1
    if several:
        missing = [said for said in session.processes.heard(_trial(session.device)) if said]
        if missing:
            session.view.notice(f"torch.compile failed, going on without it: {missing[0]}")
            return False
    parts = parts_to_compile(state.model)
    # Dropout draws the numbers that it would draw without compiling.
    options = {"fallback_random": True} if session.train.dropout else None
    for part in parts:
        part.compile(options=options)
    compiled = True
    try:
        state.model.drop(session.plan.at(state.step).dropout)
        backward(state, session, session.batches.batch(state.step))
    except Exception as error:  # whatever the compiler raises, eager still works
        if is_lost(error):
            raise
        if several:
            raise FlyweightError(
                f'torch.compile failed: {_said(error)}. Start anew with train.compile = "off"'
            ) from error
        session.view.notice(f"torch.compile failed, going on without it: {_said(error)}")
        for part in parts:
            part._compiled_call_impl = None
        compiled = False
    state.optimizer.forget()
    return compiled


def _trial(device: str) -> str:
    """What the compiler says against a function that it can surely compile; "" if nothing."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(64, device=device))
    except Exception as error:  # whatever the compiler raises
        return _said(error)
    return ""


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
