"""Files that lie: whatever they claim, the answer is one message, and nothing is run or claimed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safetensors.torch import save  # noqa: E402

from flyweight.files import huggingface  # noqa: E402
from flyweight.files.config_json import READERS, describe  # noqa: E402
from flyweight.files.pickles import PickleFile  # noqa: E402
from flyweight.files.tensors import TensorFile, stream_tensors, write_tensors  # noqa: E402
from flyweight.spec.errors import CorruptFileError, FlyweightError  # noqa: E402

A, B = torch.arange(6.0).view(2, 3), torch.arange(4).to(torch.bfloat16)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES: dict[str, bytes] = {
    "empty": b"",
    "no header": b"\x01\0\0",
    "a header of 10 GB": safetensors({}, length=10 << 30),
    "a header of 2^64 - 1": safetensors({}, length=(1 << 64) - 1),
    "10 GB in 1 KB": safetensors({"a": entry([50_000, 50_000], 0, 10**10)}, bytes(1024)),
    "a shape larger than its bytes": safetensors({"a": entry([5], 0, 16)}, bytes(16)),
    "a shape that overflows": safetensors({"a": entry([1 << 40, 1 << 40], 0, 16)}, bytes(16)),
    "a negative size": safetensors({"a": entry([-4], 0, 16)}, bytes(16)),
    "offsets the wrong way": safetensors({"a": entry([4], 16, 0)}, bytes(16)),
    "overlap": safetensors({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    "the same bytes twice": safetensors(
        {"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)
    ),
    "a hole": safetensors({"a": entry([4], 0, 16), "b": entry([4], 20, 36)}, bytes(36)),
    "bytes left over": safetensors({"a": entry([4], 0, 16)}, bytes(20)),
    "bytes missing": safetensors({"a": entry([4], 0, 16)}, bytes(12)),
    "an unknown kind": safetensors({"a": entry([4], 0, 16, "F7")}, bytes(16)),
    "not JSON": safetensors(b"{" * 64),
    "deep": safetensors(b'{"a":' * 50_000),
    "a list": safetensors([1, 2]),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_file_that_lies(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is not a whole safetensors"):
        TensorFile(path)


WHOLE = save({"a": A, "b": B})
HEADER = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])
NUMBERS = st.one_of(
    st.integers(-3, 70), st.sampled_from([1 << 31, 1 << 63, (1 << 64) - 1, 1 << 70])
)
ODD = st.one_of(NUMBERS, st.floats(), st.none(), st.text(max_size=3), st.lists(NUMBERS, max_size=4))


def opens_or_is_refused(reader: Any, content: bytes) -> None:
    """A file is read, and then no tensor is larger than the file; or it is one clear error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        try:
            found = reader(path)
            tensors = [found[name] for name in found.kinds]
        except FlyweightError as error:
            assert str(path) in str(error)
            return
        for tensor in tensors:
            assert tensor.numel() * tensor.element_size() <= len(content)
            assert tensor.clone().shape == tensor.shape


@settings(max_examples=200)
@given(st.data())
def test_safetensors_with_any_header(data: st.DataObject) -> None:
    header = json.loads(json.dumps(HEADER))
    for name in data.draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)):
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        value = data.draw(st.one_of(ODD, st.sampled_from(["F16", "I64", "BOOL", "F8_E4M3"])))
        header.setdefault(name, entry([1], 0, 4))[key] = value
    content = safetensors(header, data.draw(st.sampled_from([WHOLE[-32:], b"", bytes(64)])))
    opens_or_is_refused(TensorFile, content)


@settings(max_examples=150)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)))
def test_safetensors_with_any_byte_changed_or_cut_anywhere(at: int, byte: int, cut: int) -> None:
    changed = bytearray(WHOLE)
    changed[at] = byte
    opens_or_is_refused(TensorFile, bytes(changed))
    opens_or_is_refused(TensorFile, WHOLE[:cut])


# -- pickles


