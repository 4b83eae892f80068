"""The tables of a configuration: what they take, what they refuse, and in which words."""

from __future__ import annotations

import pickle
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec import toml
from flyweight.spec.errors import ConfigurationError
from flyweight.spec.model import ModelSpec, PatchInput
from flyweight.spec.run import Data, RunSpec, Text, Train
from flyweight.zoo import catalog

SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "width": 32,
    "depth": 3,
    "context": 64,
    "attention": {"heads": 4},
    "feedforward": {"hidden": 48},
}


def refusal(table: type[Any], values: dict[str, Any], where: str = "") -> str:
    with pytest.raises(ConfigurationError) as caught:
        table.parse(values, where)
    return str(caught.value)


def small(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


INPUTS = st.one_of(
    st.just({"kind": "tokens"}),
    st.fixed_dictionaries(
        {"kind": st.just("patches")},
        optional={
            "patch": st.sampled_from(["fixed", "word"]),
            "size": st.integers(2, 64),
            "front_depth": st.integers(0, 3),
        },
    ),
    st.fixed_dictionaries({"kind": st.just("slots")}, optional={"slots": st.integers(2, 64)}),
)
POSITIVE = st.floats(min_value=1e-9, max_value=1e9)
MODELS = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(258, 10**6),
        "width": st.integers(1, 64).map(lambda n: 8 * n),
        "depth": st.integers(3, 99),
        "context": st.integers(1, 10**6),
        "attention": st.fixed_dictionaries(
            {"heads": st.sampled_from([2, 4])},
            optional={"kv_heads": st.sampled_from([1, 2]), "window": st.integers(1, 99)},
        ),
        "feedforward": st.fixed_dictionaries({"hidden": st.integers(1, 999)}),
        "input": INPUTS,
    },
    optional={
        "norm": st.fixed_dictionaries({"eps": POSITIVE}),
        "position": st.fixed_dictionaries({"theta": POSITIVE}),
        "share": st.sampled_from(
            [{"feedforward": "all"}, {"feedforward": "interior", "lora_rank": 4}]
        ),
        "scale": st.fixed_dictionaries({"logits": POSITIVE, "residual": POSITIVE}),
        "init": st.just({"kind": "zero-outputs"}),
    },
)
TRAINS = st.fixed_dictionaries(
    {
        "context": st.sampled_from([64, 128]),
        "batch_tokens": st.integers(1, 9).map(lambda n: n * 128),
    },
    optional={
        "steps": st.integers(1, 10**9),
        "schedule": st.fixed_dictionaries({"peak": POSITIVE, "decay": st.floats(0, 1)}),
        "ramp": st.lists(
            st.fixed_dictionaries({"context": st.sampled_from([16, 32]), "until": st.floats(0, 1)}),
            max_size=3,
        ),
    },
)


@given(MODELS)
def test_a_models_values_come_back_through_toml(values: dict[str, Any]) -> None:
    spec = ModelSpec.parse(values)
    assert ModelSpec.parse(tomllib.loads(toml.dumps(spec.values()))) == spec


@given(MODELS, TRAINS, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**63 - 1))
def test_a_runs_values_come_back_through_toml(
    model: dict[str, Any], train: dict[str, Any], name: str, seed: int
) -> None:
    text = {"tokenizer": {"kind": "bpe", "size": 300}}
    data = {"train": [name], "held_out": [name]}
    tables = {"model": model, "train": train, "text": text, "data": data}
    spec = RunSpec.parse({"name": name, "seed": seed, **tables})
    assert RunSpec.parse(tomllib.loads(toml.dumps(spec.values()))) == spec


@pytest.mark.parametrize("name", catalog.names())
def test_the_zoos_models_come_back_through_toml(name: str) -> None:
    spec = catalog.get(name).spec
    assert ModelSpec.parse(tomllib.loads(toml.dumps(spec.values()))) == spec


def of_model(**changes: Any) -> tuple[type[Any], dict[str, Any], str]:
    return ModelSpec, small(**changes), "model"


