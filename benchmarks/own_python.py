"""An environment of its own for a peer, set up on the first call and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CACHE = Path(os.environ.get("FLYWEIGHT_BENCH_CACHE") or Path.home() / ".cache/flyweight-bench")


def own_python(
    name: str, installs: Sequence[Sequence[str]], settings: Mapping[str, str] | None = None
) -> str:
    """The interpreter of the environment ``name``, into which pip installed each of ``installs``.

    ``settings``: environment variables of the installation. Other wishes than the last time's
    install anew.
    """
    place = CACHE / name
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = json.dumps([*map(list, installs), dict(settings or {})])
    ready = place / ".ready"
    if ready.is_file() and ready.read_text() == wanted:
        return str(python)
    say(f"setting up {name} in {place}, which may take minutes")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    variables = {**os.environ, **(settings or {})}
    for packages in installs:
        subprocess.run([*pip, *packages], check=True, stdout=sys.stderr, env=variables)
    ready.write_text(wanted)
    return str(python)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
