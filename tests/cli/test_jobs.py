"""Jobs of several processes as a person starts them: torchrun, the command line, gloo."""

from __future__ import annotations

import fcntl
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.files.tensors import read_tensors  # noqa: E402

# What blocks share, a tied head, and a sparse table.
CONFIG = """
[model]
width = 32
depth = 3
attention = { heads = 4 }
feedforward = { hidden = 48 }
share = { feedforward = "all" }
tie_embeddings = true
ngrams = { orders = [2, 3], rows = 64, dim = 8 }
[data]
train = ["texts"]
[train]
context = 32
batch_tokens = 384
micro_batch_tokens = 64
steps = 4
threads = 1
precision = "f32"
schedule = { warmup = 2 }
checkpoint = { every = 2, keep = 0 }
sample_every = 1000
[distributed]
shard = "parameters"
"""
DATA = '[data]\ntrain = ["texts"]\n'
# Other data from the decay of the rate on.
SWITCH = """
[data.sources.code]
paths = ["texts"]
[data.sources.more]
paths = ["more"]
[data.mix]
weights = { code = 1.0, more = 0.0 }
decay = { weights = { code = 0.5, more = 0.5 } }
"""
OBJECTIVE = "train.objective={ z_loss = 1e-2, label_smoothing = 0.1, prefix = 0.3, spans = {} }"
# What a run may ask for besides: a file, the number of processes, and overrides.
RECIPES: dict[str, tuple[str, int, list[str]]] = {
    "compiled": ("tiny.toml", 2, ["train.compile=on"]),
    "compiled, split": ("tiny.toml", 2, ["train.compile=on", "distributed.tensor=2"]),
    "split and sharded": ("tiny.toml", 4, ["distributed.tensor=2"]),
    "further tokens, split": ("plain.toml", 2, ["model.ahead=2", "distributed.tensor=2"]),
    "objectives": ("plain.toml", 2, [OBJECTIVE]),
    "other data": ("switch.toml", 2, []),
    "ramps": ("tiny.toml", 2, ["train.ramp=[{ context = 16, batch_tokens = 192, until = 0.5 }]"]),
    "from a model": ("start.toml", 2, ["train.embedding_gradient=0.1"]),
    "a guard": ("tiny.toml", 2, ["train.steps=8", "train.spikes={ window = 8, threshold = 0.01 }"]),
}


class Jobs:
    """Runs commands in ``folder``, in one process or in several of a job."""

    def __init__(self, folder: Path, done: Callable[..., Any]) -> None:
        self.folder, self.done = folder, done
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLYWEIGHT_DEBUG": "0"}
        (folder / "texts").mkdir()
        source = Path(str(textwrap.__file__)).read_text(encoding="utf-8")
        for i in range(40):  # short documents, so that rows hold several
            (folder / f"texts/{i}.py").write_text(source[i * 200 : i * 200 + 170])
            if i < 20:
                (folder / "more").mkdir(exist_ok=True)
                (folder / f"more/{i}.py").write_text(source[-i * 200 - 170 : -i * 200 - 1])
        model = CONFIG[: CONFIG.index("[data]")]
        (folder / "tiny.toml").write_text(CONFIG)
        (folder / "switch.toml").write_text(CONFIG.replace(DATA, SWITCH))
        (folder / "start.toml").write_text(CONFIG.replace(model, '[model]\nstart = "alone"\n'))
        plain = re.sub("ngrams = .*|share = .*", "", model)
        (folder / "plain.toml").write_text(CONFIG.replace(model, plain))

    def start(
        self,
        processes: int,
        *arguments: str,
        more: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> Any:
        several = ["-m", "torch.distributed.run", *(more or ("--standalone",))]
        several += ["--nproc-per-node", str(processes)]
        several = several if processes > 1 or more else []
        return subprocess.Popen(
            [sys.executable, *several, "-m", "flyweight", *arguments],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, processes: int, *arguments: str) -> Any:
        process = self.start(processes, *arguments)
        out, err = process.communicate(timeout=900)
        return self.done(process.returncode, out, err)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, done: Callable[..., Any]) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"), done)