MISSPELT = {"kind": "patches", "widht": 3}
REFUSALS: list[tuple[tuple[type[Any], dict[str, Any], str], str]] = [
    (of_model(depht=2), "unknown key `model.depht`; did you mean `model.depth`?"),
    (of_model(heads=2), "unknown key `model.heads`; did you mean `model.attention.heads`?"),
    (
        of_model(attention={"heads": 4, "kv_head": 2}),
        "unknown key `model.attention.kv_head`; did you mean `model.attention.kv_heads`?",
    ),
    (
        of_model(input=MISSPELT),
        "unknown key `model.input.widht`; did you mean `model.input.width`?",
    ),
    (
        of_model(input={"kind": "tokens", "colour": 8}),
        "unknown key `model.input.colour`; known: kind",
    ),
    (
        of_model(input={"kind": "patchs"}),
        "`model.input.kind`: 'tokens', 'patches' or 'slots' is wanted (got 'patchs')"
        "; did you mean 'patches'?",
    ),
    (of_model(input={"width": 8}), "`model.input.kind` is required but missing"),
    (
        # The kind is called as one of its keys: the path must not lose one of them.
        of_model(input={"kind": "slots", "slots": 1}),
        "`model.input.slots`: 2 or more is wanted (got 1)",
    ),
    (
        of_model(ngrams={"orders": [1]}),
        "`model.ngrams.orders[0]`: 2 or more is wanted (got 1)",
    ),
    (
        of_model(ngrams={"order": [2]}),
        "unknown key `model.ngrams.order`; did you mean `model.ngrams.orders`?",
    ),
    (
        (Text, {"tokenizer": {"knd": "bpe"}}, "text"),
        "unknown key `text.tokenizer.knd`; did you mean `text.tokenizer.kind`?",
    ),
    (
        (Text, {"tokenizer": {"kind": "bpe2"}}, "text"),
        "`text.tokenizer.kind`: 'bytes', 'bpe', 'unigram' or 'file' is wanted (got 'bpe2')"
        "; did you mean 'bpe'?",
    ),
    (
        (Data, {"held_out": [3]}, "data"),
        "`data.held_out[0]`: text is wanted (got 3)",
    ),
    (
        (Data, {"held_out": 2}, "data"),
        "`data.held_out`: 1 or less is wanted (got 2)",
    ),
    (
        (Train, {"ramp": [{"context": 8, "untl": 1}]}, "train"),
        "unknown key `train.ramp[0].untl`; did you mean `train.ramp[0].until`?",
    ),
    (
        (Train, {"peak": 3}, "train"),
        "unknown key `train.peak`; did you mean `train.schedule.peak`?",
    ),
    (
        (RunSpec, {"model": SMALL, "train": {"stps": 3}}, ""),
        "unknown key `train.stps`; did you mean `train.steps`?",
    ),
    (
        (RunSpec, {"model": small(input=MISSPELT)}, ""),
        "unknown key `model.input.widht`; did you mean `model.input.width`?",
    ),
    ((RunSpec, {}, ""), "`model` is required but missing"),
]


