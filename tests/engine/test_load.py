"""Which engine runs a model, and that nothing of PyTorch is touched on the native one's way."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("flyweight.engine._native", reason="the engine is not built")

import flyweight  # noqa: E402
from flyweight.cli.main import main  # noqa: E402
from flyweight.engine.runtime import NativeModel  # noqa: E402
from flyweight.files.model_folder import write_model_folder  # noqa: E402
from flyweight.files.run import RunFolder, write_checkpoint  # noqa: E402
from flyweight.files.tensors import write_tensors  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.model.runtime import TorchModel  # noqa: E402
from flyweight.spec.errors import FlyweightError  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.run import RunSpec  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402
from flyweight.text.gguf_tokens import placeholder  # noqa: E402
from flyweight.text.subword import SubwordTokenizer  # noqa: E402

PROMPT = "def heappush(heap, item):"
LLAMA: dict[str, Any] = {
    "vocab_size": 258,
    "width": 32,
    "depth": 2,
    "context": 128,
    "attention": {"heads": 4, "kv_heads": 2},
    "feedforward": {"kind": "swiglu", "hidden": 64},
    "init": {"std": 0.3},
}
BYTES = LLAMA | {
    "input": {"kind": "patches", "width": 32, "hidden": 32, "size": 6},
    "ngrams": {"orders": [2, 3], "rows": 64, "dim": 8},
    "matches": {"lengths": [1, 3]},
}


def decoder(values: dict[str, Any]) -> Decoder:
    model = Decoder(ModelSpec.parse(values)).eval()
    init_weights(model, 1)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A model folder of these values."""

    def make(values: dict[str, Any], name: str = "model") -> Path:
        model = decoder(values)
        weights = tmp_path / f"{name}.safetensors"
        write_tensors(weights, model.state_dict())
        words = ByteTokenizer().to_json()
        write_model_folder(tmp_path / name, name, model.spec, weights, words)
        return tmp_path / name

    return make


@pytest.fixture
def run(folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A run's folder with one checkpoint of the byte model."""
    made = folder(BYTES, "bytes")
    made_run = RunFolder.create(tmp_path / "run", RunSpec.parse({"name": "r", "model": BYTES}))
    whole = (made / "model.safetensors").read_bytes()
    files = {"model.safetensors": lambda path: path.write_bytes(whole)}
    write_checkpoint(made_run, 3, files, {"step": 3})
    made.rename(made_run.model)
    return made_run.path


@pytest.fixture
def theirs(folder: Callable[..., Path], tmp_path: Path) -> Path:
    assert main(["export", str(folder(LLAMA)), str(tmp_path / "hf"), "--to", "hf"]) == 0
    return tmp_path / "hf"


@pytest.fixture
def gguf(folder: Callable[..., Path], tmp_path: Path) -> Path:
    out = tmp_path / "model.gguf"
    arguments = ["export", str(folder(LLAMA, "exported")), str(out), "--to", "gguf"]
    assert main([*arguments, "--type", "f32"]) == 0
    return out


def without_torch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line where `import torch` fails, as it does where there is none."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from flyweight.cli.main import main\n"
        f"raise SystemExit(main({list(arguments)!r}))"
    )
    whole = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=whole)


