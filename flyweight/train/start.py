"""Starting and resuming runs: data, model, optimiser and view put together."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from flyweight.data.build import Progress, build
from flyweight.data.mix import inline, weights_of
from flyweight.data.shards import Dataset
from flyweight.files.atomic import write_text
from flyweight.files.index import entries, mend
from flyweight.files.model_folder import write_model_folder
from flyweight.files.run import RunFolder
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.spec.run import RunSpec
from flyweight.train.calibrate import count_flops
from flyweight.train.checkpoints import kept
from flyweight.train.compiled import compile_parts
from flyweight.train.configure import check_tables, fit_context, run_spec
from flyweight.train.corruption import words_of
from flyweight.train.data_worker import OPENER
from flyweight.train.ledger import first_link
from flyweight.train.loop import owes_sample, run_training
from flyweight.train.machine import (
    environment,
    record_machine,
)
from flyweight.train.origin import Origin, from_start
from flyweight.train.prepare import fresh_state, make_session, measured
from flyweight.train.processes import ALONE, Processes
from flyweight.train.session import Session
from flyweight.train.sinks import check_sinks
from flyweight.train.state import WEIGHTS, TrainState
from flyweight.train.view import View

Sampler = Callable[[TrainState, RunFolder, View], None]


def train_run(
    values: dict[str, Any],
    out: Path,
    view: View,
    progress: Progress | None = None,
    sampler: Sampler | None = None,
    processes: Processes = ALONE,
) -> RunFolder:
    """Build the data, fix the configuration, train to the end. ``values``: the TOML's tables.

    Whatever fails before training begins leaves no run folder behind. All ``processes`` call it;
    the first builds the data, and alone writes and shows.
    """
    if processes.size > 1:
        processes.agree(_facts(values), "the run")
    checked = processes.first(lambda: _checked(values, out, view))
    began = out.exists()
    run = RunFolder(out)
    try:
        built = processes.first(lambda: _built(checked, out, view, progress))
        told = processes.told(built and (built[0], built[1].path.absolute()))
        assert told is not None
        spec, place = told
        dataset = processes.each(lambda: built[1] if built else Dataset.open(place))
        processes.agree({"dataset": dataset.fingerprint}, "the data")
        spec, session = measured(spec, dataset, view, processes)
        processes.each(session.check_rows)
        processes.first(lambda: _begun(run, spec, session, dataset))
    except BaseException:
        # Nothing was trained: leave no half-made run that would block the name.
        if processes.leader and not run.config.exists():
            for folder in ("dataset", "dataset.partial", "checkpoints"):
                shutil.rmtree(out / folder, ignore_errors=True)
            for file in ("data.json", "environment.json"):
                (out / file).unlink(missing_ok=True)
            if not began:
                with contextlib.suppress(OSError):
                    out.rmdir()
        raise
    with contextlib.ExitStack() as held:
        processes.first(lambda: held.enter_context(run.lock()))
        return _go(run, spec, session, dataset, view, sampler)


def _facts(values: dict[str, Any]) -> dict[str, str]:
    """What all processes of a job must have alike from the beginning."""
    here = environment()
    versions = {key: str(here[key]) for key in ("flyweight", "python", "torch")}
    tables = {k: v if isinstance(v, dict) else {"": v} for k, v in values.items()}
    settings = {f"{t}.{k}".rstrip("."): repr(v) for t in tables for k, v in tables[t].items()}
    return {**versions, **settings}


def _checked(values: dict[str, Any], out: Path, view: View) -> tuple[dict[str, Any], Origin | None]:
    """The tables with a start's in them, all that does not depend on the data found right."""
    values, origin = from_start(values, view.notice)
    _, _, train = check_tables(values)
    check_sinks(train.sinks)
    _refuse_existing(out)
    return values, origin


def _built(
    checked: tuple[dict[str, Any], Origin | None] | None,
    out: Path,
    view: View,
    progress: Progress | None,
) -> tuple[RunSpec, Dataset]:
    """The run's dataset, and its configuration as far as no measurement is needed."""
    assert checked is not None, "the leader's work"
    values, origin = checked
    text, data, train = check_tables(values)
    out.mkdir(parents=True, exist_ok=True)
    dataset = build(data, text.tokenizer, out / "dataset", progress, opener=OPENER)
    if data.mix is not None:
        for mix in filter(None, (data.mix, data.mix.decay)):
            weights_of(mix, dict(dataset.train.sources))  # what is wrong names the mix's file
        data = data.replace(mix=inline(data.mix))
    for notice in dataset.record.get("notices", []):
        view.notice(notice)
    if origin is not None:
        origin.check_tokenizer(dataset.tokenizer, f"the tokenizer of {dataset.path}")
    fitted = fit_context(values, train, dataset.train.tokens)
    if fitted.context != train.context:
        view.notice(f"the text is short, so train.context = {fitted.context}")
    spec = run_spec(values, text, data, fitted, dataset.tokenizer)
    if origin is not None:
        spec = spec.replace(start=origin.recorded())
    return spec, dataset


