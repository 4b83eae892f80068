"""Rules for every file: no path of one machine, no undeclared dependency, a docstring each."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "flyweight"
LICENSES = {"LICENSE"}

# Written in pieces, so that this file does not break its own rule.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"(?<![\w.~$}])/" + r"(work|root|opt|home)/\w",
            r"(?<![\w.])/" + r"tmp/\w",
            "pythonhosted" + r"\.org",
            "pypi" + r"\.org",
            "registry" + r"\.npmjs",
        ]
    )
)


def files() -> list[Path]:
    """What is committed, or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_file_names_a_path_of_one_machine_or_a_registry() -> None:
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number} {match[0]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line", ["open('/" + "tmp/x')", "cd /" + "work/main", "https://" + "pypi" + ".org/simple"]
)
def test_the_rule_sees_what_it_forbids(line: str) -> None:
    assert FORBIDDEN.search(line)


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"no docstring: {silent}"


def test_every_room_is_a_package_and_none_is_called_utils() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"
        assert "util" not in path.stem


def test_what_is_imported_is_declared() -> None:
    """Every import of another project is a dependency, or in an extra for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = (names for extra, names in extras.items() if extra != "test")
    wanted = [*project["dependencies"], *(name for names in users for name in names)]
    declared = {re.split(r"[<>=\[;!~ ]", name)[0].lower() for name in wanted}
    homes = metadata.packages_distributions()
    undeclared = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            else:
                continue
            for name in {each.partition(".")[0] for each in names}:
                if name in sys.stdlib_module_names or name == "flyweight":
                    continue
                if not {home.lower() for home in homes.get(name, [name])} & declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared, "\n".join(sorted(undeclared))


def test_torch_is_pinned_within_the_series_that_the_extra_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [n for n in project["optional-dependencies"]["train"] if n.startswith("torch")]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (pin,) = re.findall(r"^torch==(\d+\.\d+)\.\d+$", constraints, re.MULTILINE)
    major, minor = pin.split(".")
    assert torch == f"torch>={pin},<{major}.{int(minor) + 1}"
