"""Models to GGUF and back: spec, weights and tokenizer, for every family that can leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from flyweight.files.formats import FORMATS
from flyweight.files.from_gguf import GgufModel, open_gguf
from flyweight.files.gguf import GgufFile
from flyweight.files.gguf_architectures import ARCHITECTURES, Target, target
from flyweight.files.gguf_writer import Written, write_gguf
from flyweight.files.random_weights import RandomSource
from flyweight.files.to_gguf import Exported, chat_template, export_gguf
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.load import gguf_tokenizer, load_tokenizer
from flyweight.zoo import catalog

from .conftest import KINDS

# The architecture that each kind of conftest becomes.
ORDINARY = {
    "llama": "llama",
    "llama-tied": "llama",
    "llama-biased": "llama",
    "llama3-rope": "llama",
    "linear-rope": "llama",
    "glm": "llama",
    "glm-unbiased": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "phi3-longrope": "phi3",
    "gpt2": "gpt2",
}


def small(name: str, **changes: Any) -> ModelSpec:
    """A model of the zoo at a small size."""
    values = catalog.get(name).spec.values()
    heads = values["attention"]["heads"] // values["attention"].get("kv_heads", 1)
    values |= {"width": 64, "depth": 4, "context": 64, "vocab_size": 300}
    values["attention"] |= {"heads": 4, "kv_heads": 4 if heads == 1 else 2}
    values["feedforward"] |= {"hidden": 96}
    return ModelSpec.parse(values | changes)


def write(spec: ModelSpec, path: Path, **options: Any) -> Exported:
    return export_gguf(spec, RandomSource(spec), ByteTokenizer(), path, "a model", **options)


def same(opened: GgufModel, expected: Mapping[str, np.ndarray]) -> None:
    assert opened.weights.keys() == expected.keys()
    for name, weight in opened.weights.items():
        assert weight.shape == expected[name].shape, name
        assert np.array_equal(weight.dequantise(), expected[name]), name


def without(path: Path, *keys: str) -> Path:
    """A copy of the file without some of its keys."""
    file = GgufFile(path)
    kept = {key: value for key, value in file.metadata.items() if key not in keys}
    copy = path.with_name("without.gguf")
    tensors = [
        Written(t.name, t.shape, FORMATS["f32"], lambda a, b, t=t: _rows(t.dequantise())[a:b])
        for t in file.tensors.values()
    ]
    write_gguf(copy, kept, tensors)
    return copy


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize("kind", sorted(ORDINARY))
def test_ordinary_files_give_the_same_model_back(
    kind: str, made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    from flyweight.load import stored

    folder, _ = made(kind)
    out = tmp_path / "out.gguf"
    done = command("export", folder, out, "--to", "gguf", "--type", "f32", "--json").ok()
    assert json.loads(done.out)["architecture"] == ORDINARY[kind]
    source = stored(str(folder))
    expected = {name: source.weights[name].numpy() for name in source.weights.kinds}
    opened = open_gguf(out)
    assert (opened.architecture, opened.notes) == (ORDINARY[kind], ())
    assert opened.spec == source.spec
    same(opened, expected)
    # What llama.cpp reads says it too; only RoPE's peculiarities come back as divisors.
    plain = open_gguf(without(out, "flyweight.spec"))
    assert plain.notes == ()
    if kind in ("llama3-rope", "glm", "glm-unbiased"):
        return
    expected_spec = source.spec
    if kind == "phi3-longrope":  # the gain that followed from the context is a number now
        values = expected_spec.values()
        values["position"]["scaling"]["attention"] = float(str(np.float32(expected_spec.rope_gain)))
        values["position"]["scaling"] |= {
            name: [float(np.float32(x)) for x in values["position"]["scaling"][name]]
            for name in ("short", "long")
        }
        expected_spec = ModelSpec.parse(values)
    assert plain.spec == expected_spec
    same(plain, expected)


def test_the_zoo_becomes_what_it_should() -> None:
    found = {name: target(catalog.get(name).spec) for name in catalog.names()}
    named = {n: t.name if isinstance(t, Target) else None for n, t in found.items()}
    wanted = {
        "geb-1.3b": "llama",
        "mobillama-0.5b": "llama",
        "mobilellm-350m": "llama",
        "mobilellm-ls-350m": "llama",
        "smollm2-135m": "llama",
        "llama-3.2-1b": "llama",
        "minicpm-1.2b": "minicpm",
        "phi-4-mini": "phi3",
        "gpt2": "gpt2",
        "qwen2.5-0.5b": "qwen2",
        "qwen3-0.6b": "qwen3",
        "btlm-3b-8k": "jais",
        "jais-256m": "jais",
        "quickstart": None,
        "stlm-shared": None,
        "stlm-bytes": None,
        "codegen2-1b": None,
    }
    assert {name: named[name] for name in wanted} == wanted


@pytest.mark.parametrize("name", ["minicpm-1.2b", "geb-1.3b", "btlm-3b-8k", "phi-4-mini", "gpt2"])
@pytest.mark.parametrize("type", ["f32", "q8_0", "q4_k_m"])
def test_models_of_the_zoo(name: str, type: str, tmp_path: Path) -> None:
    spec = small(name)
    exported = write(spec, tmp_path / "out.gguf", type=type)
    opened = open_gguf(tmp_path / "out.gguf")
    assert exported.architecture == opened.architecture != "flyweight"
    folds = ARCHITECTURES[opened.architecture].folds
    if not folds:
        assert opened.spec == spec
    source = RandomSource(spec)
    for tensor, weight in opened.weights.items():
        ours = tensor
        if tensor not in source.shapes:
            assert (folds, tensor) == (True, "head.weight")
            ours = "embedding.weight"
        x = source.rows(ours, slice(None)).reshape(weight.shape)
        if folds and ours != tensor:
            x = x * np.float32(spec.scale.logits)
        elif folds and tensor == "embedding.weight":
            x = x * np.float32(spec.scale.embedding)
        limit = {"f32": 0, "q8_0": 0.01, "q4_k_m": 0.15}[type] * np.abs(x).max()
        assert np.abs(weight.dequantise() - x).max() <= limit, tensor


@pytest.mark.parametrize("name", ["quickstart", "stlm-10m", "stlm-shared", "stlm-bytes"])
def test_what_llama_cpp_does_not_know_is_written_in_our_own_names(
    name: str, tmp_path: Path
) -> None:
    spec = catalog.get(name).spec
    values = spec.values() | {"depth": 5, "vocab_size": 300}
    if spec.ngrams:
        values["ngrams"] |= {"rows": 64}
    spec = ModelSpec.parse(values)
    made = write(spec, tmp_path / "out.gguf", type="q8_0")
    assert made.architecture == "flyweight"
    assert "llama.cpp has no architecture" in made.notes[0]
    opened = open_gguf(tmp_path / "out.gguf")
    assert opened.spec == spec
    source = RandomSource(spec)
    assert opened.weights.keys() == source.shapes.keys()
    for tensor, weight in opened.weights.items():
        x = source.rows(tensor, slice(None)).reshape(weight.shape)
        assert np.abs(weight.dequantise() - x).max() <= 0.01 * np.abs(x).max()
    with pytest.raises(FlyweightError, match=r"no architecture .* Leave out --expand"):
        write(spec, tmp_path / "expanded.gguf", expand=True)
    assert not (tmp_path / "expanded.gguf").exists()


@pytest.mark.parametrize("name", ["mobillama-0.5b", "mobilellm-ls-125m"])
def test_shared_tensors_once_or_repeated(name: str, tmp_path: Path) -> None:
    spec = small(name)
    once, repeated = tmp_path / "once.gguf", tmp_path / "repeated.gguf"
    made = write(spec, once, type="f32")
    assert made.architecture == "flyweight"
    assert "--expand repeats them" in made.notes[0]
    assert open_gguf(once).spec == spec
    assert write(spec, repeated, type="f32", expand=True).architecture == "llama"
    opened = open_gguf(repeated)
    assert opened.spec.depth == spec.uses
    assert opened.spec.share == type(spec.share)()
    source = RandomSource(spec)
    for tensor, weight in opened.weights.items():
        ours = tensor
        if tensor.startswith("blocks."):
            _, number, rest = tensor.split(".", 2)
            ours = f"blocks.{int(number) // spec.share.repeat}.{rest}"
        if ours not in source.shapes:
            ours = "shared_feedforward." + ours.partition("feedforward.")[2]
        x = source.rows(ours, slice(None)).reshape(weight.shape)
        assert np.array_equal(weight.dequantise(), x), tensor
    assert made.bytes < 0.7 * sum(t.data.nbytes for t in GgufFile(repeated).tensors.values())


def test_the_mixture_is_llama_cpps(tmp_path: Path) -> None:
    values = {"width": 256, "depth": 16, "feedforward": {"hidden": 512}, "tie_embeddings": False}
    spec = small("smollm2-135m", **values)
    assert write(spec, tmp_path / "out.gguf", type="q4_k_m").notes == ()
    formats = {t.name: t.form.name for t in GgufFile(tmp_path / "out.gguf").tensors.values()}
    assert formats["output.weight"] == "q6_k"
    assert formats["token_embd.weight"] == formats["blk.0.attn_q.weight"] == "q4_k"
    assert formats["blk.0.attn_norm.weight"] == "f32"
    six = [i for i in range(16) if formats[f"blk.{i}.ffn_down.weight"] == "q6_k"]
    assert six == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [i for i in range(16) if formats[f"blk.{i}.attn_v.weight"] == "q6_k"] == six


def test_rows_that_no_block_divides_are_said_aloud(tmp_path: Path) -> None:
    spec = small("stlm-50m", feedforward={"hidden": 1320})
    made = write(spec, tmp_path / "out.gguf", type="q4_0")
    note = "f16 instead of q4_0, as rows are no multiple of 32: blk.{0-3}.ffn_down.weight"
    assert made.notes == (note,)
    formats = {t.name: t.form.name for t in GgufFile(tmp_path / "out.gguf").tensors.values()}
    assert formats["blk.0.ffn_down.weight"] == "f16"
    assert formats["blk.0.ffn_up.weight"] == "q4_0"


def test_queries_and_keys_lie_as_llama_cpp_wants_them(tmp_path: Path) -> None:
    """Half a head apart becomes side by side: 0, d/2, 1, d/2 + 1, ..."""
    spec = small("smollm2-135m")
    write(spec, tmp_path / "out.gguf", type="f32")
    file = gguf.GGUFReader(tmp_path / "out.gguf")
    stored = {t.name: t.data for t in file.tensors}
    ours = RandomSource(spec).rows("blocks.0.attention.qkv.weight", slice(None))
    q = ours[:64].reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    assert np.array_equal(stored["blk.0.attn_q.weight"], q)
    values = ours[64 + 2 * (len(ours) - 64) // 2 - (len(ours) - 64) // 2 :]
    assert np.array_equal(stored["blk.0.attn_v.weight"], values)


# -- files that are not what they say


@pytest.fixture
def keys_of(tmp_path: Path) -> Callable[..., Path]:
    """A small llama's file with some keys changed (None: left out) and some tensors gone."""

    def make(changes: dict[str, Any], gone: tuple[str, ...] = (), own: bool = False) -> Path:
        path = tmp_path / "made.gguf"
        spec = small("smollm2-135m")
        path.unlink(missing_ok=True)
        write(spec, path, type="f32")
        file = GgufFile(path)
        keys = file.metadata | changes
        if not own:
            keys.pop("flyweight.spec", None)
        tensors = [
            Written(t.name, t.shape, FORMATS["f32"], lambda a, b, t=t: _rows(t.dequantise())[a:b])
            for t in file.tensors.values()
            if t.name not in gone
        ]
        out = tmp_path / "lie.gguf"
        out.unlink(missing_ok=True)
        write_gguf(out, {k: v for k, v in keys.items() if v is not None}, tensors)
        return out

    return make


