"""All that a checkpoint must hold, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from flyweight.files.run import RunFolder, read_checkpoint_state, write_checkpoint
from flyweight.files.tensors import read_tensors, write_tensors
from flyweight.model.decoder import Decoder
from flyweight.spec.errors import FlyweightError
from flyweight.train.optimizer import Optimizer

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


@dataclass
class TrainState:
    """Model, optimiser and counters after ``step`` finished steps.

    The data order needs no state: it is a function of seed and step. So do the samples.
    """

    model: Decoder
    optimizer: Optimizer
    # What the state belongs to: the dataset's fingerprint and the configuration's digest.
    identity: dict[str, str] = field(default_factory=dict)
    # The digest of all that the ledger says up to here (train/ledger.py).
    chain: str = ""
    step: int = 0
    tokens: int = 0
    bytes: int = 0
    # What spikes are judged by, and how much of the data was left out for them (JSON).
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, run: RunFolder) -> Path:
        """Write checkpoints/STEP. Equal states make folders equal to the byte.

        All processes must call it; the leader writes.
        """
        files = self.files()
        if not self.optimizer.layout.processes.leader:
            return run.checkpoint_path(self.step)
        counters = {"step": self.step, "tokens": self.tokens, "bytes": self.bytes}
        writers = {name: partial(write_tensors, tensors=tensors) for name, tensors in files.items()}
        remembered = {"chain": self.chain, "extra": self.extra, "identity": self.identity}
        return write_checkpoint(run, self.step, writers, {**counters, **remembered})

    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file of a checkpoint, whole; all processes must call it."""
        weights = self.optimizer.layout.weights(self.model)
        return {WEIGHTS: weights, OPTIMIZER: self.optimizer.tensors()}

    def gathered(self) -> TrainState | None:
        """This state with a whole model; None but in the leader. All processes must call it."""
        layout = self.optimizer.layout
        if layout.processes.size == 1:
            return self
        weights = layout.weights(self.model)
        if not layout.processes.leader:
            return None
        model = Decoder(self.model.spec)
        model.load_state_dict(weights)
        return replace(self, model=model)

    def load(self, path: Path) -> None:
        """Restore from a checkpoint folder after checking digests, identity and shapes."""
        state = read_checkpoint_state(path)
        for key, value in self.identity.items():
            recorded = state["identity"].get(key)
            if recorded != value:
                raise FlyweightError(
                    f"{path} was made with {key} {recorded}, but this run now has {value};"
                    f" restore the original {key}, or start a new run"
                )
        if "chain" not in state:
            raise FlyweightError(
                f"{path} was made by an older Flyweight, which did not chain its ledger;"
                " go on with that version, or start a new run"
            )
        self.optimizer.layout.load_weights(self.model, path / WEIGHTS)
        self.optimizer.load(read_tensors(path / OPTIMIZER))
        self.step, self.tokens, self.bytes = state["step"], state["tokens"], state["bytes"]
        self.chain, self.extra = state["chain"], state["extra"]