@pytest.mark.parametrize(("call", "said"), REFUSALS)
def test_a_refusal_names_the_key_as_it_was_written(
    call: tuple[type[Any], dict[str, Any], str], said: str
) -> None:
    assert said in refusal(*call).splitlines()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm": {"bias": True}}, "bias needs kind = 'layer'"),
        ({"norm": {"kind": "layer", "bias": True, "gain": False}}, "bias needs kind = 'layer'"),
        ({"attention": {"heads": 4, "kv_heads": 3}}, "heads = 4 is no multiple of kv_heads = 3"),
        ({"attention": {"heads": 5}}, "width = 32 is no multiple of attention.heads = 5"),
        ({"attention": {"heads": 2, "head_dim": 3}}, "3 of them is odd"),
        ({"position": {"fraction": 0.2}}, "1 of them is odd"),
        ({"position": {"fraction": 0.0}}, "more than 0 is wanted (got 0.0)"),
        ({"position": {"kind": "alibi", "theta": 5e5}}, "theta does not apply to kind = 'alibi'"),
        (
            {"position": {"kind": "learned", "scaling": {"kind": "linear", "factor": 2}}},
            "scaling.kind = 'linear' does not apply to kind = 'learned'",
        ),
        (
            {"position": {"kind": "alibi", "scaling": {"kind": "longrope", "original": 8}}},
            "scaling.kind = 'longrope' does not apply to kind = 'alibi'",
        ),
        ({"position": {"scaling": {"kind": "linear"}}}, "takes one of factor and original"),
        (
            {"position": {"scaling": {"kind": "linear", "original": 8}}},
            "scaling.original of kind 'linear' is ALiBi's",
        ),
        (
            {"position": {"scaling": {"kind": "longrope", "original": 8, "long": [1.0, 2.0]}}},
            "position.scaling.long has 2 factors; half of the 8 rotating dimensions are wanted",
        ),
        (
            {"position": {"scaling": {"kind": "dynamic", "factor": 0.5, "original": 8}}},
            "`model.position.scaling.factor`: 1 or more is wanted (got 0.5)",
        ),
        (
            {"position": {"scaling": {"kind": "llama3", "factor": 2, "original": 8, "low": 5}}},
            "low = 5.0 must be less than high = 4.0",
        ),
        (
            {
                "input": {"kind": "patches"},
                "position": {"scaling": {"kind": "longrope", "original": 8}},
            },
            "position.scaling.original counts tokens",
        ),
        ({"attention": {"heads": 4, "qk_gain": True}}, "qk_gain belongs to qk_norm = true"),
        ({"logit_bias": True, "tie_embeddings": True}, "logit_bias needs a head of its own"),
        ({"share": {"ends": 2}}, "ends belongs to feedforward = 'interior'"),
        (
            {"depth": 4, "share": {"feedforward": "interior", "ends": 2}},
            "needs a depth of 5 or more",
        ),
        (
            {"input": {"kind": "slots", "front_widths": [32]}},
            "front_depth = 4, but front_widths has 1 entries",
        ),
        (
            {"input": {"kind": "slots", "front_widths": [64], "front_depth": 1}},
            "input.front_widths ends with 64, which must be width = 32",
        ),
        (
            {"input": {"kind": "slots", "front_widths": [36, 32], "front_depth": 2}},
            "a width of 36 is no multiple of heads = 8",
        ),
        ({"share": {"lora_rank": 4}}, "lora_rank belongs to feedforward = 'interior'"),
        ({"share": {"repeat": 2}}, "block = 'adjacent' goes with repeat"),
        ({"share": {"block": "adjacent"}}, "block = 'adjacent' goes with repeat"),
        ({"depth": 2, "share": {"feedforward": "interior"}}, "needs a depth of 3 or more"),
        ({"vocab_size": 256, "input": {"kind": "patches"}}, "vocab_size must be 258"),
        (
            {"input": {"kind": "patches"}, "position": {"kind": "learned"}},
            "position.kind = 'learned' does not apply to input.kind = 'patches'",
        ),
        (
            {"input": {"kind": "patches"}, "scale": {"embedding": 2.0}},
            "scale.embedding does not apply to input.kind = 'patches'",
        ),
        (
            {"position": {"kind": "relative", "theta": 5e5}},
            "theta does not apply to kind = 'relative'",
        ),
        ({"position": {"buckets": 16}}, "buckets does not apply to kind = 'rope'"),
        ({"position": {"kind": "alibi", "max_distance": 9}}, "max_distance does not apply"),
        ({"position": {"kind": "relative", "buckets": 2}}, "4 or more is wanted (got 2)"),
        ({"position": {"kind": "relative", "buckets": 7}}, "buckets = 7 must be even"),
        (
            {"position": {"kind": "relative", "max_distance": 16}},
            "max_distance = 16 must be more than half of buckets = 32",
        ),
        (
            {"position": {"kind": "relative", "scaling": {"kind": "linear", "factor": 2}}},
            "scaling.kind = 'linear' does not apply to kind = 'relative'",
        ),
        ({"encoder": {"depth": 1}}, "position.kind = 'rope' does not apply to an encoder-decoder"),
        *(
            (
                {"encoder": {"depth": 1}, "position": {"kind": "relative"}, **changes},
                f"{name} does not apply to an encoder-decoder; leave it out",
            )
            for name, changes in {
                "input": {"input": {"kind": "patches"}},
                "ngrams": {"ngrams": {}},
                "matches": {"matches": {}},
                "share": {"share": {"feedforward": "all"}},
                "attention.window": {"attention": {"heads": 4, "window": 8}},
                "branches": {"branches": "parallel"},
            }.items()
        ),
        (
            {"encoder": {"depth": 1, "start": 258}, "position": {"kind": "relative"}},
            "encoder.start = 258 is no token of vocab_size = 258",
        ),
        ({"encoder": {}, "position": {"kind": "relative"}}, "`model.encoder.depth` is required"),
        ({"input": {"kind": "slots"}, "matches": {}}, "matches does not apply"),
        ({"input": {"kind": "slots"}, "tie_embeddings": True}, "tie_embeddings does not apply"),
        ({"ngrams": {"orders": [2, 2]}}, "orders must be distinct"),
        ({"matches": {"lengths": []}}, "lengths must be distinct and not empty"),
        ({"width": True}, "`model.width`: a whole number is wanted (got true)"),
        (
            {"tie_embeddings": "perhaps"},
            "`model.tie_embeddings`: true or false is wanted (got 'perhaps')",
        ),
        ({"width": "wide"}, "`model.width`: a whole number is wanted (got 'wide')"),
    ],
)
def test_contradictions_of_a_model_are_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(ModelSpec, small(**changes), "model")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 3, "minutes": 2.0}, "steps and minutes are both set"),
        ({"steps": 3, "minutes": 2.0, "tokens": 5}, "steps and minutes and tokens are both set"),
        ({"context": 100}, "batch_tokens = 8192 is no multiple of context = 100"),
        ({"micro_batch_tokens": 512}, "micro_batch_tokens = 512 must be a multiple of context"),
        ({"micro_batch_tokens": 3072}, "and divide batch_tokens = 8192"),
        ({"ramp": [{"context": 300, "until": 0.5}]}, "ramp context 300 does not divide 1024"),
        ({"steps": 0}, "`train.steps`: more than 0 is wanted (got 0)"),
        ({"optimizer": {"beta1": 1.0}}, "`train.optimizer.beta1`: less than 1 is wanted (got 1.0)"),
        ({"schedule": {"decay": 1.5}}, "`train.schedule.decay`: 1 or less is wanted"),
        ({"steps": True}, "`train.steps`: a whole number is wanted (got true)"),
    ],
)
def test_contradictions_of_a_run_are_refused(values: dict[str, Any], said: str) -> None:
    assert said in refusal(Train, values, "train")


