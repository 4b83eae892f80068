"""``python -m flyweight.cli.data_worker FOLDER``: a worker of `flyweight data build`."""

from __future__ import annotations

import sys
from pathlib import Path

from flyweight.data.crew import serve
from flyweight.data.work import Work

if __name__ == "__main__":
    serve(Work(Path(sys.argv[1])))
