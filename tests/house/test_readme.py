"""What the README says is so: its commands exist, its flags are known, its configuration parses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flyweight.cli.main import COMMANDS, application, main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[list[str]]:
    lines = "".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


FLYWEIGHT_LINES = [line[1:] for line in shell_lines() if line[0] == "flyweight"]
TABLE = re.findall(r"^\| `flyweight ([^`]+)` \|", README, re.MULTILINE)


def flags_of(words: list[str]) -> tuple[set[str], str]:
    """The flags that the command named by ``words`` takes, and its name."""
    command: Any = typer.main.get_command(application(words[0]))
    name = words[0]
    if inner := getattr(command, "commands", None):
        command, name = inner[words[1]], f"{words[0]} {words[1]}"
    return {flag for parameter in command.params for flag in parameter.opts}, name


def registered() -> Iterator[str]:
    for name in COMMANDS:
        command: Any = typer.main.get_command(application(name))
        inner = getattr(command, "commands", None)
        yield from (f"{name} {each}" for each in inner) if inner else [name]


@pytest.mark.parametrize("line", FLYWEIGHT_LINES + [t.split() for t in TABLE], ids=" ".join)
def test_commands_and_flags_exist(line: list[str]) -> None:
    assert line[0] in COMMANDS
    flags, _ = flags_of(line)
    used = {word.strip("[]").partition("=")[0] for word in line if word.strip("[").startswith("--")}
    assert used <= flags


def test_the_table_lists_every_command_and_no_other() -> None:
    assert sorted(flags_of(line.split())[1] for line in TABLE) == sorted(registered())


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)", README)) | set(
        re.findall(r"`make ([a-z-]+)", contributing)
    )
    assert {"quickstart", "setup", "test"} <= named <= targets


@pytest.mark.parametrize(
    "line", [line for line in FLYWEIGHT_LINES if line[0] == "models"], ids=" ".join
)
def test_the_cheap_ones_run(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 0
    out, err = capsys.readouterr()
    assert "mobillama" in out and err == ""


def test_the_configuration_is_one_that_train_accepts() -> None:
    pytest.importorskip("torch")
    from flyweight.train.configure import check_tables, model_spec

    (block,) = blocks("toml")
    values = tomllib.loads(block)
    text, data, train = check_tables(values)
    assert data.train and train.minutes == 10
    assert model_spec(values, text, train, 258).depth == 4


def test_the_python_is_python() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_names_what_is_there() -> None:
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)
    named = re.findall(r"^  ([\w.]+)/?  ", tree, re.MULTILINE)
    there = {p.name for p in (ROOT / "flyweight").iterdir() if not p.name.startswith("_")}
    assert set(named) == there - {"py.typed"}


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_its_order(tmp_path: Path) -> None:
    """The real thing, with seconds of training in place of minutes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for source in sorted(library.glob("[a-h]*.py")):
        (notes / source.name).write_bytes(source.read_bytes())
    (tmp_path / "tales.toml").write_text(blocks("toml")[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        assert done.stdout.strip() or command[0] == "-c"

    first = ["quickstart"]
    assert ["make", "quickstart"] in shell_lines()
    for line in [first, *FLYWEIGHT_LINES]:
        words = [re.sub(r"^(train\.minutes=).*", r"\g<1>0.1", word) for word in line]
        if words[0] == "quickstart":
            if "--minutes" in words:
                del words[words.index("--minutes") : words.index("--minutes") + 2]
            words += ["--minutes", "0.1"]
        if "--step" in words:
            words[words.index("--step") + 1] = "1"
        run("-m", "flyweight", *words)
    for block in blocks("python"):
        run("-c", block)
