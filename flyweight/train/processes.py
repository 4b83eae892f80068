"""The processes that torchrun started, as one run: who is who, what they agree on, how they end.

    torchrun --nproc-per-node 4 -m flyweight train CONFIG

A process alone is a group of one, for which nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flyweight.spec.errors import ConfigurationError, FlyweightError, Interrupted
from flyweight.train.ending import Ending, is_lost

T = TypeVar("T")
# A process that is not there within this time is given up; building data may take hours.
_WAIT = timedelta(days=2)
# The grace that a process which fails gives the others, which mostly failed alike and say so.
_GRACE = 3.0


@dataclass(frozen=True)
class Processes:
    """This process among ``size``: of each step's rows it takes a share, by its ``index``.

    ``tensor`` consecutive ranks compute the same rows together, each with a part of every block.
    The leader alone writes, shows and logs. All methods that talk must be called by all.
    """

    rank: int = 0
    size: int = 1
    tensor: int = 1
    mesh: DeviceMesh | None = None
    talk: Any = None

    @property
    def leader(self) -> bool:
        return self.rank == 0

    @property
    def copies(self) -> int:
        """How many parts a batch is cut into."""
        return self.size // self.tensor

    @property
    def index(self) -> int:
        """Which of those parts is this process's."""
        return self.rank // self.tensor

    @property
    def draws(self) -> str:
        """The name of this process's random numbers: other rows draw others (data.order.keys)."""
        return f"draws {self.index}" if self.index else "draws"

    def check(self, tensor: int, device: str) -> None:
        """Raise ConfigurationError where these processes cannot be ``arranged`` so."""
        if self.size == 1:
            return
        if device not in ("cpu", "cuda"):
            raise ConfigurationError(
                "several processes train on cpu or cuda, and the device here is"
                f' {device!r}; set train.device = "cpu", or start one process'
            )
        if device == "cuda" and _card() is None:
            raise ConfigurationError(
                f"each process wants a CUDA card of its own, and this machine has"
                f" {torch.cuda.device_count()}; start so many (torchrun --nproc-per-node)"
            )
        if self.size % tensor:
            raise ConfigurationError(
                f"distributed.tensor = {tensor}, but {self.size} processes do not divide into"
                f" groups of {tensor}; start a multiple of {tensor}"
            )

    def arranged(self, tensor: int, device: str) -> Processes:
        """The same processes with ``tensor`` of them working on each row."""
        if self.size == 1:
            return self
        shape, names = (self.size // tensor, tensor), ("data", "tensor")
        mesh = init_device_mesh(device, shape, mesh_dim_names=names)
        return Processes(self.rank, self.size, tensor, mesh, self.talk)

    def rows(self, count: int) -> slice:
        """This process's rows of a batch of ``count``: the whole batch's, whoever takes part."""
        if count % self.copies:
            raise ConfigurationError(
                f"a batch of {count} rows does not divide among {self.copies} processes: set"
                " train.batch_tokens (and train.ramp's) to multiples of train.context times the"
                f" processes, or start a number of them that divides {count}"
            )
        share = count // self.copies
        return slice(self.index * share, (self.index + 1) * share)

    def total(self, value: float) -> float:
        """The sum over the parts of the batch, the same in every process."""
        return self.sum(value) / self.tensor if self.size > 1 else value

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        box = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(box, group=self.talk)
        return box.item()

    def told(self, value: T) -> T:
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.talk)
        return box[0]

    def heard(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.talk)
        return box

    def first(self, work: Callable[[], T]) -> T | None:
        """Let the leader do ``work`` while the others wait. Its failure ends all; it says why."""
        return self.each(work if self.leader else lambda: None)

    def each(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process. If it fails in some, all end, and one says why."""
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        if self.size > 1:
            failed = [rank for rank, bad in enumerate(self.heard(failure is not None)) if bad]
            if failed and failed[0] != self.rank:
                raise SystemExit(1)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]

    def agree(self, facts: dict[str, str], what: str) -> None:
        """Refuse to go on where the processes have different ``facts``; the leader says which."""
        every = self.heard((socket.gethostname(), facts))

        def compare() -> None:
            for rank, (host, theirs) in enumerate(every):
                names = facts.keys() | theirs.keys()
                wrong = sorted(n for n in names if facts.get(n) != theirs.get(n))
                if wrong:
                    listed = "; ".join(
                        f"{n}: {facts.get(n, 'nothing')} here, {theirs.get(n, 'nothing')} there"
                        for n in wrong[:3]
                    )
                    raise ConfigurationError(
                        f"the processes disagree on {what}: rank {rank} on {host} is not as rank"
                        f" 0 ({listed}). Start all with the same versions, files and settings"
                    )

        self.first(compare)


ALONE = Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes of the job that torchrun started this one for; one alone without it.

    When another one dies, this one says so and ends, and so does the job.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if "RANK" not in os.environ:
        raise ConfigurationError(
            f"WORLD_SIZE = {size} in the environment, but no RANK: start the processes with"
            " torchrun, or unset WORLD_SIZE to train in one"
        )
    rank = int(os.environ["RANK"])
    ending, stopped, together = Ending(rank, size), None, False
    try:
        talk = _met(size)
        ending.watch(dist.new_group(backend="gloo", timeout=_WAIT))
        try:
            yield Processes(rank, size, talk=talk)
        except Interrupted as said:
            # In all of them after the same step; the leader has more to write.
            stopped = said
        dist.barrier(group=talk)
        ending.part()
        together = True
    except SystemExit:
        # Another process fails, and says why; torchrun must not end it before.
        ending.quiet = True
        time.sleep(_GRACE)
        os._exit(1)
    except FlyweightError as error:
        ending.quiet = rank > 0
        if rank:
            # Mostly the leader failed alike; torchrun then ends this one before it says it too.
            time.sleep(_GRACE)
            raise type(error)(f"rank {rank} of {size}: {error}") from None
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        ending.lost(error)
    finally:
        ending.quiet = True
        # Where something failed, cards could wait here for exchanges that never end.
        if together or not torch.cuda.is_available():
            with contextlib.suppress(Exception):
                dist.destroy_process_group()
    if stopped is not None:
        if rank:
            # The leader says it; torchrun must not end it before.
            time.sleep(_GRACE)
            raise SystemExit(Interrupted.exit_code)
        raise stopped


def _met(size: int) -> Any:
    """Meet the other processes: over NCCL for tensors on cards, a card each, and over gloo for
    all else, which is the group returned.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(_card() or 0)
    try:
        dist.init_process_group(backend, timeout=_WAIT)
        return dist.new_group(backend="gloo", timeout=_WAIT)
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
        raise FlyweightError(
            f"the {size} processes of this job did not meet at {where}:"
            f" {str(error).splitlines()[0][:200]}. Start all of them with torchrun, at a free port"
            " of a machine that all can reach"
        ) from error


def _card() -> int | None:
    """The number of this process's own CUDA card, if the machine has one for it."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    return own if own < torch.cuda.device_count() else None
