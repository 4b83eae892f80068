"""One model in many processes trains as in one: on gloo, in float32, over several steps."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.data.shards import Dataset  # noqa: E402
from flyweight.spec.errors import ConfigurationError  # noqa: E402
from flyweight.train.processes import Processes  # noqa: E402

PROGRAM = Path(__file__).with_name("spread.py")
BASE: dict[str, Any] = {
    "vocab_size": 258,
    "width": 32,
    "depth": 3,
    "context": 32,
    "init": {"kind": "normal", "std": 0.05},
    "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_gain": True},
    "feedforward": {"hidden": 48},
}
BIASED = {
    **BASE,
    "norm": {"kind": "layer", "bias": True},
    "attention": {"heads": 4, "bias": True},
    "feedforward": {"hidden": 48, "bias": True},
}
MODELS: dict[str, dict[str, Any]] = {
    "tied, one feed-forward": {**BIASED, "share": {"feedforward": "all"}, "tie_embeddings": True},
    "blocks twice": {**BASE, "share": {"block": "adjacent", "repeat": 2}},
    "low-rank updates": {**BASE, "share": {"feedforward": "interior", "lora_rank": 4}},
    "alibi": {**BASE, "position": {"kind": "alibi"}},
    "patches": {
        **BIASED,
        "input": {"kind": "patches", "width": 12, "hidden": 16, "size": 6},
        "ngrams": {"orders": [2, 3], "rows": 128, "dim": 4},
        "matches": {"lengths": [2, 4]},
    },
}
ARCHITECTURES = tuple(MODELS)
LEVELS = ("none", "optimizer", "gradients", "parameters")
# The loss must be this close, relatively. Muon orthogonalises in bfloat16, where a last digit of
# the gradient may turn a digit that counts.
CLOSE = {"adamw": 1e-5, "muon": 1e-4}


def case(model: str, optimizer: str, shard: str, tensor: int = 1, **more: Any) -> dict[str, Any]:
    names = {"name": model, "optimizer": optimizer, "shard": shard, "tensor": tensor}
    return {**names, "model": MODELS[model], **more}


# What a run may ask for besides, each over a model that has the parts for it.
SPANS = {"spans": {"share": 0.7, "most": 4}, "prefix": 0.4}
TERMS = {"z_loss": 1e-2, "label_smoothing": 0.1}
MUP = {"init": {"kind": "mup", "std": 0.05, "base_width": 16}, "scale": {"embedding": 4.0}}
RAMP = [{"context": 16, "until": 0.5}, {"batch_tokens": 192, "until": 0.75}]
GUARD = {"window": 8, "threshold": 0.01, "tries": 2}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ahead": ({**BASE, "ahead": 2}, {"objective": {**TERMS, "ahead": 0.5}}),
    "spans and a prefix": ({**BASE, "vocab_size": 264}, {"objective": SPANS}),
    "mup": ({**BASE, **MUP}, {"embedding_gradient": 0.1}),
    "ramps": ({**BASE, "attention": {"heads": 4, "window": 7}}, {"ramp": RAMP}),
    "spikes": ({**BASE, "position": {"kind": "learned"}}, {"spikes": GUARD}),
    "spikes, skipped": ({**BASE, "branches": "parallel"}, {"spikes": {**GUARD, "skip": 2}}),
}
# All of the engine's kernels at work, attention's gradient too. Gradients are rounded to bfloat16
# in each process, and AdamW's first steps have the size of the rate whatever the gradient's.
KERNELS: dict[str, Any] = {**BASE, "feedforward": {"kind": "relu2", "hidden": 48}}
ROUNDED = {"train": {"precision": "bf16"}, "close": 2e-3, "tensors": 0.3}
MODELS["kernels"] = KERNELS
MODELS |= {name: model for name, (model, _) in RECIPES.items()}


# A rate at which the third step's norm leaps.
LEAPS = {
    name: {"schedule": {"peak": peak, "warmup": 1}}
    for name, peak in (("adamw", 0.05), ("muon", 0.02))
}


def recipes(optimizer: str, shard: str, tensor: int = 1) -> list[dict[str, Any]]:
    found = []
    for name, (_, train) in RECIPES.items():
        train = {**train, **(LEAPS[optimizer] if "spikes" in train else {})}
        found.append(case(name, optimizer, shard, tensor, micro=64, train=train))
    return found


QUICK = [
    case("patches", "muon", "parameters", micro=64),
    case("patches", "adamw", "none"),
    case("tied, one feed-forward", "adamw", "optimizer", micro=64),
    case("tied, one feed-forward", "muon", "gradients"),
    case("blocks twice", "adamw", "parameters", micro=64),
    case("alibi", "adamw", "none", tensor=2),
    *recipes("adamw", "parameters")[:2],
    recipes("adamw", "parameters", tensor=2)[0],
    case("kernels", "adamw", "parameters", micro=64, **ROUNDED),
    case("kernels", "adamw", "none", tensor=2, micro=64, **ROUNDED),
]
# In one process each of these would be one of two or four.
ALL = [
    case(model, optimizer, shard, micro=micro)
    for model in ARCHITECTURES
    for optimizer in CLOSE
    for shard in LEVELS
    for micro in (None, 64)
]
SPLIT = [
    case(model, optimizer, shard, tensor=2, micro=64)
    for model in ARCHITECTURES
    if model != "low-rank updates"
    for optimizer in CLOSE
    for shard in LEVELS
]


@pytest.fixture(scope="module")
def spread() -> Any:
    spec = importlib.util.spec_from_file_location("spread", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Callable[..., list[Any]]:
    """What the cases come to in so many processes."""

    def run(processes: int, cases: list[dict[str, Any]]) -> list[Any]:
        out = tmp_path_factory.mktemp("job")
        (out / "cases.json").write_text(json.dumps(cases))
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(processes), str(PROGRAM)]
        given = [str(out / "cases.json"), str(dataset.path), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*start, *given], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [torch.load(out / f"{number}.pt") for number in range(len(cases))]

    return run


def compare(found: dict[str, Any], alone: dict[str, Any], tried: dict[str, Any]) -> float:
    """The largest relative difference of a loss; everything else is asserted."""
    close = tried.get("close", CLOSE[tried["optimizer"]])
    near = tried.get("tensors", 2e-3 if tried["optimizer"] == "adamw" else 0.1)
    what = {k: v for k, v in tried.items() if k != "model"}
    worst = 0.0
    for ours, theirs in zip(found["steps"], alone["steps"], strict=True):
        same = ("digest", "window", "context", "bytes")
        assert [ours[key] for key in same] == [theirs[key] for key in same], "the same batches"
        assert len(ours.get("spikes", [])) == len(theirs.get("spikes", [])), what
        worst = max(worst, abs(ours["loss"] / theirs["loss"] - 1))
        # A norm near the end of its precision says less than the loss.
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=30 * close), what
    assert worst < close, (what, worst)
    assert found["tensors"].keys() == alone["tensors"].keys()
    for name, tensor in alone["tensors"].items():
        other = found["tensors"][name]
        assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype), (what, name)
        scale = float(tensor.abs().max()) + 1e-12
        off = float((other.double() - tensor.double()).abs().max()) / scale
        assert off < near, (what, name, off)
    return worst


def check(spread: Any, job: Callable[..., list[Any]], data: Dataset, n: int, cases: Any) -> None:
    alone: dict[Any, Any] = {}
    worst = dict.fromkeys(CLOSE, 0.0)
    for tried, found in zip(cases, job(n, cases), strict=True):
        key = tried["name"], tried["optimizer"]
        if key not in alone:
            alone[key] = spread.train({**tried, "micro": None, "compile": False}, data.path)
            spiked = any("spikes" in step for step in alone[key]["steps"])
            assert spiked == tried["name"].startswith("spikes"), "the guard has something to do"
        off, kind = compare(found, alone[key], tried), tried["optimizer"]
        if "close" not in tried:
            worst[kind] = max(worst[kind], off)
    print(f"{n} processes, {len(cases)} cases: largest relative difference of a loss {worst}")


def test_two_processes_train_as_one(
    spread: Any, job: Callable[..., list[Any]], dataset: Dataset
) -> None:
    check(spread, job, dataset, 2, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_level_trains_every_model_as_one(
    spread: Any, job: Callable[..., list[Any]], dataset: Dataset, processes: int
) -> None:
    check(spread, job, dataset, processes, ALL)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_split_heads_train_as_one(
    spread: Any, job: Callable[..., list[Any]], dataset: Dataset, processes: int
) -> None:
    check(spread, job, dataset, processes, SPLIT)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("processes", "tensor"), [(2, 1), (2, 2), (4, 2)])
def test_every_recipe_trains_as_one(
    spread: Any,
    job: Callable[..., list[Any]],
    dataset: Dataset,
    processes: int,
    tensor: int,
    optimizer: str,
) -> None:
    check(spread, job, dataset, processes, recipes(optimizer, "parameters", tensor))


@pytest.mark.slow
def test_compiled_blocks_train_as_one(
    spread: Any, job: Callable[..., list[Any]], dataset: Dataset
) -> None:
    shared = ("tied, one feed-forward", "blocks twice")
    compiled = [
        case(model, "adamw", shard, tensor, compile=True)
        for model in shared
        for shard, tensor in (("none", 1), ("parameters", 1), ("none", 2))
    ]
    compiled.append({**recipes("adamw", "parameters")[0], "compile": True})
    check(spread, job, dataset, 2, compiled)


@pytest.mark.parametrize(
    ("size", "tensor", "rank", "rows"),
    [(1, 1, 0, (0, 12)), (4, 1, 3, (9, 12)), (4, 2, 1, (0, 6)), (4, 2, 2, (6, 12))],
)
def test_each_process_has_its_rows(
    size: int, tensor: int, rank: int, rows: tuple[int, int]
) -> None:
    assert Processes(rank, size, tensor).rows(12) == slice(*rows)


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a batch of 9 rows does not divide among 2"):
        Processes(0, 4, 2).rows(9)
    with pytest.raises(ConfigurationError, match="4 processes do not divide into groups of 3"):
        Processes(0, 4).check(3, "cpu")
    with pytest.raises(ConfigurationError, match="several processes train on cpu or cuda"):
        Processes(0, 4).check(2, "mps")
