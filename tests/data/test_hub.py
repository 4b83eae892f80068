"""Datasets of a hub: the library's own client against a server that speaks its protocol."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from flyweight.data.shards import Dataset

pytest.importorskip("datasets")

COMMIT, OLDER = "a" * 40, "b" * 40
TALES = [{"key": f"t{n}", "story": f"tale number {n} of many, \u00e9"} for n in range(60)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# revision -> path -> content
FILES = {
    COMMIT: {"data/train.jsonl": lines(TALES), "data/test.jsonl": lines(TALES[:3])},
    OLDER: {"data/train.jsonl": lines(TALES[:20])},
}
API, DATA = "/api/datasets/me/tales", "/datasets/me/tales/resolve/"


class Hub(http.server.BaseHTTPRequestHandler):
    """The dataset me/tales: what it is, which files it has, and these, by ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path == API or path.startswith(f"{API}/revision/"):
            revision = path.rpartition("/")[2]
            commit = revision if revision in FILES else COMMIT
            self._json({"id": "me/tales", "sha": commit, "siblings": []})
        elif path.startswith(f"{API}/tree/"):
            commit, _, folder = path.removeprefix(f"{API}/tree/").partition("/")
            self._json(list(self._tree(FILES[commit], folder)))
        elif path.startswith(DATA):
            commit, _, name = path.removeprefix(DATA).partition("/")
            self._file(FILES.get(commit, {}).get(name), commit)
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _tree(self, files: dict[str, bytes], folder: str) -> Iterator[dict[str, object]]:
        if not folder:
            yield {"type": "directory", "oid": COMMIT, "size": 0, "path": "data"}
            return
        for path, data in files.items():
            oid = hashlib.sha1(data).hexdigest()
            yield {"type": "file", "oid": oid, "size": len(data), "path": path}

    def _file(self, data: bytes | None, commit: str) -> None:
        if data is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": hashlib.sha1(data).hexdigest(), "X-Repo-Commit": commit}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, data, headers)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        stop = min(len(data), int(last or len(data)) + 1)
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
        self._answer(206, data[int(first) : stop], headers)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def build(
    folder: Path, hub: str, source: str, text: str = "story"
) -> subprocess.CompletedProcess[str]:
    (folder / "c.toml").write_text(
        f'[data]\nheld_out = 0\n[data.sources.tales]\ntext = "{text}"\nid = "key"\n{source}\n'
    )
    command = ["data", "build", str(folder / "c.toml"), "--out", str(folder / "d"), "--restart"]
    mine = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "flyweight", *command],
        env={**os.environ, **mine, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path, hub: str) -> None:
    done = build(tmp_path, hub, 'huggingface = "me/tales"')
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "d")
    texts = {name: text.decode() for name, text in dataset.train.texts(dataset.tokenizer)}
    assert texts == {row["key"]: row["story"] for row in TALES}
    other = build(tmp_path, hub, 'huggingface = "me/none"')
    assert other.returncode == 1
    assert "the dataset me/none could not be read from the hub" in other.stderr


@pytest.mark.slow
def test_a_revision_and_a_split_are_ones_own(tmp_path: Path, hub: str) -> None:
    source = f'huggingface = "me/tales"\nrevision = "{OLDER}"'
    assert build(tmp_path, hub, source).returncode == 0
    assert Dataset.open(tmp_path / "d").train.documents == 20
    (tmp_path / "d").rename(tmp_path / "older")
    assert build(tmp_path, hub, 'huggingface = "me/tales"\nsplit = "test"').returncode == 0
    assert Dataset.open(tmp_path / "d").train.documents == 3
    (tmp_path / "d").rename(tmp_path / "test")
    wrong = build(tmp_path, hub, 'huggingface = "me/tales"', text="tale")
    assert wrong.returncode == 1
    assert "me/tales: no `tale` (it has key, story); name the column with `text`" in wrong.stderr
