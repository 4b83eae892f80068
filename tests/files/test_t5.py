"""T5 in and out, beside transformers: its files, its logits, its tokenizer, what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

import flyweight  # noqa: E402
from flyweight.files.config_json import describe  # noqa: E402
from flyweight.files.model_folder import read_spec, write_model_folder  # noqa: E402
from flyweight.files.tensors import write_tensors  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.errors import FlyweightError  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402
from flyweight.zoo import catalog  # noqa: E402

# 300 pieces, 100 sentinels, and what rounds the vocabulary up.
PIECES, VOCAB = 300, 416
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Settings, and whether the head is a matrix of its own.
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "flan": (GATED, True),
    "1.0": ({"feed_forward_proj": "relu"}, False),
    "tied, not scaled": (GATED | {"num_decoder_layers": 2}, False),
    "inner width is the model's": (GATED | {"d_kv": 8, "feed_forward_proj": "gelu_new"}, True),
}
SOURCE, ANSWER = torch.tensor([[5, 90, 7, 301, 44, 260, 1]]), torch.tensor([[0, 12, 399, 3, 77]])
# google/flan-t5-small's own, but for what other tasks want.
PUBLISHED = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"prefix": "summarize: "}},
    "tie_word_embeddings": False,
    "transformers_version": "4.23.1",
    "use_cache": True,
    "vocab_size": 32128,
}


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with T5's first ids: <pad>, </s>, <unk>."""
    folder = tmp_path_factory.mktemp("spiece")
    lines = [line.strip() for line in Path(json.__file__).read_text().splitlines() if line.strip()]
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=PIECES,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def their_tokenizer(spiece: Path) -> Any:
    """transformers' own, given the pieces: it reads the file only where protobuf is installed."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(PIECES)]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    return transformers.T5Tokenizer(vocab=vocab + sentinels)


@pytest.fixture
def made(tmp_path: Path, their_tokenizer: Any) -> Callable[..., tuple[Path, Any]]:
    """Makes a T5 of transformers, with its tokenizer; returns its folder and the model."""

    @torch.no_grad()
    def make(kind: str, dtype: Any = torch.float32) -> tuple[Path, Any]:
        settings, own_head = KINDS[kind]
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SHAPE | settings))
        if own_head:
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            noise = torch.randn(parameter.shape, generator=generator) * wide
            parameter.copy_(noise + (parameter.ndim == 1))
        model.shared.weight *= 4
        model = model.to(dtype).eval()
        folder = tmp_path / "theirs"
        model.save_pretrained(folder)
        if own_head and "lm_head.weight" not in load_file(folder / "model.safetensors"):
            # transformers 5 takes every head of T5's for the embedding when it saves.
            save_file(whole(model), folder / "model.safetensors", {"format": "pt"})
        their_tokenizer.save_pretrained(folder)
        return folder, model

    return make


def whole(model: Any) -> dict[str, Any]:
    """The state without the copies of the embedding."""
    state = model.state_dict()
    return {n: t.clone() for n, t in state.items() if not n.endswith("embed_tokens.weight")}


def same_logits(mine: Any, theirs: Any) -> None:
    with torch.no_grad():
        expected = theirs(input_ids=SOURCE, decoder_input_ids=ANSWER).logits.float()
        found = mine.decoder(ANSWER, memory=mine.decoder.encode(SOURCE))
    assert expected.std() > 0.3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def same_weights(one: Any, other: Any) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(
    kind: str, made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """transformers -> Flyweight -> transformers: equal logits there, equal bits back."""
    theirs, model = made(kind)
    ours, back = tmp_path / "ours", tmp_path / "back"
    command("import", theirs, ours).ok()
    spec = read_spec(ours)
    assert spec.tie_embeddings != KINDS[kind][1]
    same_logits(flyweight.load(ours), model)
    same_logits(flyweight.load(theirs), model)
    done = command("export", ours, back, "--json").ok()
    said = {"out": str(back), "architecture": "T5ForConditionalGeneration", "folded": False}
    assert json.loads(done.out) == said
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(back)
    same_weights(again, model)
    with torch.no_grad():
        expected = model(input_ids=SOURCE, decoder_input_ids=ANSWER).logits
        assert torch.equal(again(input_ids=SOURCE, decoder_input_ids=ANSWER).logits, expected)
    command("import", back, tmp_path / "ours again").ok()
    for name in ("model.safetensors", "model.toml", "tokenizer.json"):
        first, second = (tmp_path / at / name for at in ("ours", "ours again"))
        one, other = first.read_text("latin-1"), second.read_text("latin-1")
        assert one.replace("theirs", "back") == other


def test_half_precision_keeps_every_bit(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, model = made("flan", torch.bfloat16)
    command("import", theirs, tmp_path / "ours").ok()
    command("export", tmp_path / "ours", tmp_path / "back").ok()
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back", dtype="auto")
    same_weights(again, model)


def test_copies_of_the_embedding_are_compared(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """The older files, in pickles, have it three times, and a bias that is of no use."""
    theirs, model = made("flan")
    state = whole(model)
    for stack in ("encoder", "decoder"):
        state[f"{stack}.embed_tokens.weight"] = state["shared.weight"]
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    state[unused] = torch.ones(8, 4)
    (theirs / "model.safetensors").unlink()
    torch.save(state, theirs / "pytorch_model.bin")
    done = command("import", theirs, tmp_path / "ours").ok()
    assert "tied embedding.weight: 3 equal copies" in done.err
    assert unused in done.err
    same_logits(flyweight.load(tmp_path / "ours"), model)
    state["decoder.embed_tokens.weight"] = state["shared.weight"] + 1
    torch.save(state, theirs / "pytorch_model.bin")
    refused = command("import", theirs, tmp_path / "no")
    refused.failed("shared.weight and decoder.embed_tokens.weight should be one tensor")


def test_what_is_missing_is_named(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, model = made("flan")
    state = whole(model)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    del state[table]
    for i in range(3):
        del state[f"decoder.block.{i}.layer.1.EncDecAttention.k.weight"]
    state["encoder.block.3.layer.0.layer_norm.weight"] = torch.ones(32)
    save_file(state, theirs / "model.safetensors")
    command("import", theirs, tmp_path / "ours").failed(
        "missing (4)",
        table,
        "decoder.block.{0-2}.layer.1.EncDecAttention.k.weight",
        "unexpected (1): encoder.block.3.layer.0.layer_norm.weight",
    )


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_published_configuration_is_that_of_the_zoo(size: str) -> None:
    spec = catalog.get(f"flan-t5-{size}").spec
    assert spec.encoder is not None
    config = PUBLISHED | {
        "d_model": spec.width,
        "d_ff": spec.feedforward.hidden,
        "num_heads": spec.attention.heads,
        "num_layers": spec.encoder.depth,
        "num_decoder_layers": spec.depth,
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
    }
    found = describe(config)
    assert found.spec == spec
    assert (found.layout, found.unused) == ("t5", ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feed_forward_proj": "gated-relu"}, "feed_forward_proj = 'gated-relu'"),
        ({"dense_act_fn": "relu"}, "dense_act_fn = 'relu' is not supported"),
        ({"is_gated_act": False}, "is_gated_act = False"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"num_heads": None}, "does not say `num_heads`"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id = -1 is no token's number"),
        ({"decoder_start_token_id": 40_000}, "encoder.start = 40000"),
        ({"relative_attention_num_buckets": 3}, "buckets"),
        ({"relative_attention_max_distance": 4}, "max_distance = 4"),
        ({"num_layers": 1 << 40}, "num_layers"),
    ],
)
def test_a_configuration_that_is_none(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FlyweightError, match=r"config\.json") as refused:
        describe(PUBLISHED | changes)
    assert said in str(refused.value)


def test_layers_that_cannot_be_there_cost_nothing(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, _ = made("flan")
    config = json.loads((theirs / "config.json").read_text())
    config["num_layers"] = (1 << 31) - 1
    (theirs / "config.json").write_text(json.dumps(config))
    command("import", theirs, tmp_path / "ours").failed("too few for the 2147483650 layers")


# -- it talks


def test_it_answers_as_transformers_does(
    made: Callable[..., Any], their_tokenizer: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, model = made("flan")
    command("import", theirs, tmp_path / "ours").ok()
    mine = flyweight.load(tmp_path / "ours")
    spare = list(range(len(their_tokenizer), VOCAB))
    for text in ("def loads(s):", "This is a test.", "Return ``None``."):
        ids = their_tokenizer(text, return_tensors="pt").input_ids
        assert mine._encode(text) == ids[0].tolist()
        said = model.generate(
            ids, max_new_tokens=20, do_sample=False, num_beams=1, suppress_tokens=[0, *spare]
        )
        expected = their_tokenizer.decode(said[0], skip_special_tokens=True)
        assert mine.generate(text, max_tokens=20) == expected
        done = command(
            "generate", tmp_path / "ours", text, "--max-tokens", 20, "--temperature", 0
        ).ok()
        assert done.out == expected + "\n"
    answer = "a dump of it"
    labels = their_tokenizer(answer, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss.item()
    scores = mine.logprobs(answer, source=text)
    assert [id for id, _ in scores] == labels[0].tolist()
    assert sum(value for _, value in scores) == pytest.approx(-loss * labels.numel(), rel=1e-4)


def test_a_text_alone_has_no_probability(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, _ = made("flan")
    (tmp_path / "text").write_text("Some text.")
    refused = command("eval", theirs, "--text", tmp_path / "text")
    refused.failed("is an encoder-decoder", "logprobs(text, source=...)")
    refused = command("import", theirs, tmp_path / "ours", "--fit", tmp_path / "text")
    refused.failed("too short")
    (tmp_path / "text").write_text("Some longer text. " * 20)
    refused = command("import", theirs, tmp_path / "ours", "--fit", tmp_path / "text")
    refused.failed("this model is an encoder-decoder")


# -- T5's tokenizer, from SentencePiece's file


def test_spiece_and_its_sentinels(spiece: Path, their_tokenizer: Any, tmp_path: Path) -> None:
    mine = flyweight.load_tokenizer(spiece)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    text = "Serialize ``obj`` to a JSON formatted ``str``."
    assert mine.encode(text) == theirs.encode(text)
    assert mine.vocab_size == PIECES + 100 == len(their_tokenizer)
    assert (mine.pad_id, mine.eot_id, mine.add_bos) == (0, 1, False)
    for i in (0, 1, 99):
        sentinel = f"<extra_id_{i}>"
        assert mine.encode(sentinel, specials=True)[-1] == VOCAB - 16 - 1 - i
        assert their_tokenizer.convert_tokens_to_ids(sentinel) == VOCAB - 16 - 1 - i
        assert VOCAB - 16 - 1 - i not in mine.encode(sentinel)
    # Saved, it is the same; transformers reads it and puts the end behind a text by itself.
    mine.save(tmp_path / "tokenizer.json")
    again = flyweight.load_tokenizer(tmp_path / "tokenizer.json")
    assert again.digest == mine.digest and again.encode(text) == mine.encode(text)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert fast(text).input_ids == [*mine.encode(text), 1]
    assert fast(text, text).input_ids == [*mine.encode(text), 1] * 2


@pytest.mark.parametrize(
    ("config", "sentinels"),
    [
        ({"tokenizer_class": "T5TokenizerFast"}, 100),
        ({"extra_ids": 7}, 7),
        ({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, 0),
        ({"tokenizer_class": "AlbertTokenizer"}, 0),
        (
            {
                "extra_ids": 2,
                "added_tokens_decoder": {
                    "300": {"content": "<extra_id_1>", "special": True},
                    "301": {"content": "<extra_id_0>", "special": True},
                },
            },
            2,
        ),
    ],
)
def test_as_many_sentinels_as_the_configuration_says(
    config: dict[str, Any], sentinels: int, spiece: Path, tmp_path: Path
) -> None:
    (tmp_path / "spiece.model").write_bytes((spiece / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = flyweight.load_tokenizer(tmp_path)
    assert found.vocab_size == PIECES + sentinels
    if sentinels:
        last = found.encode("<extra_id_0>", specials=True)
        assert last[-1] == PIECES + sentinels - 1
    for wrong in (-1, True, "100", 1 << 40):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"extra_ids": wrong}))
        with pytest.raises(FlyweightError, match=f"extra_ids = {wrong!r}"):
            flyweight.load_tokenizer(tmp_path)


def test_a_folder_with_spiece_alone_goes_out_whole(
    made: Callable[..., Any], spiece: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, _ = made("flan")
    (theirs / "tokenizer.json").unlink()
    for name in ("spiece.model", "tokenizer_config.json"):
        (theirs / name).write_bytes((spiece / name).read_bytes())
    command("import", theirs, tmp_path / "ours").ok()
    command("export", tmp_path / "ours", tmp_path / "back").ok()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    mine = flyweight.load(tmp_path / "ours")
    text = "Serialize it."
    assert tokenizer(text).input_ids == mine._encode(text) == [*mine.tokenizer.encode(text), 1]


# -- what T5's class does not compute


def model_folder(path: Path, **changes: Any) -> tuple[Path, Decoder]:
    spec = ModelSpec.parse(
        {
            "vocab_size": 258,
            "width": 32,
            "depth": 2,
            "context": 64,
            "norm": {"kind": "rms", "eps": 1e-6},
            "position": {"kind": "relative", "buckets": 8, "max_distance": 20},
            "attention": {"heads": 4, "scale": "1"},
            "feedforward": {"kind": "geglu", "hidden": 40},
            "encoder": {"depth": 1, "start": 256},
            **changes,
        }
    )
    model = Decoder(spec).eval()
    init_weights(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.2
    weights = path.with_suffix(".safetensors")
    write_tensors(weights, model.state_dict())
    write_model_folder(path, path.name, spec, weights, ByteTokenizer().to_json())
    return path, model


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention": {"heads": 4}}, "attention.scale = '1/sqrt(d)' in T5"),
        ({"attention": {"heads": 4, "scale": "1", "bias": True}}, "biases in T5"),
        ({"attention": {"heads": 4, "scale": "1", "kv_heads": 2}}, "kv_heads in T5"),
        ({"attention": {"heads": 4, "scale": "1", "qk_norm": True}}, "attention.qk_norm in T5"),
        ({"feedforward": {"kind": "relu2", "hidden": 40}}, "feedforward.kind = 'relu2' in T5"),
        ({"norm": {"kind": "layer"}}, "norm.kind = 'layer' in T5"),
        ({"encoder": None, "attention": {"heads": 4}}, "position.kind = 'relative'"),
    ],
)
def test_what_no_class_computes_is_refused(
    changes: dict[str, Any], said: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    ours, _ = model_folder(tmp_path / "ours", **changes)
    refused = command("export", ours, tmp_path / "out", "--to", "hf")
    refused.failed("no class of transformers computes this model", said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "scale", [{}, {"embedding": 2.0, "residual": 0.5, "logits": 0.3}, {"logits": 32**-0.5}]
)
def test_multipliers_become_part_of_the_weights(
    tied: bool, scale: dict[str, float], command: Callable[..., Any], tmp_path: Path
) -> None:
    ours, model = model_folder(tmp_path / "ours", scale=scale, tie_embeddings=tied)
    command("export", ours, tmp_path / "out").ok()
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "An encoder-decoder of" in card and "AutoModelForSeq2SeqLM" in card
    source, answer = torch.tensor([list(b"a source")]), torch.tensor([[256, *b"an answer"]])
    with torch.no_grad():
        expected = model(answer, memory=model.encode(source))
        found = theirs(input_ids=source, decoder_input_ids=answer).logits
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert theirs.generation_config.decoder_start_token_id == 256
    assert theirs.config.decoder_start_token_id == 256
