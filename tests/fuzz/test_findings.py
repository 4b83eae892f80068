"""What the fuzzers begin with runs, and what they found stays mended: `make fuzz` makes more."""

from __future__ import annotations

from pathlib import Path

import pytest

native = pytest.importorskip("flyweight.engine._native", reason="the engine is not built")

from flyweight.engine.program import Program  # noqa: E402
from flyweight.spec.errors import CorruptFileError, FlyweightError  # noqa: E402

from . import programs, readers  # noqa: E402

FINDINGS = sorted((Path(__file__).parent / "findings").iterdir())
SEEDS = programs.seeds()


def run(program: Program, threads: int) -> None:
    executor = native.Executor(program, threads, "portable")
    sequence = executor.begin([0.5] * program.frequencies)
    for count in (1, 1, 18, 10):
        tokens = [(7 * i + sequence.length) % program.vocab_size for i in range(count)]
        executor.feed([sequence], [tokens], "all")


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_seeds_are_the_programs_and_run(name: str) -> None:
    written = programs.encode(SEEDS[name], 2)
    made, threads = programs.decode(written)
    assert programs.encode(made, threads) == written
    assert [op.kind for op in made.ops] == [op.kind for op in SEEDS[name].ops]
    run(made, threads)


@pytest.mark.parametrize("kind", sorted(readers.READERS))
def test_the_seeds_are_read(kind: str, tmp_path: Path) -> None:
    reader, seed = readers.READERS[kind]
    seed(tmp_path)
    for path in list(tmp_path.iterdir()):
        reader(path)
        cut = tmp_path / "cut"
        cut.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(FlyweightError, match="cut"):
            reader(cut)


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.name)
def test_what_was_found_is_one_clear_error(path: Path, tmp_path: Path) -> None:
    kind = path.name.split("-")[0]
    if kind != "program":
        return readers.read(kind, path.read_bytes(), tmp_path / "file")
    program, threads = programs.decode(path.read_bytes())
    try:
        run(program, threads)
    except FlyweightError as error:
        assert str(error)


def test_weights_that_are_integers_are_refused(tmp_path: Path) -> None:
    file = Path(__file__).parent / "findings" / "safetensors-integers"
    with pytest.raises(CorruptFileError, match="b is in I16; weights come in F16, BF16, F32, F64"):
        readers.read_safetensors(file)