class Bomb:
    """Unpickled without care, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "among tensors"])
def test_a_pickle_that_runs_code_does_not(how: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"
    bomb = Bomb(mark)
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": bomb}))
    else:
        content = {"a": A, "b": bomb} if how == "among tensors" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=how != "old torch")
    with pytest.raises(CorruptFileError, match=r"pytorch_model\.bin"):
        PickleFile(path)
    assert not mark.exists()
    # The bomb is a real one.
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()


def saved(content: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made)
    return made.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes], packed: int = 0) -> bytes:
    """A checkpoint's archive with its entries changed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", packed) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return made.getvalue()


def larger(name: str, content: bytes) -> bytes:
    """A tensor of (2, 3) that says it is (100000, 100000), in its pickle."""
    if not name.endswith("data.pkl"):
        return content
    huge = b"J" + struct.pack("<i", 100_000)
    assert b"K\x02K\x03\x86" in content
    return content.replace(b"K\x02K\x03\x86", huge + huge + b"\x86")


def longer(name: str, content: bytes) -> bytes:
    """A storage of 6 numbers that says it has 10^9."""
    if not name.endswith("data.pkl"):
        return content
    return content.replace(b"K\x06t", b"J" + struct.pack("<i", 10**9) + b"t")


PICKLES: dict[str, bytes] = {
    "empty": b"",
    "not a checkpoint": b"once upon a time",
    "an archive of nothing": repacked(saved({"a": A}), lambda n, c: b""),
    "40 GB in a stride of none": saved({"a": torch.zeros(1).expand(100_000, 100_000)}),
    "a shape that its storage does not hold": repacked(saved({"a": A}), larger),
    "a storage longer than its file": repacked(saved({"a": A}), longer),
    "compressed": repacked(saved({"a": torch.zeros(1000)}), lambda n, c: c, zipfile.ZIP_DEFLATED),
    "a list": saved([A, B]),
    "more than tensors": saved({"model": {"a": A}, "step": 3}),
    "sparse": saved({"a": A.to_sparse()}),
    "numbers for names": saved({1: A}),
}