@pytest.mark.parametrize(
    ("changes", "gone", "error"),
    [
        ({"general.architecture": None}, (), "does not say general.architecture"),
        ({"general.architecture": "lama"}, (), "'lama' is not supported; did you mean `llama`"),
        ({"llama.block_count": None}, (), "does not say llama.block_count"),
        ({"llama.block_count": 0}, (), "llama.block_count is 0"),
        ({"llama.block_count": "4"}, (), "llama.block_count is '4': a whole number"),
        ({"llama.block_count": 5}, (), "missing .*blk.4.attn_norm"),
        ({"llama.block_count": 3}, (), "unexpected .*blk.3.attn_norm"),
        ({"llama.block_count": 1 << 30}, (), "too few for the 1073741824 layers"),
        ({"llama.attention.head_count": 1 << 30}, (), "heads"),
        ({"llama.attention.head_count": 3}, (), "heads|shape|multiple"),
        ({"llama.attention.head_count_kv": [2, 2, 1, 2]}, (), "differs between layers"),
        ({"llama.embedding_length": 128}, (), "misshapen"),
        ({"llama.feed_forward_length": 95}, (), "misshapen"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, (), "more than 0 is wanted"),
        ({"llama.rope.freq_base": float("nan")}, (), "more than 0 is wanted"),
        ({"llama.rope.dimension_count": 32}, (), "32 dimensions of heads of 16 turn"),
        ({"llama.rope.scaling.type": "yarn"}, (), "'yarn' is not supported"),
        ({"llama.expert_count": 8}, (), "llama.expert_count = 8 is not supported"),
        ({}, ("token_embd.weight",), "no matrix 'token_embd.weight'"),
        ({}, ("blk.2.ffn_up.weight",), "missing .*blk.2.ffn_up.weight"),
        ({"general.architecture": "flyweight"}, (), "has no flyweight.spec"),
    ],
)
def test_keys_and_tensors_that_make_no_model(
    keys_of: Callable[..., Path], changes: dict[str, Any], gone: tuple[str, ...], error: str
) -> None:
    with pytest.raises(FlyweightError, match=rf"(?s)lie\.gguf.*({error})"):
        open_gguf(keys_of(changes, gone))


