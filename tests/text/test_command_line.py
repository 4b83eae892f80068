"""A tokenizer named in a configuration, through the command line, whatever its format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flyweight.text.load import load_tokenizer

DATA = Path(__file__).resolve().parents[3] / "shared/data/tokenizer"


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/tokenizer is not beside the repository")
@pytest.mark.parametrize("name", ["sentencepiece/test_model.model", "gpt2"])
def test_a_dataset_is_built_with_the_tokenizer_at_a_path(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DATA / name)
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"Text {number}.\tTabs, 日本 and é.\n" * 9)
    (tmp_path / "c.toml").write_text(
        f"[text]\ntokenizer = {json.dumps(str(DATA / name))}\n"
        "[data]\ntrain = ['0.txt', '1.txt', '2.txt']\nheld_out = ['3.txt']\n"
    )
    command = [sys.executable, "-m", "flyweight", "data", "build", "c.toml", "--out", "d", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokenizer_kind"] == tokenizer.kind
    assert load_tokenizer(tmp_path / "d").digest == tokenizer.digest
    bad = tmp_path / "bad.model"
    bad.write_bytes(b"\x0a\xff")
    done = subprocess.run(
        [*command[:-4], "c.toml", f"text.tokenizer={bad}", "--out", "e"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "bad.model: the file ends within a number" in done.stderr
    assert "Traceback" not in done.stderr
