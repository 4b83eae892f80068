"""``flyweight``: finds the command, runs it, and turns errors into messages and exit codes.

The table below is all that ``flyweight --help`` needs; a command's module is imported when the
command is used, and imports what is heavy (torch, tokenizers) inside its function.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from flyweight import __version__
from flyweight.spec.errors import FlyweightError, Interrupted

if TYPE_CHECKING:
    import typer


class Command(NamedTuple):
    """Where a command lives: a function with typer's annotations, or a ``typer.Typer``."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "quickstart": Command(
        "flyweight.cli.quickstart", "quickstart", "Raw text to a model that talks, in minutes."
    ),
    "models": Command(
        "flyweight.cli.models", "models", "The models it knows by name, and their size."
    ),
    "data": Command("flyweight.cli.data", "app", "Build a dataset, or look at a batch of one."),
    "train": Command("flyweight.cli.train", "train", "Train a model from a configuration."),
    "resume": Command("flyweight.cli.train", "resume", "Go on with a run that was stopped."),
    "verify": Command("flyweight.cli.verify", "verify", "Prove a run by taking its steps again."),
    "checkpoints": Command(
        "flyweight.cli.checkpoints", "checkpoints", "What a run saved, and what is still there."
    ),
    "generate": Command("flyweight.cli.generate", "generate", "Continue a prompt with a model."),
    "import": Command(
        "flyweight.cli.import_", "import_", "A Hugging Face folder to a model folder."
    ),
    "export": Command(
        "flyweight.cli.export", "export", "A model to a folder for transformers, or to a GGUF file."
    ),
    "eval": Command("flyweight.cli.eval", "evaluate", "Measure a model."),
    "bench": Command("flyweight.cli.bench", "bench", "Time a model on this machine."),
    "report": Command("flyweight.cli.report", "report", "Write a run's page, report.html."),
}
FLAGS = ("--help", "--version")

# The extra that brings a module which the plain installation lacks.
_EXTRAS = {
    "torch": "train",
    "pathspec": "data",
    "pyarrow": "data",
    "selectolax": "data",
    "zstandard": "data",
    "datasets": "huggingface",
    "datatrove": "cluster",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: this process's) and return the exit code.

    0: done. 1: failed, with one message on standard error. 2: unknown command or flag.
    130: interrupted. FLYWEIGHT_DEBUG=1 adds the traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold what is no character, a text what the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:
        # Who read our output has gone (`| head`); nothing is left to flush at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FlyweightError, ImportError, MemoryError, OSError, RuntimeError) as error:
        message = explain(error)
        if message is None:
            raise
        if os.environ.get("FLYWEIGHT_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return 1


def explain(error: Exception) -> str | None:
    """What went wrong and the way out; None where the error is a bug of ours, not the user's."""
    if isinstance(error, FlyweightError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {error or 'a part of the model found no room'}"
    if isinstance(error, RuntimeError):
        # PyTorch's, of a card or of the processor.
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            return None
        return (
            f"there is not enough memory: {str(error).splitlines()[0][:200]}. To train, lower"
            " train.micro_batch_tokens or train.context, or let several processes each hold a part"
            ' of the model (torchrun, distributed.shard = "parameters"); else take a smaller model'
        )
    if isinstance(error, ImportError):
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            return None
        return f"this needs {missing}; install it with: pip install 'flyweight[{_EXTRAS[missing]}]'"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" to write {error.filename}" if error.filename else ""
        return (
            f"no space left{where}; free some and run the command again"
            " (`flyweight resume RUN` continues a training run from its last checkpoint)"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror is not None:
        # A write to an open file names no file.
        return f"a file could not be read or written: {error.strerror}"
    return None


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h"):
        print(_help())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"flyweight {__version__}")
        return 0
    if name not in COMMANDS:
        kind, known = ("flag", FLAGS) if name.startswith("-") else ("command", tuple(COMMANDS))
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"
        print(f"error: unknown {kind} `{name}`; {hint}", file=sys.stderr)
        return 2
    return _invoke(name, rest)


def _invoke(name: str, arguments: list[str]) -> int:
    import typer

    try:
        result = typer.main.get_command(application(name)).main(
            args=arguments,
            prog_name=f"flyweight {name}",
            standalone_mode=False,
            help_option_names=["--help", "-h"],
        )
    except typer.TyperException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        print(f"see `flyweight {name} --help`", file=sys.stderr)
        return error.exit_code
    except typer.Abort:
        return 1
    return result if isinstance(result, int) else 0


def application(name: str) -> typer.Typer:
    """The command ``name`` as a typer application. Imports its module."""
    import typer

    command = COMMANDS[name]
    found = getattr(importlib.import_module(command.module), command.attribute)
    if isinstance(found, typer.Typer):
        return found
    # Help texts hold [section.key=value], which rich would take for markup.
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(found)
    return app


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "Usage: flyweight COMMAND [ARGUMENTS]",
            "",
            "Small language models, from raw text to a model that talks.",
            "",
            "Commands:",
            *(f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()),
            "",
            "Options:",
            f"  {'--version':<{width}}Print the version.",
            f"  {'--help':<{width}}Print this, or after a command what it takes.",
        ]
    )