@pytest.mark.parametrize("lie", PICKLES)
def test_a_checkpoint_that_lies(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(PICKLES[lie])
    with pytest.raises(CorruptFileError, match=r"pytorch_model\.bin"):
        found = PickleFile(path)
        _ = [found[name] for name in found.kinds]


BIN = saved({"a": A, "b": B})


@settings(max_examples=150)
@given(st.integers(0, len(BIN) - 1), st.integers(0, 255), st.integers(0, len(BIN)))
def test_checkpoints_with_any_byte_changed_or_cut_anywhere(at: int, byte: int, cut: int) -> None:
    changed = bytearray(BIN)
    changed[at] = byte
    opens_or_is_refused(PickleFile, bytes(changed))
    opens_or_is_refused(PickleFile, BIN[:cut])


def in_pickle(at: int, byte: int) -> bytes:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        changed = bytearray(content)
        changed[at % len(changed)] = byte
        return bytes(changed)

    return repacked(BIN, change)


@settings(max_examples=250)
@given(st.integers(0, 400), st.integers(0, 255))
def test_checkpoints_with_any_byte_of_the_pickle_changed(at: int, byte: int) -> None:
    """The archive's own checksums fit; the pickle is what it is."""
    opens_or_is_refused(PickleFile, in_pickle(at, byte))


# -- pickles of before PyTorch 1.6


def saved_long_ago(content: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


KINDS_OF_OLD = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
]


def test_old_checkpoints_are_read_to_the_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(4, 6, generator=generator)
    wanted = {str(d): (torch.randn(3, 5, generator=generator) * 9).to(d) for d in KINDS_OF_OLD}
    wanted |= {
        **{"whole": shared, "a row": shared[2], "turned": shared.t(), "a part": shared[1:3, ::2]},
        **{"none": torch.empty(0, 7), "scalar": torch.tensor(2.5)},
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    module = torch.nn.Linear(3, 2)
    for content in (wanted, module.state_dict()):
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(saved_long_ago(content))
        expected = torch.load(path, weights_only=True)
        found = PickleFile(path)
        assert found.kinds.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
            assert found.kinds[name].shape == tensor.shape == found[name].shape
        assert found.kinds[next(iter(expected))].dtype in ("F16", "F32")


OLD = saved_long_ago({"a": A, "b": B})


def in_old(before: bytes, after: bytes) -> bytes:
    assert before in OLD
    return OLD.replace(before, after)


OLD_LIES: dict[str, bytes] = {
    "nothing behind the magic number": OLD[:15],
    "the tensors alone": OLD[:-20],
    "more than it says": OLD + bytes(8),
    "a shape that its storage does not hold": in_old(
        b"K\x02K\x03\x86", b"J\xa0\x86\x01\x00J\xa0\x86\x01\x00\x86"
    ),
    "a storage longer than its file": in_old(b"K\x06N", b"J\x00\xca\x9a\x3bN"),
    "40 GB in a stride of none": saved_long_ago({"a": torch.zeros(1).expand(100_000, 100_000)}),
    "of a machine that puts the highest byte first": in_old(
        b"little_endianq\x02\x88", b"little_endianq\x02\x89"
    ),
    "of another version": in_old(b"M\xe9\x03.", b"M\xea\x03."),
    "a list": saved_long_ago([A, B]),
    "more than tensors": saved_long_ago({"model": {"a": A}, "step": 3}),
    "numbers for names": saved_long_ago({1: A}),
    "a whole module": saved_long_ago(torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("lie", OLD_LIES)
def test_an_old_checkpoint_that_lies(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(OLD_LIES[lie])
    with pytest.raises(CorruptFileError, match=r"pytorch_model\.bin"):
        PickleFile(path)


@settings(max_examples=400)
@given(st.integers(0, len(OLD) - 1), st.integers(0, 255), st.integers(0, len(OLD)))
def test_old_checkpoints_with_any_byte_changed_or_cut_anywhere(
    at: int, byte: int, cut: int
) -> None:
    changed = bytearray(OLD)
    changed[at] = byte
    opens_or_is_refused(PickleFile, bytes(changed))
    opens_or_is_refused(PickleFile, OLD[:cut])


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(15, len(OLD)))
def test_old_checkpoints_with_any_bytes_among_the_pickles(some: bytes, at: int) -> None:
    opens_or_is_refused(PickleFile, OLD[:at] + some + OLD[at:])
    opens_or_is_refused(PickleFile, OLD[:at] + some + OLD[at + len(some) :])


# -- the index, the configuration


TINY = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


SHARED = {"block": "adjacent"}


def indexed(path: Path, weight_map: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINY))
    (path / "a.safetensors").write_bytes(WHOLE)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "../outside.safetensors"}, "beside it"),
        ({"a": "/outside.safetensors"}, "beside it"),
        ({"a": "sub/../../outside.safetensors"}, "beside it"),
        ({"a": "..\\outside.safetensors"}, "beside it"),
        ({"a": ".."}, "beside it"),
        ({"a": "config.json"}, "beside it"),
        ({"a": "a\0.safetensors"}, "beside it"),
        ({"a": ""}, "beside it"),
        ({"a": 1}, "weight_map"),
        (["a"], "weight_map"),
        ({"a": "b.safetensors"}, "no such file"),
        ({"a": "a.safetensors", "z": "a.safetensors"}, "says that z is in a.safetensors"),
    ],
)
def test_an_index_that_climbs_or_lies(weight_map: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(WHOLE)
    with pytest.raises(FlyweightError, match=said):
        huggingface.open_weights(indexed(tmp_path / "theirs", weight_map))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    path = indexed(tmp_path / "theirs", {"a": "a.safetensors", "b": "b.safetensors"})
    (path / "b.safetensors").write_bytes(WHOLE)
    with pytest.raises(CorruptFileError, match="is in both a.safetensors and b.safetensors"):
        huggingface.open_weights(path)


KEYS = sorted(
    {
        *TINY,
        *("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters"),
        *("rms_norm_eps", "hidden_act", "tie_word_embeddings", "attention_bias", "layer_types"),
        *("sliding_window", "use_sliding_window", "partial_rotary_factor", "flyweight_share"),
        *("n_embd", "n_layer", "n_head", "n_inner", "n_positions", "activation_function"),
        *("scale_emb", "scale_depth", "dim_model_base", "layer_sharing", "quantization_config"),
        *("num_layers", "multi_query_group_num", "alibi_scaling", "position_embedding_type"),
        *("padded_vocab_size", "seq_length", "ffn_hidden_size", "kv_channels"),
    }
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 64),
    st.sampled_from([1 << 30, 1 << 70, 0.5, -1.0, float("nan"), float("inf"), "silu", "", "x"]),
    st.lists(st.one_of(st.integers(), st.text(max_size=2), st.lists(st.none())), max_size=3),
    st.dictionaries(
        st.sampled_from(
            ["rope_type", "type", "factor", "rope_theta", "long_factor", "short_factor", "repeat"]
        ),
        st.one_of(
            st.sampled_from(["linear", "dynamic", "llama3", "longrope", "default", "yarn"]),
            st.integers(-1, 5),
            st.lists(st.floats(), max_size=3),
            st.dictionaries(st.text(max_size=1), st.none(), max_size=1),
        ),
        max_size=3,
    ),
)


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(READERS)), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=14)
)
def test_any_configuration_is_read_or_refused(kind: str, changes: dict[str, Any]) -> None:
    try:
        found = describe({**TINY, **changes, "model_type": kind})
    except FlyweightError as error:
        assert str(error)
    else:
        assert found.spec.depth > 0 and found.layout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b"{}", "does not say `model_type`"),
        (b'{"model_type": ["llama"]}', "does not say `model_type`"),
        (json.dumps({**TINY, "num_hidden_layers": 10**9}).encode(), "too few for the 1000000000"),
        (
            json.dumps(
                {**TINY, "num_hidden_layers": 10**9, "flyweight_share": SHARED | {"repeat": 10**9}}
            ).encode(),
            "too few for the 1000000000",
        ),
        (json.dumps({**TINY, "hidden_size": 1 << 30}).encode(), "no tensor wide enough"),
        (
            json.dumps({**TINY, "hidden_size": 1 << 30, "num_attention_heads": 1 << 29}).encode(),
            "wide enough for the 536870912 heads",
        ),
        (json.dumps({**TINY, "hidden_act": "gelu"}).encode(), "hidden_act = 'gelu' is not supp"),
        (
            json.dumps({**TINY, "rope_scaling": {"type": "yarn", "factor": 2.0}}).encode(),
            "rope_type = 'yarn' is not supported",
        ),
        (
            json.dumps({**TINY, "quantization_config": {"quant_method": "gptq"}}).encode(),
            "quantised .gptq.",
        ),
        (json.dumps({**TINY, "model_type": "lama"}).encode(), "did you mean `llama`"),
    ],
)
def test_a_configuration_that_lies(content: bytes, said: str, tmp_path: Path) -> None:
    path = indexed(tmp_path / "theirs", {"a": "a.safetensors", "b": "a.safetensors"})
    (path / "config.json").write_bytes(content)
    with pytest.raises(FlyweightError, match=said):
        huggingface.as_ours(huggingface.open_source(path))


# -- what is written


def test_a_streamed_file_is_the_one_written_whole(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 2).t(),
        "a": torch.randn(5).bfloat16(),
        "c": torch.randn(2, 2, dtype=torch.float64),
        "ü": torch.randn(4).half(),
        "none": torch.empty(0, 7),
        "scalar": torch.tensor(2.5),
    }
    write_tensors(tmp_path / "whole", tensors)
    kinds = TensorFile(tmp_path / "whole").kinds
    stream_tensors(tmp_path / "streamed", kinds, tensors)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()
