"""The same build through datatrove's executors: its own processes, and the job that Slurm gets."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

# Hands a job array to bash, one task after the other, as Slurm would to its nodes.
SBATCH = """
for script; do :; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cp "$script" "$SLURM_SCRIPTS/$(basename $script)"
for i in $(seq 0 $last); do
  grep -q merge_stats "$script" || SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here bash "$script" \\
    >"$SLURM_SCRIPTS/log.$i" 2>&1
done
echo Submitted batch job 7
"""


def corpus(folder: Path) -> None:
    (folder / "a").mkdir()
    for n in range(30):
        (folder / "a" / f"{n}.txt").write_text(f"text {n % 20}\n" * n)
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"b {n}"}) + "\n" for n in range(9))
    )
    (folder / "c.toml").write_text('[data]\ntrain = ["a", "b.jsonl"]\n')


def run(folder: Path, out: str, *settings: str, **more: str) -> subprocess.CompletedProcess[str]:
    build = ["data", "build", str(folder / "c.toml"), "--out", str(folder / out / "d"), *settings]
    return subprocess.run(
        [sys.executable, "-m", "flyweight", *build],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **more},
        timeout=300,
    )


def same(one: Path, other: Path) -> None:
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_datatroves_processes_build_the_same(tmp_path: Path) -> None:
    corpus(tmp_path)
    assert run(tmp_path, "here").returncode == 0
    setting = 'data.executor={ kind = "datatrove", options = { workers = 2 } }'
    done = run(tmp_path, "there", setting)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "here" / "d", tmp_path / "there" / "d")
    wrong = run(tmp_path, "wrong", setting.replace("workers", "wrokers"))
    assert wrong.returncode == 1
    assert "data.executor.options" in wrong.stderr
    assert "wrokers" in wrong.stderr
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n[]\n')
    broken = run(tmp_path, "broken", setting)
    assert broken.returncode == 1
    assert "b.jsonl, line 2: a list, not an object" in broken.stderr


@pytest.mark.slow
def test_ray_builds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    corpus(tmp_path)
    assert run(tmp_path, "here").returncode == 0
    # Its processes on this machine.
    setting = 'data.executor={ kind = "ray", options = { workers = 2, mem_per_cpu_gb = 0.5 } }'
    done = run(tmp_path, "there", setting)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "here" / "d", tmp_path / "there" / "d")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n[]\n')
    broken = run(tmp_path, "broken", setting)
    assert broken.returncode == 1
    assert "b.jsonl, line 2: a list, not an object" in broken.stderr


OPTIONS = '{ time = "00:10:00", partition = "cpu", with_srun = false, qos = "low" }'
SLURM = f'data.executor={{ kind = "slurm", poll = 0.1, options = {OPTIONS} }}'


def commands(folder: Path, **texts: str) -> str:
    """A PATH that has these commands first."""
    place = folder / "bin"
    place.mkdir()
    for name, text in texts.items():
        (place / name).write_text(f"#!/bin/bash\n{text}")
        (place / name).chmod(stat.S_IRWXU)
    return f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    "squeue",
    ["exit 0", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"],
    ids=["over", "forgotten"],
)
def test_a_job_that_slurm_lost_ends_the_build(tmp_path: Path, squeue: str) -> None:
    corpus(tmp_path)
    place = commands(tmp_path, sbatch="echo Submitted batch job 7\n", squeue=squeue)
    lost = run(tmp_path, "there", SLURM, PATH=place)
    assert lost.returncode == 1
    assert "slurm executor ended without read 0" in lost.stderr
    assert "run the command again to go on" in lost.stderr
    assert run(tmp_path, "there").returncode == 0
    assert run(tmp_path, "here").returncode == 0
    same(tmp_path / "here" / "d", tmp_path / "there" / "d")


@pytest.mark.slow
def test_slurms_job_does_the_units(tmp_path: Path) -> None:
    corpus(tmp_path)
    assert run(tmp_path, "here").returncode == 0
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    place = commands(tmp_path, sbatch=SBATCH, scontrol="echo here\n")
    done = run(tmp_path, "there", SLURM, PATH=place, SLURM_SCRIPTS=str(scripts))
    assert done.returncode == 0, done.stderr
    same(tmp_path / "here" / "d", tmp_path / "there" / "d")
    jobs = [file.read_text() for file in scripts.iterdir() if not file.name.startswith("log")]
    assert any("#SBATCH --partition=cpu" in job and "#SBATCH --qos=low" in job for job in jobs)
