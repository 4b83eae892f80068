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
    """Compile each block in place, and run a batch through; no tensor changes name or value.

    False, with a notice, where compiling fails: the model is eager again.
    """
    for block in state.model.blocks:
        block.compile()
    try:
        backward(state, session, session.batches.batch(state.step))
        return True
    except Exception as error:  # whatever the compiler raises, eager still works
        lines = str(error).strip().splitlines() or [type(error).__name__]
        session.view.notice(f"torch.compile failed, going on without it: {lines[0][:200]}")
        for block in state.model.blocks:
            block._compiled_call_impl = None
        return False
    finally:
        state.optimizer.forget()
