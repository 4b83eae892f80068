"""The training loop: batch, loss, gradients, update, ledger, checkpoint. Nothing else."""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any

import numpy as np
import torch

from flyweight.data.batches import Batch
from flyweight.data.order import keys
from flyweight.files.run import RunFolder
from flyweight.spec.errors import FlyweightError, Interrupted
from flyweight.train.checkpoints import due, save
from flyweight.train.interrupt import Interrupt
from flyweight.train.ledger import open_ledger
from flyweight.train.memory import peak_memory
from flyweight.train.objective import Part, training_loss
from flyweight.train.schedule import Moment
from flyweight.train.session import Session
from flyweight.train.spikes import Watch
from flyweight.train.state import TrainState


def run_training(state: TrainState, session: Session, run: RunFolder) -> None:
    """Train from ``state.step`` to the end; every step goes to the ledger.

    Saves on schedule, at the end, and on Ctrl-C (then raises Interrupted).
    """
    train, steps = session.train, session.plan.steps
    state.model.train()
    started, first = time.perf_counter(), state.step
    with Interrupt(session.processes) as interrupt, open_ledger(state, session, run) as ledger:
        while True:
            if owes_sample(state, session, run):
                assert session.sample is not None
                session.sample(state)
            if state.step == steps:
                return
            record = take_step(state, session)
            ledger.append(record)
            left = (time.perf_counter() - started) / (state.step - first) * (steps - state.step)
            share = session.flops / record["seconds"] / session.peak if session.peak else None
            session.view.step({**record, "eta_seconds": left, "matrix_share": share})
            stop = interrupt.asked() and state.step < steps
            if stop or due(train.checkpoint, state.step, steps):
                save(state, run, ledger, train.checkpoint)
            if stop:
                raise Interrupted(
                    f"stopped after step {state.step} of {steps}, which is saved."
                    f" To go on: flyweight resume {run.path}"
                )


def owes_sample(state: TrainState, session: Session, run: RunFolder) -> bool:
    """Whether a sample is due after this step and not recorded yet: a kill may have come between
    the step's checkpoint and its sample."""
    every = session.train.sample_every
    if session.sample is None or not every or not state.step or state.step % every:
        return False
    return not session.processes.told(run.has_sample(state.step))


def take_step(state: TrainState, session: Session) -> dict[str, Any]:
    """One step, and its line of the ledger. Touches no file: `verify` takes the same steps.

    A non-finite loss or gradient norm raises FlyweightError before anything is updated.
    """
    begin, processes = time.perf_counter(), session.processes
    moment = session.plan.at(state.step)
    watch = Watch(session.train.spikes, state.extra.setdefault("spikes", {}), moment)
    state.model.drop(moment.dropout)
    # What is drawn at random within a step (dropout) is a function of seed, step and try too.
    for draw in keys(session.batches.seed, state.step, processes.draws, watch.tries):
        torch.manual_seed(int(draw))
        window, batch = watch.first, session.batch(moment, watch.first)
        loss = backward(state, session, batch)
        norm = state.optimizer.gather()
        if watch.accepts(loss, norm):
            break
        state.optimizer.forget()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FlyweightError(
            f"step {state.step + 1}: the loss is {loss} and the gradient norm {norm};"
            " nothing was updated. Lower schedule.peak, or see the batch:"
            f" flyweight data inspect RUN --step {state.step + 1}"
        )
    state.optimizer.apply(moment.rate, session.train.clip, norm)
    record = _advance(state, session, moment, batch, loss, norm, begin)
    record["window"] = window
    if session.train.embedding_gradient != 1.0:
        record["embedding_gradient"] = session.train.embedding_gradient
    return {**record, "spikes": watch.events} if watch.events else record


def backward(state: TrainState, session: Session, batch: Batch) -> float:
    """Gradients of the mean loss per target, micro-batch by micro-batch. Returns the mean."""
    targets, (rows, context) = int((batch.targets_BT >= 0).sum()), batch.tokens_BT.shape
    at_once = max(1, (session.train.micro_batch_tokens or batch.targets_BT.size) // context)
    own, losses = session.processes.rows(rows), []
    for start in range(own.start, own.stop, at_once):
        some = slice(start, min(start + at_once, own.stop))
        state.optimizer.layout.accumulate(last=some.stop == own.stop)
        part = Part.of(batch, some, session.device)
        loss, plain = training_loss(
            state.model, part, session.train.objective, session.dtype, targets
        )
        # Read at the end: a card must not be waited for between micro-batches.
        losses.append(plain)
        loss.backward()
    return session.processes.total(sum(plain.item() for plain in losses))


def _advance(
    state: TrainState,
    session: Session,
    moment: Moment,
    batch: Batch,
    loss: float,
    norm: float,
    begin: float,
) -> dict[str, Any]:
    """Count the step and make its ledger line."""
    scored = batch.targets_BT[batch.targets_BT >= 0]
    tokens, size = batch.targets_BT.size, int(session.token_bytes[scored].sum())
    state.step += 1
    state.tokens += tokens
    state.bytes += size
    seconds = time.perf_counter() - begin
    return {
        "step": state.step,
        "tokens": state.tokens,
        "bytes": state.bytes,
        "loss": loss,
        "bits_per_byte": loss * scored.size / math.log(2) / max(1, size),
        "learning_rate": moment.rate,
        "gradient_norm": norm,
        "context": moment.context,
        **({"dropout": moment.dropout} if session.train.dropout else {}),
        **({"mix": moment.mix} if session.decay_batches else {}),
        "digest": hashlib.sha256(np.ascontiguousarray(batch.tokens_BT).tobytes()).hexdigest()[:16],
        "seconds": round(seconds, 6),
        "tokens_per_second": round(tokens / seconds, 1),
        "bytes_per_second": round(size / seconds, 1),
        "peak_memory": peak_memory(session.device),
    }
