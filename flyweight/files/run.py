"""A run's folder: its files, its ledger, its checkpoints, and their integrity."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flyweight.files.atomic import new_folder, sha256, write_text
from flyweight.spec import toml
from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.spec.run import RunSpec

STATE = "state.json"


class RunFolder:
    """Names and reads what DESIGN.md's "a run's folder" lists."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "run.toml"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.ledger = self.path / "ledger.jsonl"
        self.index = self.path / "checkpoints.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.evaluation = self.path / "evaluation.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.sinks = self.path / "sinks"

    @classmethod
    def create(cls, path: Path, spec: RunSpec) -> RunFolder:
        """A run folder with its run.toml. A run that is there already is refused."""
        if (path / "run.toml").exists():
            raise FlyweightError(f"{path} holds a run already; flyweight resume {path} goes on")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.checkpoints.mkdir(exist_ok=True)
        write_text(run.config, toml.dumps(spec.values()))
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        run = cls(path)
        if not run.path.is_dir():
            raise FlyweightError(f"no such run folder: {path}")
        if not run.config.is_file():
            raise FlyweightError(f"{path} is not a run folder: it has no run.toml")
        return run

    def spec(self) -> RunSpec:
        values = toml.read(self.config)
        try:
            return RunSpec.parse(values)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.config}: {error}") from None

    def dataset(self) -> tuple[Path, str]:
        """The dataset's folder and fingerprint, as data.json records them."""
        try:
            recorded = json.loads(self.data.read_text(encoding="utf-8"))
            return self.path / recorded["dataset"], str(recorded["fingerprint"])
        except FileNotFoundError:
            raise FlyweightError(
                f"{self.data} is missing: the run does not say its dataset"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise CorruptFileError(
                f"{self.data} is damaged: not the JSON that a run writes"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training this run meanwhile; a crash lets go of it too."""
        with open(self.config, "rb") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FlyweightError(
                    f"another process is training {self.path}; wait for it or stop it first"
                ) from None
            except (ImportError, OSError):
                pass  # a system or a file system without such locks
            yield

    # Checkpoints: folders whose names are digits alone.

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints / f"{step:06d}"

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        complete = (p.name for p in self.checkpoints.iterdir() if (p / STATE).is_file())
        # A name that this program did not write, as "5" or "½", is no checkpoint's.
        return sorted(int(n) for n in complete if n.isdecimal() and n == f"{int(n):06d}")

    def thin(self, kept: Collection[int]) -> None:
        """Remove all checkpoints but those of the steps ``kept``, and half-written ones."""
        for leftover in self.checkpoints.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        for step in set(self.steps()).difference(kept):
            _remove(self.checkpoint_path(step))

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in (self.path, self.checkpoints, self.model):
            for left in folder.glob(".*.tmp"):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    # The ledger: one JSON object a line.

    def read_ledger(self) -> list[dict[str, Any]]:
        """All whole lines; a last line cut by a crash is left out."""
        return list(json_lines(self.ledger))

    def has_sample(self, step: int) -> bool:
        """Whether samples.jsonl holds a sample of this step."""
        return any(line["step"] == step for line in json_lines(self.samples))

    def cut_ledger(self, step: int) -> None:
        """Drop the lines after ``step``: the steps that a resumed run will take again."""
        steps = [line["step"] for line in json_lines(self.ledger) if line["step"] <= step]
        if steps != list(range(1, step + 1)):
            raise CorruptFileError(
                f"{self.ledger} does not hold the steps 1 to {step} that the checkpoint"
                " follows: the file was changed or lost"
            )
        for path in (self.ledger, self.samples):
            kept = [line for line in json_lines(path) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            if path.is_file() and path.read_bytes() != text.encode():
                write_text(path, text)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that has a step in each; a last one cut by a crash is left out."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
                whole = isinstance(value["step"], int)
            except (ValueError, TypeError, KeyError):
                whole = False
            if whole:
                yield value
            elif file.read(1):
                raise CorruptFileError(f"{path}, line {number}: not the JSON of a step")
            else:
                return


def write_checkpoint(run: RunFolder, step: int, files: dict[str, Any], state: Any) -> Path:
    """Write checkpoints/STEP: ``files`` maps names to functions that write to a path.

    ``state`` is JSON; the sha256 of every file is recorded in state.json, and its own.
    """
    path = run.checkpoint_path(step)
    with new_folder(path) as folder:
        for name, write in files.items():
            write(folder / name)
        digests = {name: sha256(folder / name) for name in sorted(files)}
        write_text(folder / STATE, sealed({**state, "sha256": digests}))
        # One that is there is replaced only when the new one is whole.
        if path.exists():
            _remove(path)
    return path


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint's folder. Without its state.json first, a removal cut short leaves no
    complete one."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def sealed(state: dict[str, Any]) -> str:
    """``state`` as the text of state.json, with the digest of all else in it."""
    digests = {name: value for name, value in state["sha256"].items() if name != STATE}
    content = json.dumps({**state, "sha256": digests}, indent=1, sort_keys=True)
    digests[STATE] = hashlib.sha256(content.encode()).hexdigest()
    return json.dumps({**state, "sha256": digests}, indent=1, sort_keys=True) + "\n"


def read_checkpoint_state(path: Path, check: bool = True) -> dict[str, Any]:
    """state.json of a checkpoint folder, after comparing every file with its digest.

    Raises CorruptFileError that names the file and the way out.
    """
    state_path = path / STATE
    way_out = f"remove {path} to go on from the checkpoint before it"
    try:
        text = state_path.read_text(encoding="utf-8")
        state = json.loads(text)
        whole = text == sealed(state)
    except (FileNotFoundError, NotADirectoryError):
        raise FlyweightError(f"no complete checkpoint at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CorruptFileError(f"{state_path} is damaged; {way_out}")
    digests = {name: digest for name, digest in state["sha256"].items() if name != STATE}
    for name, digest in digests.items() if check else ():
        file = path / name
        if not file.is_file():
            raise CorruptFileError(f"{file} is missing; {way_out}")
        if sha256(file) != digest:
            raise CorruptFileError(f"{file} does not match its recorded digest; {way_out}")
    return state