@pytest.fixture(scope="module")
def alone(jobs: Jobs) -> Path:
    """The run of one process; not to be changed."""
    done = jobs(1, "train", "tiny.toml", "--out", "alone").ok()
    assert "[distributed] changes nothing in a process alone" in done.err
    return jobs.folder / "alone"


def ledger(run: Path) -> list[dict[str, Any]]:
    if not (run / "ledger.jsonl").exists():
        return []
    lines = (run / "ledger.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def same_steps(run: Path, other: Path, close: float = 1e-4) -> None:
    """The same batches in the same order, and the same losses but for rounding."""
    ours, theirs = ledger(run), ledger(other)
    assert [line["digest"] for line in ours] == [line["digest"] for line in theirs]
    assert [line["bytes"] for line in ours] == [line["bytes"] for line in theirs]
    losses = [line["loss"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx(losses, rel=close)


def checkpoint(run: Path, step: int) -> dict[str, bytes]:
    folder = run / f"checkpoints/{step:06d}"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut(run: Path, out: Path) -> Path:
    """A copy of a run of four steps as it was after two."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints/000004")
    return out


def test_two_processes_make_the_run_of_one(jobs: Jobs, alone: Path) -> None:
    done = jobs(2, "train", "tiny.toml", "--out", "two")
    assert done.code == 0, done.err
    assert done.out == "two\n", "the leader alone writes"
    assert done.err.count("step 4/4") == 1, "and alone shows"
    two = jobs.folder / "two"
    same_steps(two, alone)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (read_tensors(run / "checkpoints/000004" / file) for run in (two, alone))
        assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
            n: (t.shape, t.dtype) for n, t in theirs.items()
        }
    # One process goes on from what two saved, and two to the bit as they did.
    once = cut(two, jobs.folder / "two-one")
    jobs(1, "resume", str(once)).ok()
    same_steps(once, alone)
    again = cut(two, jobs.folder / "two-two")
    assert jobs(2, "resume", str(again)).code == 0
    assert checkpoint(again, 4) == checkpoint(two, 4)


@pytest.mark.slow
def test_a_run_of_two_is_verified_by_two_or_within_a_tolerance_by_one(jobs: Jobs) -> None:
    assert jobs(2, "train", "tiny.toml", "--out", "proved").code == 0
    done = jobs(2, "verify", "proved", "--json")
    assert done.code == 0, done.err
    found = done.json()
    assert found["exact"] and found["steps_compared"] == 4 and found["tensors_compared"] == [2, 4]
    found = jobs(1, "verify", "proved", "--json").ok().json()
    assert found["inexact_because"] == "the run's number of processes was 2, here it is 1"
    assert found["steps_compared"] == 4 and found["tensors_compared"] == [2, 4]
    ledger = jobs.folder / "proved/ledger.jsonl"
    ledger.write_text(
        ledger.read_text().replace('"step": 3, "tokens": 1', '"step": 3, "tokens": 2')
    )
    done = jobs(2, "verify", "proved")
    assert done.code == 1 and "does not hold" in done.out
    assert "ledger.jsonl, line 3: the chain of digests breaks here" in done.out
    assert done.out.count("does not hold") == 1, "the leader alone speaks"


@pytest.mark.slow
def test_what_two_processes_drew_one_cannot_draw(jobs: Jobs) -> None:
    drop = ["train.dropout=0.1", "model.ngrams.dropout=0.2"]
    assert jobs(2, "train", "tiny.toml", "--out", "drawn", *drop).code == 0
    said = "torchrun --nproc-per-node 2 -m flyweight verify drawn"
    jobs(1, "verify", "drawn").failed("taken by 2 processes", said)
    done = jobs(2, "verify", "drawn", "--json")
    assert done.code == 0 and done.json()["exact"], done.err
    # Gone on with alone, each stretch is its own processes' to verify.
    shutil.rmtree(jobs.folder / "drawn/checkpoints/000004")
    jobs(1, "resume", "drawn").ok()
    assert jobs(1, "verify", "drawn", "--steps", "3:", "--json").ok().json()["exact"]
    jobs(1, "verify", "drawn").failed("taken by 2 and then 1 processes", "--steps A:B")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["none", "optimizer", "gradients", "parameters"])
def test_a_checkpoint_of_four_goes_on_anywhere(jobs: Jobs, alone: Path, level: str) -> None:
    four, shard = jobs.folder / f"four-{level}", f"distributed.shard={level}"
    tensor = "distributed.tensor=2" if level == "optimizer" else "distributed.tensor=1"
    done = jobs(4, "train", "tiny.toml", "--out", str(four), shard, tensor)
    assert done.code == 0, done.err
    same_steps(four, alone)
    numbers = (1, 2, 4) if level == "optimizer" else (1, 2, 3, 4)
    for processes in numbers:
        run = cut(four, jobs.folder / f"four-{level}-{processes}")
        done = jobs(processes, "resume", str(run))
        assert done.code == 0, done.err
        same_steps(run, alone)
    assert checkpoint(run, 4) == checkpoint(four, 4), "the same number, to the bit"


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_the_run_of_one(jobs: Jobs, name: str) -> None:
    config, processes, extra = RECIPES[name]
    extra = [*extra, "train.optimizer={ kind = 'adamw', weight_decay = 0.01 }"]
    once, many = (f"{name.replace(', ', '-')} {n}" for n in (1, processes))
    jobs(1, "train", config, "--out", once, *extra, "train.compile=off").ok()
    jobs(processes, "train", config, "--out", many, *extra).ok()
    same_steps(jobs.folder / many, jobs.folder / once, close=1e-5)
    ours = [line.get("spikes", []) for line in ledger(jobs.folder / many)]
    assert any(ours) == (name == "a guard")


@pytest.mark.slow
def test_without_a_compiler_all_go_on(jobs: Jobs, alone: Path) -> None:
    none = {"CXX": str(jobs.folder / "none"), "TORCHINDUCTOR_CACHE_DIR": str(jobs.folder / "cache")}
    command = ["train", "tiny.toml", "--out", "uncompiled", "train.compile=on"]
    job = jobs.start(2, *command, environment=none)
    _, err = job.communicate(timeout=900)
    assert job.returncode == 0, err
    assert err.count("torch.compile failed, going on without it") == 1, err
    same_steps(jobs.folder / "uncompiled", alone)


@pytest.mark.slow
def test_a_split_run_is_as_any_other(jobs: Jobs) -> None:
    more = ["distributed.tensor=2", "train.sample_every=2"]
    assert jobs(4, "train", "tiny.toml", "--out", "split", *more).code == 0
    run = jobs.folder / "split"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in samples] == [2, 4] and all(line["text"] for line in samples)
    (run / "report.html").unlink()
    jobs(1, "report", "split").ok()
    assert html.escape(samples[0]["prompt"].strip()) in (run / "report.html").read_text()
    assert jobs(1, "generate", "split", "def ", "--max-tokens", "8").ok().out
    found = jobs(1, "verify", "split", "--json").ok().json()
    assert found["inexact_because"] == "the run's number of processes was 4, here it is 1"
    assert found["steps_compared"] == 4 and found["tensors_compared"] == [2, 4]
    assert jobs(4, "verify", "split", "--json").ok().json()["exact"]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "tensor"), [("1", 1), ("0", 1), ("0", 2)])
def test_a_killed_process_ends_the_job_which_then_goes_on(
    jobs: Jobs, victim: str, tensor: int
) -> None:
    run = jobs.folder / f"killed-{victim}-{tensor}"
    long = ["train.steps=100000", "train.compile=off", "train.checkpoint={ every = 20, keep = 2 }"]
    long += [f"distributed.tensor={tensor}"]
    process = jobs.start(2, "train", "tiny.toml", "--out", str(run), *long)
    # Some steps behind a checkpoint, so that there is something to do again.
    wait_for(process, lambda: len(ledger(run)) > 20 and len(ledger(run)) % 20 in range(4, 14))
    os.kill(next(pid for pid in children(process.pid) if rank_of(pid) == victim), signal.SIGKILL)
    begin = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - begin < 30
    assert process.returncode != 0
    left = 1 - int(victim)
    assert re.search(f"error: rank {left} of 2 ends: another process of this job was killed", err)
    assert "to go on, start the same job with: -m flyweight resume RUN" in err
    before, saved = ledger(run), max(int(p.name) for p in (run / "checkpoints").glob("0*"))
    assert len(before) > saved > 0
    going = jobs.start(2, "resume", str(run))
    wait_for(going, lambda: len(ledger(run)) > len(before))
    going.send_signal(signal.SIGINT)
    _, err = going.communicate(timeout=120)
    assert len(re.findall("stopped after step .* which is saved", err)) == 1, err
    after = ledger(run)
    assert len(after) > len(before)
    for line, again in zip(before, after, strict=False):
        assert (line["loss"], line["digest"]) == (again["loss"], again["digest"])


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((each[5:].decode() for each in environment if each.startswith(b"RANK=")), "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            ["train.batch_tokens=96", "train.micro_batch_tokens=32"],
            "a batch of 3 rows does not divide among 2 processes",
        ),
        (["distributed.tensor=3"], "2 processes do not divide into groups of 3"),
        (["model.attention.heads=1", "distributed.tensor=2"], "does not divide"),
        (["distributed.shard=all"], "distributed.shard"),
        (["data.train=['nowhere']"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_once(jobs: Jobs, extra: list[str], said: str) -> None:
    done = jobs(2, "train", "tiny.toml", "--out", "refused", *extra)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], done.err
    assert not (jobs.folder / "refused").exists()


@pytest.mark.slow
def test_a_run_that_another_job_trains_is_refused_once(jobs: Jobs, alone: Path) -> None:
    run = cut(alone, jobs.folder / "taken")
    with open(run / "run.toml", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = jobs(2, "resume", str(run))
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 1
    assert len(errors) == 1 and "another process is training" in errors[0], done.err


def machines(jobs: Jobs, *commands: list[str]) -> str:
    """What machines say that were given different commands, each an agent of torchrun's. All of
    them fail."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    agents = []
    for number, command in enumerate(commands):
        more = ("--nnodes", str(len(commands)), "--node-rank", str(number))
        more += ("--master-addr", "localhost", "--master-port", port)
        agents.append(jobs.start(1, *command, more=more))
    said = "".join(agent.communicate(timeout=600)[1] for agent in agents)
    assert all(agent.returncode for agent in agents)
    return said


@pytest.mark.slow
def test_processes_that_disagree_are_refused(jobs: Jobs, alone: Path) -> None:
    command = ["train", "tiny.toml", "--out", "disagree"]
    said = machines(jobs, [*command, "train.steps=4"], [*command, "train.steps=5"])
    assert "the processes disagree on the run: rank 1 on" in said
    assert "train.steps: 4 here, 5 there" in said
    assert not (jobs.folder / "disagree").exists()
    # The same run, rounded otherwise.
    assert jobs(2, "train", "tiny.toml", "--out", "other").code == 0
    here, there = (
        cut(run, run.with_name(f"{run.name}-half")) for run in (alone, jobs.folder / "other")
    )
    said = machines(jobs, ["resume", str(here)], ["resume", str(there)])
    assert "the processes disagree on the checkpoint of step 2: rank 1 on" in said
    assert len(ledger(here)) == 4, "nothing was changed"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2 in the environment, but no RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "the 2 processes of this job did not meet at ?:?"),
    ],
)
def test_processes_that_torchrun_did_not_start(
    jobs: Jobs, environment: dict[str, str], said: str
) -> None:
    begun = jobs.start(1, "train", "tiny.toml", "--out", "unmet", environment=environment)
    out, err = begun.communicate(timeout=600)
    jobs.done(begun.returncode, out, err).failed(said, "torchrun")
