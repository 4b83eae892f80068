"""A run's folder: the ledger, the checkpoints, and what is said when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.files.run import RunFolder, read_checkpoint_state, write_checkpoint
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.spec.run import RunSpec

SPEC = RunSpec.parse(
    {
        "model": {
            "vocab_size": 258,
            "width": 8,
            "depth": 1,
            "context": 8,
            "attention": {"heads": 1},
            "feedforward": {"hidden": 8},
        }
    }
)
FILES = {"model.safetensors": b"weights " * 9, "optimizer.safetensors": b"moments"}
STATE = {"step": 3, "tokens": 96, "bytes": 90, "identity": {"dataset": "ab"}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", SPEC)


def save(run: RunFolder, step: int = 3) -> Path:
    writers = {name: lambda path, data=data: path.write_bytes(data) for name, data in FILES.items()}
    return write_checkpoint(run, step, writers, {**STATE, "step": step})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_created_once_and_opened_again(run: RunFolder) -> None:
    assert RunFolder.open(run.path).spec() == SPEC
    with pytest.raises(FlyweightError, match="holds a run already; flyweight resume"):
        RunFolder.create(run.path, SPEC)
    with pytest.raises(FlyweightError, match="no such run folder"):
        RunFolder.open(run.path / "absent")
    with pytest.raises(FlyweightError, match=r"has no run\.toml"):
        RunFolder.open(run.checkpoints)


def test_a_checkpoint_gives_back_its_state(run: RunFolder) -> None:
    path = save(run)
    assert path.name == "000003"
    state = read_checkpoint_state(path)
    assert {key: state[key] for key in STATE} == STATE
    assert run.steps() == [3]


def test_equal_states_make_folders_equal_to_the_byte(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.create(tmp_path / "other", SPEC)
    assert content(save(run)) == content(save(other))
    assert content(save(run)) == content(save(other)), "written over, too"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_every_flipped_bit_is_found_and_the_file_named(run: RunFolder, name: str) -> None:
    file = save(run) / name
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(CorruptFileError, match=name) as caught:
            read_checkpoint_state(file.parent)
        assert "remove" in str(caught.value)
        assert "000003" in str(caught.value)
    file.write_bytes(whole[:-1])
    with pytest.raises(CorruptFileError, match=name):
        read_checkpoint_state(file.parent)
    file.write_bytes(whole)
    assert read_checkpoint_state(file.parent)["step"] == 3


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_missing_file_is_named(run: RunFolder, name: str) -> None:
    path = save(run)
    (path / name).unlink()
    with pytest.raises(CorruptFileError, match=f"{name} is missing"):
        read_checkpoint_state(path)


def test_without_its_state_a_checkpoint_is_none(run: RunFolder) -> None:
    path = save(run)
    save(run, 6)
    (run.checkpoint_path(6) / "state.json").unlink()
    assert run.steps() == [3]
    with pytest.raises(FlyweightError, match="no complete checkpoint at"):
        read_checkpoint_state(run.checkpoint_path(6))
    assert content(save(run, 6)).keys() == content(path).keys()
    assert run.steps() == [3, 6]


def test_a_failing_write_leaves_the_checkpoint_that_was_there(run: RunFolder) -> None:
    before = content(save(run))

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(run, 3, {"model.safetensors": full}, STATE)
    assert content(run.checkpoint_path(3)) == before
    assert [path.name for path in run.checkpoints.iterdir()] == ["000003"]


@pytest.mark.parametrize(
    "name", ["5", "0000005", "latest", "000005.old", "-00005", "²", "٠٠٠٠٠٥", ".000005.9.tmp"]
)
def test_only_names_of_digits_as_written_are_checkpoints(run: RunFolder, name: str) -> None:
    save(run)
    other = run.checkpoints / name
    other.mkdir()
    (other / "state.json").write_text("{}")
    assert run.steps() == [3]
    run.thin({3})
    assert run.steps() == [3]
    assert other.exists() == (not name.endswith(".tmp")), "half-written ones are swept away"


def test_a_step_of_seven_digits_is_one_too(run: RunFolder) -> None:
    save(run, 1_000_000)
    save(run, 999_999)
    assert run.steps() == [999_999, 1_000_000]


@given(st.sets(st.integers(0, 2_000_000), max_size=6), st.sets(st.integers(0, 2_000_000)))
def test_thinning_removes_the_others(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], others: set[int]
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("runs"))
    run.checkpoints.mkdir()
    for step in steps:
        folder = run.checkpoint_path(step)
        folder.mkdir()
        (folder / "state.json").write_text("{}")
    some = set(sorted(steps)[::2])
    run.thin(some | others)
    assert run.steps() == sorted(steps & (some | others))
    assert len(list(run.checkpoints.iterdir())) == len(run.steps())


# The ledger


def write_ledger(run: RunFolder, steps: int, rest: str = "") -> None:
    lines = [json.dumps({"step": i + 1, "loss": 5.5 / (i + 1)}) + "\n" for i in range(steps)]
    run.ledger.write_text("".join(lines) + rest)


@pytest.mark.parametrize("rest", ['{"step": 4, "lo', '{"step": 4, "loss": 1.0', "{", "\0\0\0"])
def test_a_last_line_cut_by_a_crash_is_left_out(run: RunFolder, rest: str) -> None:
    write_ledger(run, 3, rest)
    assert [line["step"] for line in run.read_ledger()] == [1, 2, 3]
    run.cut_ledger(3)
    assert run.ledger.read_text().count("\n") == 3


@pytest.mark.parametrize("damage", ["{oops\n", "\n", "5\n", '{"loss": 1}\n', "\0\0\n"])
def test_a_line_damaged_in_the_middle_is_named(run: RunFolder, damage: str) -> None:
    write_ledger(run, 2, damage + '{"step": 3}\n')
    with pytest.raises(CorruptFileError, match=r"ledger\.jsonl, line 3: not the JSON of a step"):
        run.read_ledger()


def test_lines_after_the_checkpoint_are_cut(run: RunFolder) -> None:
    write_ledger(run, 5)
    whole = run.ledger.read_text()
    run.samples.write_text("".join(json.dumps({"step": n, "text": "é"}) + "\n" for n in (2, 4)))
    run.cut_ledger(3)
    assert run.ledger.read_text() == "".join(whole.splitlines(keepends=True)[:3])
    assert [json.loads(line)["step"] for line in run.samples.read_text().splitlines()] == [2]


def test_a_ledger_that_lacks_steps_is_refused_and_not_touched(run: RunFolder) -> None:
    write_ledger(run, 5)
    whole = run.ledger.read_text()
    with pytest.raises(CorruptFileError, match="does not hold the steps 1 to 6"):
        run.cut_ledger(6)
    assert run.ledger.read_text() == whole
    gap = "".join(whole.splitlines(keepends=True)[i] for i in (0, 1, 3, 4))
    run.ledger.write_text(gap)
    with pytest.raises(CorruptFileError, match="does not hold the steps 1 to 4"):
        run.cut_ledger(4)
    assert run.ledger.read_text() == gap


def test_a_run_says_where_its_dataset_is(run: RunFolder) -> None:
    with pytest.raises(FlyweightError, match=r"data\.json is missing"):
        run.dataset()
    run.data.write_text('{"dataset": "dataset", "fingerprint": "f0"}')
    assert run.dataset() == (run.path / "dataset", "f0")
    for damaged in ('{"dataset": "d"}', "{", "[]"):
        run.data.write_text(damaged)
        with pytest.raises(CorruptFileError, match=r"data\.json is damaged"):
            run.dataset()