@pytest.mark.parametrize("kind", ["run", "gguf", "theirs", "folder"])
def test_text_comes_without_torch_and_is_the_torch_models(
    kind: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(kind)
    path = str(made(LLAMA) if kind == "folder" else made)
    options = ("--max-tokens", "24", "--min-tokens", "24", "--temperature", "0", "--json")
    done = without_torch("generate", path, PROMPT, *options)
    assert done.returncode == 0, done.stderr
    expected = flyweight.load(path, engine="torch").generate(PROMPT, 24, 24)
    assert json.loads(done.stdout)["text"] == expected
    assert len(expected) >= 8


def test_garbage_is_looked_for_again_after_loading(gguf: Path) -> None:
    for path in (gguf, gguf.parent / "absent"):
        with suppress(FlyweightError):
            flyweight.load(path)
        assert gc.isenabled()
    gc.disable()
    try:
        flyweight.load(gguf)
        assert not gc.isenabled(), "who turned it off wants it off"
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": {"fraction": 0.5}},
        {"position": {"scaling": {"kind": "llama3", "factor": 4, "original": 32}}},
        {"attention": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_gain": True}},
        {"share": {"feedforward": "all"}},
    ],
)
def test_a_gguf_talks_without_numpy(
    folder: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Which takes as long to import as a small model to load."""
    gguf = tmp_path / "model.gguf"
    made = folder(LLAMA | changes, "exported")
    assert main(["export", str(made), str(gguf), "--to", "gguf", "--type", "f32"]) == 0
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        f"import flyweight; model = flyweight.load({str(gguf)!r})\n"
        f"print(model.generate({PROMPT!r}, 24, 24), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == flyweight.load(gguf).generate(PROMPT, 24, 24), done.stderr


def test_the_torch_engine_says_what_it_lacks(run: Path) -> None:
    done = without_torch("generate", str(run), "a", "--engine", "torch")
    assert done.returncode == 1
    assert "flyweight[train]" in done.stderr and "Traceback" not in done.stderr


def test_the_engine_is_chosen(folder: Callable[..., Path], run: Path) -> None:
    path = folder(LLAMA)
    assert isinstance(flyweight.load(path), NativeModel)
    assert isinstance(flyweight.load(run), NativeModel)
    assert isinstance(flyweight.load(f"{run}@3", engine="native"), NativeModel)
    assert isinstance(flyweight.load(path, engine="torch"), TorchModel)
    with pytest.raises(FlyweightError, match="engine = trch; did you mean `torch`"):
        flyweight.load(path, engine="trch")
    for threads in (0, -1, 10_000, 10**15):
        for engine in ("native", "torch"):
            with pytest.raises(FlyweightError, match=f"threads = {threads}: 1 to 1024 is wanted"):
                flyweight.load(path, threads=threads, engine=engine)
    with pytest.raises(FlyweightError, match="format = q8_0 is the native engine's"):
        flyweight.load(path, engine="torch", format="q8_0")
    with pytest.raises(FlyweightError, match="format = q9_0; did you mean"):
        flyweight.load(path, format="q9_0")


SLOTS = LLAMA | {
    "vocab_size": 300,
    "input": {"kind": "slots", "slots": 6, "width": 16, "hidden": 32, "heads": 2}
    | {"front_depth": 2, "decoder_depth": 2},
}


def slot_folder(path: Path, slots: int = 6) -> Path:
    """A model of byte slots; its tokenizer's tokens are up to six bytes long."""
    text = "".join(f"def read_{i}(path, item):\n    return open(path)\n" for i in range(300))
    words = SubwordTokenizer.train("bpe", 300, [text], max_bytes=6)
    model = decoder(SLOTS | {"input": {**SLOTS["input"], "slots": slots}})
    weights = path.with_suffix(".safetensors")
    write_tensors(weights, model.state_dict())
    write_model_folder(path, "slots", model.spec, weights, words.to_json())
    return path


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_tokens_spelled_in_byte_slots_are_the_torch_models(form: str, tmp_path: Path) -> None:
    path = slot_folder(tmp_path / "slots")
    if form == "gguf":
        assert main(["export", str(path), f"{path}.gguf", "--to", "gguf", "--type", "f32"]) == 0
        path = path.with_name("slots.gguf")
    native, theirs = flyweight.load(path, threads=2), flyweight.load(path, engine="torch")
    assert isinstance(native, NativeModel) and isinstance(theirs, TorchModel)
    assert max(len(native.tokenizer.token_bytes(t)) for t in range(299)) >= 4
    mine, expected = native.logprobs(PROMPT * 9), theirs.logprobs(PROMPT * 9)
    assert [t for t, _ in mine] == [t for t, _ in expected] and len(mine) > 128
    assert [p for _, p in mine] == pytest.approx([p for _, p in expected], abs=1e-4)
    assert native.generate(PROMPT, 40, 40) == theirs.generate(PROMPT, 40, 40)
    done = without_torch("generate", str(path), PROMPT, "--temperature", "0", "--max-tokens", "9")
    assert done.returncode == 0, done.stderr
    assert done.stdout == theirs.generate(PROMPT, 9) + "\n"


def test_a_token_longer_than_its_slots_is_one_clear_error(tmp_path: Path) -> None:
    path = slot_folder(tmp_path / "slots", slots=3)
    done = without_torch("generate", str(path), "a")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model.input.slots = 3, but" in done.stderr and "longer" in done.stderr


def test_formats_and_caches_change_the_memory_and_hardly_the_scores(
    folder: Callable[..., Path],
) -> None:
    path = folder(LLAMA | {"width": 128, "init": {"std": 0.1}})
    plain = flyweight.load(path, threads=1)
    halves = flyweight.load(path, threads=1, format="q8_0")
    assert isinstance(plain, NativeModel) and isinstance(halves, NativeModel)
    assert (plain.cache, halves.cache) == ("f32", "f16")
    small = flyweight.load(path, threads=1, format="q8_0", cache="q8_0")
    assert isinstance(small, NativeModel) and small.cache == "q8_0"
    assert small.memory().weights < 0.4 * plain.memory().weights
    expected = [p for _, p in plain.logprobs(PROMPT)]
    found = [p for _, p in small.logprobs(PROMPT)]
    assert found == pytest.approx(expected, abs=0.2) and found != expected


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_what_python_code_may_get_wrong(engine: str, folder: Callable[..., Path]) -> None:
    model = flyweight.load(folder(LLAMA), engine=engine)
    for prompt in (b"abc", None, [1.5], ["a"], [[1]]):
        with pytest.raises(FlyweightError, match="a text .str. or token ids are wanted"):
            model.generate(prompt, 3)  # type: ignore[arg-type]
    for wrong in ({"max_tokens": 3.5}, {"seed": "1"}, {"top_k": 2.0}, {"temperature": "1"}):
        with pytest.raises(FlyweightError, match=rf"{next(iter(wrong))} = .*number is wanted"):
            model.generate("a", **wrong)
    for ids in ([2**40], [-1], [258]):
        with pytest.raises(FlyweightError, match="outside of the vocabulary"):
            model.generate(ids, 3)
    assert model.generate("a\0b", 3, 3) != "" and model.generate("x" * 1000, 3, 3) != ""
    for text in ("\ud800", "a\udfff"):
        with pytest.raises(FlyweightError, match="lone surrogate"):
            model.generate(text, 3)
    # As good as greedy, and as good as drawn from a hat.
    assert model.generate("a", 9, 9, temperature=1e-40) == model.generate("a", 9, 9)
    assert len({model.generate("a", 9, 9, temperature=1e300, seed=i) for i in range(4)}) == 4


def test_generators_side_by_side_and_left_half_way(folder: Callable[..., Path]) -> None:
    model = flyweight.load(folder(LLAMA), threads=2)
    expected = model.generate(PROMPT, 20, 20)
    streams = [model.stream(PROMPT, 20, 20) for _ in range(3)]
    made = [""] * 3
    for i in itertools.cycle(range(3)):
        piece = next(streams[i], None)
        if piece is None:
            break
        made[i] += piece
    for text, rest in zip(made, streams, strict=True):
        assert text + "".join(rest) == expected
    for closed in (True, False):
        stream: Any = model.stream(PROMPT, 20, 20)
        next(stream)
        if closed:
            stream.close()
        del stream
        assert model.generate(PROMPT, 20, 20) == expected
    found: list[str] = []
    workers = [
        threading.Thread(target=lambda: found.append(model.generate(PROMPT, 20, 20)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [expected] * 4


def test_a_zoo_name_has_random_weights_and_says_so() -> None:
    said: list[str] = []
    model = flyweight.load("minicpm-9m", threads=1, format="q4_0", notice=said.append)
    assert isinstance(model, NativeModel)
    assert len(said) >= 1 and "minicpm-9m has random weights" in said[0]
    text = model.generate("a", 4, 4)
    assert text == flyweight.load("minicpm-9m", format="q4_0", notice=said.append).generate(
        "a", 4, 4
    )
    with pytest.warns(UserWarning, match="random weights"):
        flyweight.load("minicpm-9m", threads=1)


def test_an_instruction_set_that_is_not_there_is_one_clear_error(run: Path) -> None:
    done = without_torch("generate", str(run), "a", FLYWEIGHT_ISA="mmx")
    assert done.returncode == 1
    assert "FLYWEIGHT_ISA = mmx" in done.stderr and "portable" in done.stderr
    assert "Traceback" not in done.stderr
    done = without_torch("generate", str(run), "a", "--max-tokens", "2", FLYWEIGHT_ISA="portable")
    assert done.returncode == 0, done.stderr


def test_a_damaged_file_is_one_clear_error(gguf: Path, folder: Callable[..., Path]) -> None:
    cut = gguf.with_name("cut.gguf")
    cut.write_bytes(gguf.read_bytes()[:-1000])
    path = folder(LLAMA)
    with pytest.raises(FlyweightError, match=r"cut\.gguf.*beyond the end"):
        flyweight.load(cut)
    (path / "model.toml").write_text((path / "model.toml").read_text().replace("32", "48", 1))
    with pytest.raises(FlyweightError, match="does not fit its spec"):
        flyweight.load(path)


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = (
        "import sys, flyweight\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "flyweight.load\n"
        "assert 'torch' not in sys.modules and 'tokenizers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bench_tells_speeds_memory_and_the_limit(folder: Callable[..., Path]) -> None:
    path = str(folder(LLAMA))
    options = ("--prompt", "8,32", "--threads", "1,2", "--tokens", "4", "--rounds", "1")
    done = without_torch("bench", path, *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["threads"] for run in found["runs"]] == [1, 2]
    for run in found["runs"]:
        assert run["engine"] == "native" and run["isa"] and run["bandwidth"] > 0
        assert run["cache"] == "f32"
        assert run["memory"]["weights"] > 0 and run["memory"]["cache"] > 0
        assert [speed["prompt"] for speed in run["speeds"]] == [8, 32]
        for speed in run["speeds"]:
            seconds, size = speed["first_token_seconds"], speed["read_bytes_per_token"]
            assert speed["prefill_per_second"] == pytest.approx(speed["prompt"] / seconds)
            limit = size * speed["decode_per_second"] / run["bandwidth"]
            assert speed["share_of_bandwidth"] == pytest.approx(limit)
    shown = without_torch("bench", path, *options)
    assert shown.returncode == 0 and "of the limit" in shown.stdout
    for wrong, said in (
        (("--prompt", "8,8"), "different numbers"),
        (("--prompt", "200"), "longer than the context of 128"),
        (("--tokens", "1"), "tokens = 1"),
    ):
        refused = without_torch("bench", path, "--threads", "1", *wrong)
        assert refused.returncode == 1 and said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_prompt_longer_than_the_context_is_read_from_its_end_and_told(
    folder: Callable[..., Path],
) -> None:
    path, long = folder(LLAMA), "".join(f"line {i}\n" for i in range(40))
    options = ("--max-tokens", "8", "--min-tokens", "8", "--temperature", "0")
    done = without_torch("generate", str(path), long, *options)
    assert done.returncode == 0, done.stderr
    assert f"the prompt has {len(long)} tokens: the newest 128" in done.stderr
    model = flyweight.load(path)
    assert done.stdout == model.generate(list(long[-128:].encode()), 8, 8) + "\n"


def test_a_prompt_without_any_token_is_one_clear_error(tmp_path: Path) -> None:
    weights, model = tmp_path / "w.safetensors", decoder(LLAMA | {"vocab_size": 300})
    write_tensors(weights, model.state_dict())
    words = placeholder(300).to_json()
    write_model_folder(tmp_path / "model", "model", model.spec, weights, words)
    for engine in ("native", "torch"):
        with pytest.raises(FlyweightError, match="the prompt is empty"):
            flyweight.load(tmp_path / "model", engine=engine).generate("")
    done = without_torch("generate", str(tmp_path / "model"))
    assert done.returncode == 1 and "the prompt is empty" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_a_model_larger_than_memory_is_one_clear_error() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import resource\n"
        "import flyweight.engine.runtime, flyweight.files.weights, flyweight.engine._native\n"
        "import numpy, tokenizers\n"
        "from flyweight.cli.main import main\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "limit = now + (96 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "raise SystemExit(main(['generate', 'minicpm-70m', 'a', '--threads', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "there is no" in done.stderr or "not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
