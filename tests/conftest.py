"""What holds for every test, and the command line in this process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from flyweight.cli.main import main

# No test is timed: how long an example takes says more of the machine than of the code.
settings.register_profile("flyweight", deadline=None)
settings.load_profile("flyweight")
# A job in the background ignores Ctrl-C, and so would the commands that its tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Done:
    """A finished command: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def ok(self) -> Done:
        assert self.code == 0, self.err
        assert "Traceback" not in self.err
        return self

    def failed(self, *said: str) -> Done:
        """It failed with one message, as a user should see it, that says all of ``said``."""
        assert self.code == 1, (self.code, self.err)
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        first = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        assert len(first) == 1, self.err
        message = "\n".join(lines[first[0] :])
        for part in said:
            assert part in message, (part, message)
        assert self.out == ""
        return self

    def json(self) -> Any:
        """Standard output, which must be one JSON object and nothing else."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture(scope="session")
def done() -> type[Done]:
    """For those who run commands in processes of their own: a folder's tests import nothing of
    another's."""
    return Done


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The command line in this process, in ``tmp_path``: for the many messages, where a process
    each would take minutes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        return Done(code, *capsys.readouterr())

    return run
