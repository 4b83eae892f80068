"""What `pip install .` brings along, and how long `import flyweight` takes.

    python benchmarks/install_size.py [--wheel FILE] [--rounds 15] [--json OUT]

Installs the runtime into a fresh virtual environment and counts, by distribution, the bytes of the
wheels (what is downloaded) and of the files that they become, compiled Python included: only what
pip adds to the bare environment. Then the seconds of a whole process that does nothing, that
imports flyweight, and that imports what running a model takes, in turns, medians. ``--wheel``:
an own wheel that is built already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MB = 1e6
IMPORTS = {
    "python alone": "pass",
    "import flyweight": "import flyweight",
    "flyweight.load's module": "import flyweight; flyweight.load",
    "the native engine": "import flyweight.engine.runtime, flyweight.engine._native",
}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


def installed(site: Path) -> dict[str, int]:
    """Bytes of every distribution's files."""
    found = {}
    for distribution in metadata.distributions(path=[str(site)]):
        paths = (Path(str(distribution.locate_file(f))) for f in distribution.files or ())
        found[_plain(distribution.name)] = sum(p.stat().st_size for p in paths if p.is_file())
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def import_seconds(python: Path, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds + 1):
        for name, code in IMPORTS.items():
            begin = time.perf_counter()
            subprocess.run([python, "-c", code], check=True, cwd=python.parent)
            seconds[name].append(time.perf_counter() - begin)
    # The first round fills the system's cache of files.
    return {name: median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        wheels, fresh = Path(temporary) / "wheels", Path(temporary) / "venv"
        pip("wheel", str(arguments.wheel or ROOT), "-w", str(wheels))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
        python = fresh / "bin" / "python"
        source = ("--no-index", "--find-links", str(wheels))
        pip("--python", str(python), "install", *source, "flyweight")
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        answer = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
        sizes = installed(Path(answer.stdout.strip()))
        downloads = {_plain(p.name.split("-")[0]): p.stat().st_size for p in wheels.iterdir()}
        seconds = import_seconds(python, arguments.rounds)
    rows: list[dict[str, Any]] = [
        {"name": name, "download": downloads[name], "installed": size}
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]
    totals = {key: sum(row[key] for row in rows) for key in ("download", "installed")}
    print(f"{'MB':<24}{'download':>10}{'installed':>11}")
    for row in [*rows, {"name": "together", **totals}]:
        print(f"{row['name']:<24}{row['download'] / MB:>10.1f}{row['installed'] / MB:>11.1f}")
    print(f"\nseconds of a process, median of {arguments.rounds}")
    for name, value in seconds.items():
        print(f"{name:<24}{value:>10.3f}")
    if arguments.json:
        result = {"distributions": rows, "together": totals, "seconds": seconds}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
