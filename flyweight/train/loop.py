"""The training loop: batch, loss, gradients, update, ledger, checkpoint. Nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from typing import Any

import numpy as np
import torch

from flyweight.data.batches import Batch
from flyweight.data.order import keys
from flyweight.files.run import RunFolder
from flyweight.spec.errors import FlyweightError, Interrupted
from flyweight.train.interrupt import Interrupt
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
    every = train.checkpoint.every or steps
    state.model.train()
    started, first = time.perf_counter(), state.step
    processes = session.processes
    file = run.ledger if processes.leader else os.devnull
    with Interrupt(processes) as interrupt, open(file, "a", encoding="utf-8") as ledger:
        while state.step < steps:
            record = take_step(state, session)
            ledger.write(json.dumps(record) + "\n")
            ledger.flush()
            left = (time.perf_counter() - started) / (state.step - first) * (steps - state.step)
            share = session.flops / record["seconds"] / session.peak if session.peak else None
            session.view.step({**record, "eta_seconds": left, "matrix_share": share})
            stop = interrupt.asked() and state.step < steps
            if state.step % every == 0 or state.step == steps or stop:
                # A checkpoint must not outlive, in a power cut, the lines that it follows.
                if processes.leader:
                    os.fsync(ledger.fileno())
                state.save(run)
                if processes.leader:
                    run.thin(train.checkpoint.keep)
            if stop:
                raise Interrupted(
                    f"stopped after step {state.step} of {steps}, which is saved."
                    f" To go on: flyweight resume {run.path}"
                )
            if session.sample and train.sample_every and state.step % train.sample_every == 0:
                session.sample(state)


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
    own, total = session.processes.rows(rows), 0.0
    for start in range(own.start, own.stop, at_once):
        some = slice(start, min(start + at_once, own.stop))
        state.optimizer.layout.accumulate(last=some.stop == own.stop)
        part = Part.of(batch, some, session.device)
        loss, plain = training_loss(
            state.model, part, session.train.objective, session.dtype, targets
        )
        total += plain.item()
        loss.backward()
    return session.processes.total(total)


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
    }
