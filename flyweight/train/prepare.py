"""A run's session and state, and what measuring settles before its first step."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from flyweight.data.shards import Dataset
from flyweight.model.decoder import Decoder
from flyweight.model.init import init_weights
from flyweight.spec.run import Distributed, RunSpec, Start
from flyweight.text.tokenizer import byte_lengths
from flyweight.train.calibrate import calibrate
from flyweight.train.corruption import Sentinels
from flyweight.train.kernels import hand_in
from flyweight.train.layout import HERE
from flyweight.train.ledger import first_link, identity_of
from flyweight.train.machine import (
    matrix_peak,
    resolve_device,
    resolve_precision,
)
from flyweight.train.memory import keep_freed_memory
from flyweight.train.mixes import mixes
from flyweight.train.optimizer import Optimizer
from flyweight.train.origin import begin
from flyweight.train.processes import ALONE, Processes
from flyweight.train.session import Session
from flyweight.train.spikes import shrink_embedding_gradient
from flyweight.train.state import TrainState
from flyweight.train.view import View

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CHECKPOINTS = 4


def prepare(
    spec: RunSpec, dataset: Dataset, view: View, processes: Processes = ALONE
) -> tuple[Session, TrainState]:
    """What a run's steps need, and its state as it was before the first one (the weights that it
    started from apart). All processes must call it."""
    session = make_session(spec, dataset, view, processes)
    state = processes.each(lambda: fresh_state(spec, dataset, session.device, session.processes))
    state.chain = first_link(spec, dataset.fingerprint, session.order)
    return session, state


def fresh_state(
    spec: RunSpec,
    dataset: Dataset,
    device: str,
    processes: Processes = ALONE,
    start: Start | None = None,
    notice: Callable[[str], None] = print,
) -> TrainState:
    """The state before step 1; with ``start``, its weights for the random ones."""
    model = Decoder(spec.model)
    init_weights(model, spec.seed)
    if model.slots is not None:
        model.slots.spell(dataset.tokenizer)
    if start is not None:
        begin(model, start, notice)
    layout = HERE
    if processes.size > 1:
        from flyweight.train.distributed import Sharded

        layout = Sharded(model, spec.distributed or Distributed(), processes)
    model.to(device)
    if spec.train.embedding_gradient != 1.0:
        shrink_embedding_gradient(model, spec.train.embedding_gradient)
    identity = {"configuration (run.toml)": identity_of(spec), "dataset": dataset.fingerprint}
    return TrainState(model, Optimizer(spec.train.optimizer, model, layout), identity)


def make_session(
    spec: RunSpec, dataset: Dataset, view: View, processes: Processes = ALONE
) -> Session:
    train = spec.train
    cores = os.cpu_count() or 1
    torch.set_num_threads(train.threads or torch.get_num_threads())
    keep_freed_memory()
    hand_in()
    if train.threads and train.threads > cores:
        view.notice(f"train.threads = {train.threads}, but this machine has {cores} cores")
    device = processes.each(lambda: resolve_device(train))
    dtype = DTYPES[train.precision] if train.precision != "auto" else torch.float32
    # The sentinels of spans are ids without bytes.
    lengths = byte_lengths(dataset.tokenizer)
    more = max(0, spec.model.vocab_size - len(lengths))
    spans = train.objective.spans
    tensor = 1 if spec.distributed is None else spec.distributed.tensor
    processes.each(lambda: processes.check(tensor, device))
    arranged = processes.arranged(tensor, device)
    processes.each(lambda: arranged.rows(train.batch_tokens // train.context))
    main, decay = mixes(spec, dataset)
    return Session(
        train,
        main,
        np.concatenate((lengths, np.zeros(more, lengths.dtype))),
        dtype,
        device,
        view,
        peak=matrix_peak(dtype, device),
        decay_batches=decay,
        sentinels=Sentinels.of(dataset.tokenizer, spec.model.vocab_size, spans.most)
        if spans
        else None,
        processes=arranged,
    )


def measured(
    spec: RunSpec, dataset: Dataset, view: View, processes: Processes
) -> tuple[RunSpec, Session]:
    """Fix threads, precision, steps and compiling, by measurement where they were left open."""
    began = time.perf_counter()
    train = spec.train
    threads = train.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    device = resolve_device(train)
    fixed: dict[str, Any] = {
        "threads": threads,
        "device": device,
        "precision": resolve_precision(train, device),
    }
    spec = processes.told(_with_train(spec, fixed))
    session = make_session(spec, dataset, view, processes)
    scratch = processes.each(lambda: fresh_state(spec, dataset, device, session.processes))
    steps, compiled = calibrate(scratch, session, time.perf_counter() - began)
    # Its parts refer to one another, and would stay beside the run's own for a while.
    del scratch
    gc.collect()
    filled: dict[str, Any] = {"steps": steps, "compile": compiled, "minutes": None, "tokens": None}
    if not spec.train.checkpoint.scheduled:
        checkpoint = {**spec.train.checkpoint.values(), "every": max(1, -(-steps // CHECKPOINTS))}
        filled["checkpoint"] = checkpoint
    if spec.train.sample_every is None:
        filled["sample_every"] = max(1, steps // 6)
    spec = _with_train(spec, filled)
    if late := [step for step in spec.train.checkpoint.at if step > steps]:
        view.notice(f"checkpoint.at = {late}: the run ends before, at step {steps}")
    main, decay = mixes(spec, dataset)
    return spec, replace(session, train=spec.train, batches=main, decay_batches=decay)


def _with_train(spec: RunSpec, changes: dict[str, Any]) -> RunSpec:
    train = {**spec.train.values(), **changes}
    train = {key: value for key, value in train.items() if value is not None}
    return RunSpec.parse({**spec.values(), "train": train})