def test_an_own_spec_that_lies(keys_of: Callable[..., Path]) -> None:
    for text, error in [
        ("{", "is no JSON"),
        ("[1]", "is no JSON|table"),
        ('{"width": 3}', "flyweight.spec.vocab_size"),
        ("[" * 100_000, "is no JSON"),
    ]:
        with pytest.raises(CorruptFileError, match=rf"lie\.gguf.*{error}"):
            open_gguf(keys_of({"flyweight.spec": text}, own=True))
    with pytest.raises(FlyweightError, match="flyweight.version is 9"):
        open_gguf(keys_of({"flyweight.version": 9}, own=True))
    huge = small("smollm2-135m").values()
    huge["attention"] |= {"head_dim": 1 << 40}
    with pytest.raises(FlyweightError, match="no tensor wide enough"):
        open_gguf(keys_of({"flyweight.spec": json.dumps(huge)}, own=True))


def test_keys_that_were_changed_count_more_than_the_own_spec(keys_of: Callable[..., Path]) -> None:
    opened = open_gguf(keys_of({"llama.rope.freq_base": 77.0}, own=True))
    assert opened.spec.position.theta == 77.0
    assert opened.notes == ("flyweight.spec contradicts the other keys and was not used",)
    opened = open_gguf(keys_of({"llama.something.new": 1}))
    assert opened.notes == ("llama.something.new is not known and was not used",)


def test_the_tokenizer_lies_in_the_file(tmp_path: Path) -> None:
    spec = small("smollm2-135m")
    write(spec, tmp_path / "out.gguf")
    path = tmp_path / "out.gguf"
    back = gguf_tokenizer(path, open_gguf(path).metadata)
    assert back.digest == load_tokenizer(path).digest == ByteTokenizer().digest


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} é")
    template = chat_template(tmp_path / "tokenizer.json")
    write(small("smollm2-135m"), tmp_path / "out.gguf", template=template)
    file = GgufFile(tmp_path / "out.gguf")
    assert file.metadata["tokenizer.chat_template"] == "{{ messages }} é"
    (tmp_path / "chat_template.jinja").write_text("of another model")
    assert chat_template(tmp_path / "out.gguf") == "{{ messages }} é"


def test_every_kind_of_conftest_is_accounted_for() -> None:
    assert set(KINDS) - set(ORDINARY) == {
        *("mistral", "qwen2-window", "dynamic-rope", "gpt2-exact"),
        *("codegen", "codegen-exact"),
    }
