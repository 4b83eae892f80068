"""The command line as a person meets it: start-up, help, exit codes, messages."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flyweight
from flyweight.cli import main as command_line
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.toml import read

HEAVY = {"torch", "numpy", "tokenizers", "pydantic", "rich", "typer", "transformers", "safetensors"}


def flyweight_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flyweight", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "FLYWEIGHT_DEBUG": "0", **settings},
        check=False,
    )


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after ``code``, and the packages they are in."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    modules = set(done.stderr.split())
    return modules | {module.partition(".")[0] for module in modules}


def test_help_loads_neither_torch_nor_the_kernels_nor_anything_heavy() -> None:
    loaded = loaded_after("from flyweight.cli.main import main\nassert main(['--help']) == 0")
    assert "flyweight.cli.main" in loaded
    assert not loaded & HEAVY
    rooms = {module.split(".")[1] for module in loaded if module.startswith("flyweight.")}
    assert rooms == {"cli", "spec"}


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_a_commands_help_loads_no_torch(name: str) -> None:
    code = f"from flyweight.cli.main import main\nassert main([{name!r}, '--help']) == 0"
    loaded = loaded_after(code)
    assert "typer" in loaded
    assert not loaded & {"torch", "tokenizers", "transformers"}


def test_models_load_no_torch() -> None:
    code = "from flyweight.cli.main import main\nassert main(['models', '--json']) == 0"
    assert not loaded_after(code) & {"torch", "tokenizers", "transformers"}


def test_importing_the_package_is_free_and_its_names_come_when_used() -> None:
    assert not loaded_after("import flyweight") & HEAVY
    assert set(flyweight.__all__) <= set(dir(flyweight))
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = flyweight.laod  # type: ignore[attr-defined]


def test_load_stays_the_function_after_its_module_was_imported() -> None:
    code = (
        "import flyweight.load, flyweight\nassert callable(flyweight.load), flyweight.load\n"
        "from flyweight.load import load\nassert flyweight.load is load\n"
        "from flyweight import load_tokenizer, FlyweightError\nassert callable(load_tokenizer)"
    )
    assert "flyweight" in loaded_after(code)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command_on_standard_output(flag: str) -> None:
    done = flyweight_command(flag)
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in command_line.COMMANDS.items():
        assert name in done.stdout and command.help in done.stdout
    assert flyweight_command().stdout == done.stdout


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: flyweight {name}") and err == ""
    assert "--json" in out or name == "data"


def test_version() -> None:
    done = flyweight_command("--version")
    assert (done.returncode, done.stdout) == (0, f"flyweight {flyweight.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown command `trian`; did you mean `train`?"),
        (["zzz"], "unknown command `zzz`; known: quickstart, "),
        (["--verison"], "unknown flag `--verison`; did you mean `--version`?"),
        (["models", "--jsn"], "--json"),
        (["data", "biuld"], "build"),
        (["train"], "config"),
        (["generate", "x", "--max-tokens", "many"], "max-tokens"),
    ],
)
def test_unknown_commands_and_flags_exit_2_with_a_hint(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("error: ")
    assert "Traceback" not in err


def test_a_users_mistake_is_one_message_and_exit_1(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.toml")
    for arguments in (["train", missing], ["models", "mobilama"], ["resume", str(tmp_path / "no")]):
        done = flyweight_command(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert arguments[1] in done.stderr or "mobillama" in done.stderr
    shown = flyweight_command("models", "mobilama", FLYWEIGHT_DEBUG="1")
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr and "\nerror: no model `mobilama`" in shown.stderr


def test_a_wrong_key_names_the_nearest_and_leaves_no_run(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[train]\nsetps = 3\n")
    done = flyweight_command("train", str(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "unknown key `train.setps`; did you mean `train.steps`?" in done.stderr
    assert not (tmp_path / "run").exists()


def test_errors_become_messages_with_a_way_out(tmp_path: Path) -> None:
    explain = command_line.explain
    assert explain(FlyweightError("so it is")) == "so it is"
    full = explain(OSError(errno.ENOSPC, "No space left on device", "runs/a/model.safetensors"))
    assert full is not None and "runs/a/model.safetensors" in full and "flyweight resume" in full
    denied = explain(PermissionError(errno.EACCES, "Permission denied", "notes.txt"))
    assert denied == "notes.txt: Permission denied"
    # What is a bug of ours keeps its traceback.
    assert explain(ImportError("cannot import name x", name="flyweight.spec")) is None
    assert explain(OSError("something")) is None


def test_without_torch_the_message_names_the_extra(tmp_path: Path) -> None:
    """As on a machine with the runtime alone: torch cannot be found."""
    (tmp_path / "run.toml").write_text("")
    script = (
        "import sys\nsys.modules['torch'] = None\nfrom flyweight.cli.main import main\n"
        f"sys.exit(main(['train', {str(tmp_path / 'run.toml')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "error: this needs torch; install it with: pip install 'flyweight[train]'\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_is_a_message() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flyweight", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flyweight", "models"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_models_as_json_holds_what_it_promises() -> None:
    done = flyweight_command("models", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    entries = json.loads(done.stdout)
    for entry in entries:
        assert {"name", "family", "parameters", "context", "paper", "bytes"} <= entry.keys()
        assert entry["parameters_without_embeddings"] < entry["parameters"]
        assert entry["bytes"].keys() == {"f32", "bf16", "q8_0", "q4_0"}
        sizes = list(entry["bytes"].values())
        assert sizes == sorted(sizes, reverse=True)
        assert entry["cache_bytes_per_token"] > 0
    assert "mobillama-0.5b" in {entry["name"] for entry in entries}


def test_a_models_spec_is_printed_as_toml_that_describes_it(tmp_path: Path) -> None:
    done = flyweight_command("models", "mobillama-0.5b", "--toml")
    assert done.stdout.startswith("# 534,865,920 parameters, 403,793,920 without embeddings\n")
    (tmp_path / "model.toml").write_text(done.stdout)
    spec = ModelSpec.parse(read(tmp_path / "model.toml")["model"])
    as_json = json.loads(flyweight_command("models", "mobillama-0.5b", "--json").stdout)
    assert spec == ModelSpec.parse(as_json["model"])
