"""torch.compile on the blocks, where it pays; eager otherwise, said aloud."""

from __future__ import annotations

from flyweight.model.decoder import Decoder
from flyweight.train.loop import Session, backward
from flyweight.train.state import TrainState


def can_pay(model: Decoder) -> bool:
    """Whether compiling is worth a trial: the blocks' shapes must be the same at every step.

    A patch model's number of patches changes with the text, and each change compiles anew.
    """
    return model.patches is None


def compile_blocks(state: TrainState, session: Session) -> bool:
    """Compile each block and the last norm in place, and run a batch through.

    No tensor changes name or value.

    False, with a notice, where compiling fails: the model is eager again.
    """
    parts = [*state.model.blocks, state.model.norm]
    for part in parts:
        part.compile()
    try:
        backward(state, session, session.batches.batch(state.step))
        return True
    except Exception as error:  # whatever the compiler raises, eager still works
        lines = str(error).strip().splitlines() or [type(error).__name__]
        session.view.notice(f"torch.compile failed, going on without it: {lines[0][:200]}")
        for part in parts:
            part._compiled_call_impl = None
        return False
    finally:
        state.optimizer.forget()
