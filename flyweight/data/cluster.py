"""A build's units through datatrove's executors: this machine's, Slurm's, Ray's.

A stage is one datatrove pipeline of a single step, a rank of which does one unit in the work
folder, which all machines must see. The executors bring what a cluster needs (job arrays, logs,
requeueing); the units, their results and the dataset are those of a build on one machine.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flyweight.data.crew import Done, open_with
from flyweight.data.work import Work
from flyweight.spec.data import Executor
from flyweight.spec.errors import ConfigurationError, FlyweightError

# After so many looks a file that another machine wrote is here too.
_LATE = 10


class Units:
    """datatrove's pipeline step: rank r does the r-th of ``units``."""

    def __init__(self, folder: Path, opener: str, stage: str, units: Sequence[int]) -> None:
        self.folder, self.opener, self.stage, self.units = folder, opener, stage, list(units)

    def __call__(self, data: Any, rank: int, world_size: int) -> Any:
        unit = self.units[rank]
        try:
            open_with(self.opener, self.folder).run(self.stage, unit)
        except FlyweightError as error:
            _error_file(self.folder, self.stage, unit).write_text(str(error))
            raise
        return data


def work_on_cluster(
    work: Work, stage: str, units: Sequence[int], done: Done, executor: Executor, opener: str
) -> None:
    """Do the units, and wait until they are done. Raises FlyweightError: what a rank raised, or
    what datatrove did."""
    if not units:
        return
    logs = work.folder / "logs" / f"{stage}-{units[0]}-{len(units)}"
    for unit in units:
        _error_file(work.folder, stage, unit).unlink(missing_ok=True)
    (work.folder / stage).mkdir(exist_ok=True)
    step = Units(work.folder.absolute(), opener, stage, units)
    made = _executor(executor, [step], len(units), logs)
    try:
        made.run()
    except Exception as error:  # whatever the cluster's software raises
        _raise_errors(work, stage, units)
        raise FlyweightError(
            f"datatrove's {executor.kind} executor failed at {stage} ({error}); its logs are in"
            f" {logs}; run the command again to go on"
        ) from None
    over = 0
    for unit in units:
        while not work.done(stage, unit):
            _raise_errors(work, stage, units)
            # Slurm's executor has only handed the job in.
            over += executor.kind != "slurm" or _has_left_slurm(made.job_id)
            if over > (_LATE if executor.kind == "slurm" else 0):
                raise FlyweightError(
                    f"datatrove's {executor.kind} executor ended without {stage} {unit}; its logs"
                    f" are in {logs}; run the command again to go on"
                )
            time.sleep(executor.poll)
        done(unit)


def _has_left_slurm(job: str) -> bool:
    """Whether Slurm's queue has the job no more; False where it cannot be asked."""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    unknown = asked.returncode != 0 and "Invalid job id" in asked.stderr
    return unknown or (asked.returncode == 0 and not asked.stdout.strip())


def _error_file(folder: Path, stage: str, unit: int) -> Path:
    return folder / stage / f"{unit:06}.error"


def _raise_errors(work: Work, stage: str, units: Sequence[int]) -> None:
    for unit in units:
        file = _error_file(work.folder, stage, unit)
        if file.is_file():
            raise FlyweightError(file.read_text())


def _executor(executor: Executor, pipeline: list[Any], tasks: int, logs: Path) -> Any:
    try:
        from datatrove.executor.local import LocalPipelineExecutor
        from datatrove.executor.ray import RayPipelineExecutor
        from datatrove.executor.slurm import SlurmPipelineExecutor
    except ImportError:
        raise FlyweightError(
            f"data.executor.kind = {executor.kind!r} needs datatrove: pip install datatrove"
        ) from None
    kinds = {
        "datatrove": LocalPipelineExecutor,
        "slurm": SlurmPipelineExecutor,
        "ray": RayPipelineExecutor,
    }
    try:
        return kinds[executor.kind](
            pipeline=pipeline,
            tasks=tasks,
            logging_dir=str(logs),
            skip_completed=False,
            **executor.options,
        )
    except TypeError as error:
        raise ConfigurationError(f"data.executor.options: {error}") from None
