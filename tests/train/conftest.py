"""A small dataset of the standard library's own source, and sessions over it."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.data.batches import Batches  # noqa: E402
from flyweight.data.build import build  # noqa: E402
from flyweight.data.shards import Dataset  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.run import Data, Tokenizer, Train  # noqa: E402
from flyweight.spec.run import Optimizer as OptimizerSpec  # noqa: E402
from flyweight.text.tokenizer import byte_lengths  # noqa: E402
from flyweight.train.optimizer import Optimizer  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

CONTEXT = 32
TOKENS: dict[str, Any] = {
    "vocab_size": 258,
    "width": 16,
    "depth": 2,
    "context": CONTEXT,
    "norm": {"kind": "layer", "bias": True},
    "attention": {"heads": 2},
    "feedforward": {"hidden": 24, "bias": True},
}
PATCHES: dict[str, Any] = {
    **TOKENS,
    "input": {"kind": "patches", "width": 12, "hidden": 16, "size": 6},
    "ngrams": {"orders": [2, 3], "rows": 128, "dim": 4},
    "matches": {"lengths": [2, 4]},
}
MODELS = {"tokens": TOKENS, "patches": PATCHES}


class Silent:
    """A view that remembers the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def start(self, total_steps: int, name: str) -> None: ...
    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def sample(self, step: int, prompt: str, text: str) -> None: ...
    def notice(self, text: str) -> None: ...
    def stop(self) -> None: ...


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("text")
    for module in (argparse, textwrap):
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        for i in range(30):  # short documents, so that rows hold several
            (folder / f"{module.__name__}{i}.py").write_text(text[i * 100 : i * 100 + 70])
    data = Data.parse({"train": [str(folder)]})
    return build(data, Tokenizer(), tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="session")
def fresh() -> Callable[..., TrainState]:
    def make(kind: str, optimizer: str = "muon", seed: int = 0, **changes: Any) -> TrainState:
        model = Decoder(ModelSpec.parse({**MODELS[kind], **changes}))
        init_weights(model, seed)
        spec = OptimizerSpec.parse({"kind": optimizer, "weight_decay": 0.01})
        return TrainState(model, Optimizer(spec, model))

    return make


@pytest.fixture(scope="session")
def session(dataset: Dataset) -> Callable[..., Session]:
    def make(dtype: Any = torch.float32, **changes: Any) -> Session:
        values = {"context": CONTEXT, "batch_tokens": 8 * CONTEXT, "steps": 6, **changes}
        train = Train.parse({"schedule": {"peak": 0.01, "warmup": 2}, **values})
        batches = Batches(dataset, train.context, train.batch_tokens, 5)
        return Session(train, batches, byte_lengths(dataset.tokenizer), dtype, "cpu", Silent())

    return make
