"""The configurations in docs/data.md are ones that build."""

from __future__ import annotations

import gzip
import json
import re
import tomllib
from pathlib import Path

import pytest

from flyweight.cli.main import main
from flyweight.data.shards import Dataset
from flyweight.spec.data import Data

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_pages_example_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("projects/vendor", "crawl", "pages", "notes/deep"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "projects" / ".gitignore").write_text("*.log\n")
    for name in ("a.py", "b.log", "c.min.js", "vendor/d.py"):
        (tmp_path / "projects" / name).write_text(f"print('{name}')\n" * 9)
    rows = [json.dumps({"id": f"w{n}", "text": f"page {n} of the web"}) for n in range(20)]
    with gzip.open(tmp_path / "crawl" / "1.jsonl.gz", "wt") as file:
        file.write("\n".join([*rows, "broken"]))
    (tmp_path / "pages" / "index.html").write_text("<p>a page</p>")
    (tmp_path / "notes" / "deep" / "n.md").write_text("# a note\n" * 30)
    (tmp_path / "c.toml").write_text(BLOCKS[0])
    assert main(["data", "build", str(tmp_path / "c.toml"), "--out", str(tmp_path / "d")]) == 0
    assert "skipped 1: not valid JSON (1.jsonl.gz:21)" in capsys.readouterr().err
    dataset = Dataset.open(tmp_path / "d", check="full")
    names = {entry.name for part in (dataset.train, dataset.held_out) for entry in part.entries}
    assert names == {"a.py", *(f"w{n}" for n in range(20)), "index.html", "deep/n.md"}
    assert "| web | 21 |" in (tmp_path / "d" / "report.md").read_text()


def test_the_other_blocks_are_configurations() -> None:
    assert len(BLOCKS) == 2
    assert Data.parse(tomllib.loads(BLOCKS[1])["data"]).executor.kind == "slurm"


def test_git_is_asked_nothing(tmp_path: Path) -> None:
    """A folder need be no repository for its .gitignore files to count."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / ".gitignore").write_text("no.txt\n")
    (tmp_path / "t" / "no.txt").write_text("no")
    (tmp_path / "t" / "yes.txt").write_text("yes")
    (tmp_path / "c.toml").write_text('[data]\ntrain = ["t"]\nheld_out = 0\n')
    assert main(["data", "build", str(tmp_path / "c.toml"), "--out", str(tmp_path / "d")]) == 0
    assert [entry.name for entry in Dataset.open(tmp_path / "d").train.entries] == ["yes.txt"]