def _begun(run: RunFolder, spec: RunSpec, session: Session, dataset: Dataset) -> None:
    """Write what makes the folder a run: from then on `resume` has all that it needs."""
    inside = dataset.path.resolve().is_relative_to(run.path.resolve())
    place = "dataset" if inside else str(dataset.path.resolve())
    recorded = {
        "dataset": place,
        "fingerprint": dataset.fingerprint,
        "order": session.order,
    }
    write_text(run.data, json.dumps(recorded, indent=1) + "\n")
    found = environment(session.processes.size)
    write_text(run.environment, json.dumps(found, indent=1) + "\n")
    RunFolder.create(run.path, spec)


def resume_run(
    path: Path, view: View, sampler: Sampler | None = None, processes: Processes = ALONE
) -> RunFolder:
    """Go on from the newest complete checkpoint, or from step 0 where there is none.

    The number of processes may be another than before.
    """
    run = RunFolder(path)
    spec = processes.each(lambda: RunFolder.open(path).spec())
    if processes.size > 1:
        processes.agree(_facts(spec.values()), "the run")
    if spec.train.steps is None:
        raise FlyweightError(f"{run.config} has no train.steps: it is not a resolved run")
    with contextlib.ExitStack() as held:
        processes.first(lambda: held.enter_context(run.lock()))
        processes.first(run.sweep)
        check: Literal["size", "full"] = "full" if processes.leader else "size"
        dataset = processes.each(lambda: open_dataset(run, check))
        session = make_session(spec, dataset, view, processes)
        processes.each(session.check_rows)
        here = environment(processes.size)
        newest = max(run.steps(), default=0)
        processes.first(lambda: record_machine(run.environment, here, newest))
        return _go(run, spec, session, dataset, view, sampler)


def open_dataset(run: RunFolder, check: Literal["size", "full"] = "size") -> Dataset:
    """The run's dataset, which must be the one that it was begun with."""
    place, fingerprint = run.dataset()
    dataset = Dataset.open(place, check)
    if dataset.fingerprint != fingerprint:
        raise CorruptFileError(
            f"the dataset {dataset.path} changed since {run.path} was begun (fingerprint"
            f" {dataset.fingerprint[:12]}, the run's is {fingerprint[:12]});"
            " restore it, or start a new run"
        )
    return dataset


def write_model(run: RunFolder, spec: RunSpec, dataset: Dataset) -> None:
    """RUN/model: the newest checkpoint's weights as a model folder."""
    weights = run.checkpoint_path(run.steps()[-1]) / WEIGHTS
    words = words_of(spec, dataset.tokenizer)
    write_model_folder(run.model, spec.name, spec.model, weights, words.to_json())


def _go(
    run: RunFolder,
    spec: RunSpec,
    session: Session,
    dataset: Dataset,
    view: View,
    sampler: Sampler | None,
) -> RunFolder:
    processes = session.processes
    if processes.size == 1 and spec.distributed is not None:
        view.notice("[distributed] changes nothing in a process alone; torchrun starts several")
    steps = processes.told(run.steps())
    start = spec.start if not steps else None
    state = processes.each(
        lambda: fresh_state(spec, dataset, session.device, processes, start, view.notice)
    )
    state.chain = first_link(spec, dataset.fingerprint, session.order)
    if steps:
        processes.each(lambda: state.load(run.checkpoint_path(steps[-1])))
        processes.agree({"chain": state.chain}, f"the checkpoint of step {state.step}")
        view.notice(f"going on from step {state.step} of {spec.train.steps}")
    elif start is not None:
        state.save(run)
        view.notice(f"starting from {start.model}; its weights are in checkpoint 0")
    processes.first(lambda: _tidied(run, spec, state.step))
    if sampler is not None:
        session.sample = lambda now: _sampled(sampler, now, run, view)
    if state.step == spec.train.steps and not owes_sample(state, session, run):
        view.notice(f"{run.path} is complete: {state.step} steps")
        processes.first(lambda: write_model(run, spec, dataset))
        return run
    view.start(session.plan.steps, spec.name)
    if spec.train.compile == "on":
        compile_parts(state, session)
    session.flops = count_flops(state, session) if session.peak else 0.0
    try:
        try:
            run_training(state, session, run)
        finally:
            view.stop()
            if processes.leader and run.steps():
                write_model(run, spec, dataset)
    except OSError as error:
        raise _disk_error(error, run) from error
    return run


def _tidied(run: RunFolder, spec: RunSpec, step: int) -> None:
    """The ledger, the checkpoints and their index as they were at ``step``."""
    run.cut_ledger(step)
    mend(run, step)
    run.thin(kept(spec.train.checkpoint, entries(run)))


def _sampled(sampler: Sampler, state: TrainState, run: RunFolder, view: View) -> None:
    """Sample in the leader, from a whole copy of a model that is spread over processes."""
    if (whole := state.gathered()) is not None:
        sampler(whole, run, view)


def _disk_error(error: OSError, run: RunFolder) -> FlyweightError:
    return FlyweightError(
        f"{error.filename or run.path} could not be written: {error.strerror or error}."
        f" What was saved before is whole; make room, then: flyweight resume {run.path}"
    )


def _refuse_existing(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FlyweightError(f"{out} is a file; choose a folder with --out")
    if (out / "run.toml").is_file():
        raise FlyweightError(
            f"{out} holds a run already; choose another folder with --out,"
            f" or go on with it: flyweight resume {out}"
        )
    if out.exists() and any(out.iterdir()):
        raise FlyweightError(
            f"{out} exists already, is not empty and holds no run that was begun;"
            " choose another folder with --out, or empty it"
        )
