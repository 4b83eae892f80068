"""The GGUF reader: files of the `gguf` package's writer, and files that lie."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.files.blocks import dequantise
from flyweight.files.formats import FORMATS
from flyweight.files.gguf import GgufFile
from flyweight.files.gguf_writer import Written, write_gguf
from flyweight.spec.errors import CorruptFileError, FlyweightError


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the package's writer with a tensor of every format that it can make."""
    path = tmp_path_factory.mktemp("theirs") / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_context_length(77)
    writer.add_token_list(["a", "b", "é"])
    writer.add_array("some.floats", [1.5, -2.5])
    generator = np.random.default_rng(0)
    for i, name in enumerate(("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")):
        kind = gguf.GGMLQuantizationType[name]
        x = generator.standard_normal((3 + i, 64)).astype(np.float32)
        writer.add_tensor(f"t.{name}", gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.add_tensor("three", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_of_the_gguf_package(theirs: Path) -> None:
    ours, expected = GgufFile(theirs), gguf.GGUFReader(theirs)
    assert ours.metadata["llama.context_length"] == 77
    assert ours.metadata["tokenizer.ggml.tokens"] == ["a", "b", "é"]
    assert ours.metadata["some.floats"] == [1.5, -2.5]
    assert ours.alignment == 64
    assert list(ours.tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        found = ours.tensors[tensor.name]
        assert found.form.number == tensor.tensor_type
        assert found.shape == tuple(tensor.shape.tolist()[::-1])
        assert found.data.tobytes() == tensor.data.tobytes()
        assert not found.data.flags.writeable
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(found.dequantise(), back.reshape(found.shape))


def test_files_of_ours_in_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "made" / "ours.gguf"
    x = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32)
    keys = {
        "general.architecture": "test",
        "a.number": 7,
        "a.large": 1 << 40,
        "a.float": 0.1,
        "a.flag": True,
        "a.text": "é",
        "a.list": [1, -2],
        "no.texts": [],
        "texts": ["", "b"],
        "raw": b"\0\1",
    }
    done: list[tuple[int, int]] = []
    names = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")
    write_gguf(
        path,
        keys,
        [Written(n, x.shape, FORMATS[n], lambda a, b: x[a:b]) for n in names]
        + [Written("vector", (256,), FORMATS["f32"], lambda a, b: x[:1])],
        lambda at, of: done.append((at, of)),
    )
    read = gguf.GGUFReader(path)
    assert read.fields["a.number"].contents() == 7
    assert read.fields["a.large"].contents() == 1 << 40
    assert read.fields["a.float"].contents() == np.float32(0.1)
    assert read.fields["a.flag"].contents() is True
    assert read.fields["a.text"].contents() == "é"
    assert read.fields["a.list"].contents() == [1, -2]
    assert read.fields["texts"].contents() == ["", "b"]
    ours = GgufFile(path)
    assert ours.metadata | {"a.float": 0.1, "raw": b"\0\1"} == keys
    for tensor in read.tensors:
        found = ours.tensors[tensor.name]
        assert found.data.tobytes() == tensor.data.tobytes()
        if tensor.name != "vector":
            assert found.shape == x.shape
            assert np.abs(dequantise(found.data, found.form) - x).max() < 0.3
    assert ours.tensors["vector"].shape == (256,)
    assert done[-1][0] == done[-1][1] == sum(tensor.n_bytes for tensor in read.tensors)
    assert [p.name for p in path.parent.iterdir()] == ["ours.gguf"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    x = np.full((2, 32), np.nan, dtype=np.float32)
    bad = Written("some.weight", x.shape, FORMATS["q8_0"], lambda a, b: x[a:b])
    with pytest.raises(FlyweightError, match=r"some\.weight as q8_0: .*not finite"):
        write_gguf(path, {}, [bad])
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_gguf(path, {}, [])
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]


# -- files that lie


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def info(
    name: str = "t",
    lengths: tuple[int, ...] = (32, 2),
    kind: int = 0,
    offset: int = 0,
    dimensions: int | None = None,
) -> bytes:
    count = len(lengths) if dimensions is None else dimensions
    return (
        string(name)
        + struct.pack("<I", count)
        + struct.pack(f"<{len(lengths)}Q", *lengths)
        + struct.pack("<IQ", kind, offset)
    )


def built(*infos: bytes, count: int | None = None, data: int = 256, keys: bytes = b"") -> bytes:
    tensors = len(infos) if count is None else count
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, 1 if keys else 0) + keys + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)