def test_a_tokenizer_is_written_short_or_as_a_table() -> None:
    assert Text.parse({"tokenizer": "bytes"}) == Text()
    assert Text.parse({"tokenizer": "a/tokenizer.json"}).tokenizer.path == "a/tokenizer.json"
    assert "path goes with kind = 'file'" in refusal(Text, {"tokenizer": {"kind": "file"}})
    assert "size (the vocabulary)" in refusal(Text, {"tokenizer": {"kind": "bpe"}})
    assert "size (the vocabulary)" in refusal(Text, {"tokenizer": {"kind": "bytes", "size": 300}})


def test_a_spec_is_immutable_and_tells_its_derived_sizes() -> None:
    spec = ModelSpec.parse(
        small(input={"kind": "patches", "width": 12}, share={"block": "adjacent", "repeat": 2})
    )
    assert isinstance(spec.input, PatchInput)
    assert (spec.head_dim, spec.kv_heads, spec.rotary_dim, spec.uses) == (8, 4, 8, 6)
    assert spec.embedding_width == 12
    with pytest.raises(AttributeError, match="frozen"):
        spec.width = 5  # type: ignore[misc]


def test_a_key_like_no_other_is_refused_with_those_there_are() -> None:
    """Though a run's tables hold one that may hold itself (a mix and its decay)."""
    (line,) = refusal(RunSpec, {"model": SMALL, "train": {"zzqqxx": 1}}).splitlines()
    assert line.startswith("unknown key `train.zzqqxx`; known: batch_tokens, ")


