"""Which files a folder stands for: what git would ignore is ignored; git itself is the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flyweight.cli.main import main
from flyweight.data.files import find
from flyweight.data.html import html_text
from flyweight.data.shards import Dataset

IGNORE = """
# build outputs
*.log
!keep.log
/build/
docs/*.tmp
**/cache
a/**/deep.txt
\\#sharp
[0-9].dat
"""


def repository(root: Path) -> Path:
    (root / "src" / "inner").mkdir(parents=True)
    (root / ".gitignore").write_text(IGNORE)
    (root / "src" / ".gitignore").write_text("!special.log\n/only.txt\ninner/*\n!inner/kept.txt\n")
    names = (
        "x.log keep.log build/out.txt src/build/out.txt docs/a.tmp docs/more/a.tmp cache/c.txt"
        " a/b/cache/c.txt a/deep.txt a/b/c/deep.txt #sharp 5.dat 55.dat src/special.log"
        " src/other.log src/only.txt src/inner/only.txt src/inner/kept.txt src/inner/gone.txt é.txt"
    )
    for name in names.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    git = ["git", "-C", str(root)]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not here")
    return root


@pytest.mark.parametrize("below", ["", "src", "src/inner", "a"])
def test_gitignore_files_are_honoured_as_git_does(tmp_path: Path, below: str) -> None:
    root = repository(tmp_path / "tree")
    listed = subprocess.run(
        ["git", "-C", str(root / below), "ls-files", "-z", "--others", "--exclude-standard", "."],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {
        name for name in listed.stdout.split("\0") if name and not name.endswith(".gitignore")
    }
    files, alone = find(str(root / below), Path())
    assert {file.name for file in files} == wanted
    assert not alone
    assert [file.name for file in files] == sorted(
        (file.name for file in files), key=lambda name: name.split("/")
    )


def test_an_ignored_folder_that_is_named_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("/data/\n*.log\n")
    place = tmp_path / "data" / "texts"
    place.mkdir(parents=True)
    (place / ".gitignore").write_text("draft.txt\n")
    for name in ("kept.txt", "draft.txt", "kept.log"):
        (place / name).write_text(name)
    (tmp_path / "a.log").write_text("a log")
    for named, base in (("data/texts", tmp_path), (str(place), Path()), ("texts/*", place.parent)):
        assert {file.name.split("/")[-1] for file in find(named, base)[0]} == {
            "kept.txt", "kept.log"
        }  # fmt: skip
    assert find(str(tmp_path), Path())[0] == []


def test_patterns_of_ones_own_and_globs(tmp_path: Path) -> None:
    root = repository(tmp_path / "tree")
    names = {file.name for file in find(str(root), Path(), ["*.dat", "docs/"])[0]}
    assert "55.dat" not in names
    assert not any(name.startswith("docs") for name in names)
    assert {f.name for f in find("tree/**/*.txt", tmp_path)[0]} == {
        *("a/deep.txt", "src/build/out.txt", "src/inner/kept.txt", "é.txt")
    } - {"a/deep.txt"}
    assert {f.name for f in find("tree/s*", tmp_path)[0]} == {
        *("src/special.log", "src/build/out.txt", "src/inner/kept.txt")
    }


def test_a_page_is_read_as_a_reader_sees_it() -> None:
    page = (
        "<!doctype html><title>T &amp; x</title><nav>menu<p>more</nav><body><h1>Head <b>bo</b>ld"
        "</h1><p>one\n two<br>three<ul><li>a<li>b</ul><pre>  def f():\n    pass\n\n  x</pre>"
        "<table><tr><td>1<td>2</table><script>bad()</script><!-- c -->tail<footer>foot</footer>"
    )
    assert html_text(page) == (
        "T & x\n\nHead bold\n\none two\nthree\n\na\nb\n\n"
        "  def f():\n    pass\n\n  x\n\n1\n2\n\ntail\n"
    )
    assert html_text("") == html_text("<script>x</script>") == ""
    assert html_text("<div>" * 50_000 + "deep") == "deep\n"


def test_every_format_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    data = tmp_path / "data"
    data.mkdir()
    (data / "a.md").write_text("# markdown\n")
    (data / "b.html").write_bytes("<meta charset=koi8-r><p>страница".encode("koi8-r"))
    (data / "c.csv").write_text('n,text,id\n1,"of two\nlines",first\n2,another,\n')
    (data / "d.tsv").write_text("text\tn\nwith tabs\t1\n")
    parquet.write_table(pyarrow.table({"text": ["p0", "p1"]}), data / "e.parquet", row_group_size=1)
    rows = datasets.Dataset.from_dict({"story": ["s0", "s1"], "id": ["i0", "i1"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "c.toml").write_text(
        "[data]\nheld_out = 0\n"
        '[data.sources.files]\npaths = ["data"]\n'
        '[data.sources.stories]\nhuggingface = "saved"\ntext = "story"\nsplit = "test"\n'
    )
    assert main(["data", "build", str(tmp_path / "c.toml"), "--out", str(tmp_path / "d")]) == 0
    dataset = Dataset.open(tmp_path / "d")
    found = {n: t.decode() for n, t in dataset.train.texts(dataset.tokenizer)}
    assert found == {
        "a.md": "# markdown\n",
        "b.html": "страница\n",
        "first": "of two\nlines",
        "c.csv:4": "another",
        "d.tsv:2": "with tabs",
        "e.parquet:1": "p0",
        "e.parquet:2": "p1",
        "i0": "s0",
        "i1": "s1",
    }
    assert [name for name, _ in dataset.train.sources] == ["files", "stories"]
    capsys.readouterr()
    setting = "data.sources.stories.split=valid"
    build = ["data", "build", str(tmp_path / "c.toml"), setting, "--out", str(tmp_path / "e")]
    assert main(build) == 1
    assert "no split `valid`; it has test, train" in capsys.readouterr().err
    wrong = "data.sources.stories.txt=story"
    assert main([*build[:3], wrong]) == 1
    assert "unknown key `data.sources.stories.txt`; did you mean" in capsys.readouterr().err


def test_standard_input_is_a_source(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"line {n}"}).encode() + b"\n" for n in range(5))
    (tmp_path / "c.toml").write_text(
        '[data]\nheld_out = 0\n[data.sources.in]\npaths = ["-"]\nformat = "jsonl"\n'
    )
    out = tmp_path / "d"
    build = [sys.executable, "-m", "flyweight", "data", "build", str(tmp_path / "c.toml")]
    build += ["--out", str(out)]
    nothing = subprocess.run(build, input=b"", capture_output=True, check=False)
    assert nothing.returncode == 1
    assert b"nothing comes from there" in nothing.stderr
    subprocess.run(build, input=lines, check=True)
    assert Dataset.open(out).train.documents == 5