def alignment(value: bytes, kind: int = 4) -> bytes:
    return string("general.alignment") + struct.pack("<I", kind) + value


_MOST = (1 << 64) - 1
LIES: list[tuple[bytes, str]] = [
    (built(count=_MOST), f"{_MOST} tensors are claimed"),
    (built(info(), count=2), "claimed|tensor 1"),
    (built(info("")), "tensor 0 is named ''"),
    (built(info("x" * 64)), "tensor 0 is named 'xxx"),
    (built(info(), info(offset=256)), "'t' stands in it twice"),
    (built(info(lengths=(), dimensions=0)), "'t': 0 dimensions"),
    (built(info(lengths=(1,) * 5)), "'t': 5 dimensions"),
    (built(info(lengths=(32, 0))), r"'t': shape \[0, 32\]"),
    (built(info(lengths=(1 << 40, 1 << 40))), "'t': shape"),
    (built(info(lengths=(_MOST, 2))), "'t': shape"),
    (built(info(kind=99)), "'t': format 99 is none"),
    (built(info(kind=10)), "'t': format q2_k is not supported"),
    (built(info(lengths=(33, 2), kind=2)), "'t': rows of 33 numbers are no whole number of q4_0"),
    (built(info(offset=8)), "'t' begins at 8, no multiple"),
    (built(info(offset=32)), "'t' of 256 bytes at 32 reaches beyond"),
    (built(info(offset=_MOST - 31)), "'t' of 256 bytes at .* reaches beyond"),
    (built(info(lengths=(1 << 30, 2))), "'t' of .* reaches beyond"),
    (built(info("a"), info("b", offset=32), data=512), "'a' and 'b' overlap"),
    (built(info(), data=0)[:-20], "ends before its tensors begin|beyond"),
    (built(info(), keys=alignment(struct.pack("<I", 0))), "general.alignment is 0"),
    (built(info(), keys=alignment(struct.pack("<I", 24))), "general.alignment is 24"),
    (built(info(), keys=alignment(struct.pack("<I", 1 << 31))), "general.alignment is"),
    (built(info(), keys=alignment(struct.pack("<f", 32), 6)), "general.alignment is 32.0"),
    (built(info(), keys=string("split.count") + struct.pack("<IH", 2, 3)), "one of 3 parts"),
    (b"GGUF", "too short"),
    (bytes(64), "does not begin with GGUF"),
]


@pytest.mark.parametrize(("content", "error"), LIES)
def test_lies_are_refused_before_anything_is_allocated(
    tmp_path: Path, content: bytes, error: str
) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(FlyweightError, match=rf"lie\.gguf.*({error})"):
        GgufFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_no_tensors_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(built(data=0))
    assert GgufFile(path).tensors == {}
    with pytest.raises(FlyweightError, match=r"absent\.gguf: .*No such file"):
        GgufFile(tmp_path / "absent.gguf")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    path = tmp_path_factory.mktemp("fuzz") / "fuzzed.gguf"

    def write(content: bytes) -> Path:
        # A new file: one that is mapped still must not shrink.
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path

    return write


@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(
    theirs: Path, scratch: Callable[[bytes], Path], data: st.DataObject
) -> None:
    whole = theirs.read_bytes()
    damaged = bytearray(whole)
    # Where the header is, not the numbers, which may be anything.
    header = GgufFile(theirs).data_offset
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, header - 1))
        width = data.draw(st.sampled_from([1, 4, 8]))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=width, max_size=width),
                st.sampled_from([b"\xff" * width, bytes(width), b"\1" + bytes(width - 1)]),
            )
        )
        damaged[at : at + width] = patch
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = scratch(bytes(damaged))
    try:
        opened = GgufFile(path)
    except FlyweightError as error:
        assert "fuzzed.gguf" in str(error)
    else:
        for tensor in opened.tensors.values():
            with np.errstate(all="ignore"):
                assert tensor.dequantise().shape == tensor.shape


@given(cut=st.integers(0, 10_000_000))
def test_a_file_cut_anywhere_is_refused(
    theirs: Path, scratch: Callable[[bytes], Path], cut: int
) -> None:
    whole = theirs.read_bytes()
    tensors = gguf.GGUFReader(theirs).tensors
    cut %= max(tensor.data_offset + tensor.n_bytes for tensor in tensors)
    with pytest.raises(CorruptFileError, match=r"fuzzed\.gguf"):
        GgufFile(scratch(whole[:cut]))