def test_all_that_is_wrong_is_said_at_once() -> None:
    values = {
        "model": small(width="wide", depht=3, norm={"eps": float("inf")}),
        "train": {"steps": 1.5, "clip": float("nan"), "ramp": [{"until": 2}, 7]},
        "data": {"train": "notes", "sources": {"wiki": {"paths": ["a"], "subst": "b"}}},
        "seed": True,
    }
    assert refusal(RunSpec, values).splitlines() == [
        "`seed`: a whole number is wanted (got true)",
        "`model.width`: a whole number is wanted (got 'wide')",
        "`model.norm.eps`: a number is wanted (got inf)",
        "unknown key `model.depht`; did you mean `model.depth`?",
        "`data.train`: a list is wanted (got 'notes')",
        "unknown key `data.sources.wiki.subst`; did you mean `data.sources.wiki.subset`?",
        "`train.steps`: a whole number is wanted (got 1.5)",
        "`train.ramp[0].until`: 1 or less is wanted (got 2)",
        "`train.ramp[1]`: a table is wanted (got 7)",
        "`train.clip`: a number is wanted (got nan)",
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ((Data, {"held_out": "a tenth"}, "data"), "`data.held_out`: a number or a list is wanted"),
        ((Data, {"held_out": True}, "data"), "(got true)"),
        ((Data, {"decontaminate": {"files": []}}, "data"), "files`: an entry is wanted (got [])"),
        ((Data, {"mix": {"weights": {"a": -1}}}, "data"), "`data.mix.weights.a`: 0 or more is"),
        (
            (Data, {"clean": {"repetition": {"top_ngrams": {"two": 0.1}}}}, "data"),
            "`data.clean.repetition.top_ngrams.two`: a whole number is wanted (got 'two')",
        ),
        ((Data, {"clean": []}, "data"), "`data.clean`: a table is wanted (got [])"),
        (
            (RunSpec, {"model": SMALL, "start": {"model": "a", "sha256": "abc"}}, ""),
            "`start.sha256`: text of the form [0-9a-f]{64} is wanted (got 'abc')",
        ),
        (of_model(input="bytes"), "`model.input`: a table is wanted (got 'bytes')"),
        (of_model(width="w" * 5000), "..."),
    ],
)
def test_values_of_another_kind_are_refused(
    call: tuple[type[Any], dict[str, Any], str], said: str
) -> None:
    (line,) = refusal(*call).splitlines()
    assert said in line and len(line) < 250


def test_whole_floats_are_numbers_of_things_and_tables_stay_themselves() -> None:
    train = Train.parse({"steps": 1e6, "clip": 1, "dropout": 0})
    assert train.steps == 10**6 and isinstance(train.steps, int)
    assert isinstance(train.clip, float) and train.dropout is not None
    assert Train.parse({"schedule": train.schedule}).schedule is train.schedule
    repetition = {"clean": {"repetition": {"top_ngrams": {"2": 0.5}}}}
    data = Data.parse(repetition)
    assert data.clean is not None and data.clean.repetition is not None
    assert data.clean.repetition.top_ngrams == {2: 0.5}
    assert data.values()["clean"]["repetition"]["top_ngrams"] == {"2": 0.5}


def test_a_table_knows_what_was_written_and_what_replaces_it() -> None:
    data = Data(train=["a"], held_out=0.1)
    assert data.given == {"train", "held_out"} and Data(train=["a"]) == data
    assert data.replace(train=["b"]) == Data(train=["b"], held_out=0.1)
    assert data.replace(workers=2).given == {"train", "held_out", "workers"}
    with pytest.raises(ConfigurationError, match="unknown key `trian`; did you mean `train`"):
        data.replace(trian=[])
    again = pickle.loads(pickle.dumps(data))
    assert again == data and again.given == data.given
    Data().train.append("kept apart")
    assert Data().train == []
    assert repr(Text()).startswith("Text(tokenizer=Tokenizer(kind='bytes', size=None")
    with pytest.raises(AttributeError, match="frozen"):
        del data.train  # type: ignore[misc]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted({*ModelSpec.keys(), *Train.keys(), *RunSpec.keys(), "kind"}))


@given(st.dictionaries(KEYS | st.text(max_size=5), ANYTHING | st.dictionaries(KEYS, ANYTHING)))
def test_whatever_stands_in_a_file_gives_a_table_or_one_error(values: dict[str, Any]) -> None:
    for table in (RunSpec, ModelSpec, Train, Data):
        try:
            read = table.parse(values, "top")
        except ConfigurationError as error:
            assert str(error)
        else:
            assert table.parse(tomllib.loads(toml.dumps(read.values()))) == read
