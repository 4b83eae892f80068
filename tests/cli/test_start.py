"""`[model] start = MODEL`: a run that goes on from weights, as a person meets it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import flyweight  # noqa: E402
from flyweight.data.batches import Batch, Batches  # noqa: E402
from flyweight.data.shards import Dataset  # noqa: E402

Command, Finished = Callable[..., Any], Callable[[str], Path]
# Another order of the text, and another length, than the runs that are started from.
CONFIG = """
seed = 5
[model]
start = "{start}"
[data]
train = ["texts"]
[train]
batch_tokens = 512
steps = 3
threads = 1
precision = "f32"
optimizer = {{ kind = "adamw" }}
sample_every = 1000
"""


@pytest.fixture
def train(command: Command, finished: Finished, tmp_path: Path) -> Command:
    """Train from ``start`` to the folder ``new``, with settings."""
    texts = finished("bpe").parent.parent / "texts"
    shutil.copytree(texts, tmp_path / "texts")

    def run(start: object, *settings: str) -> Any:
        (tmp_path / "start.toml").write_text(CONFIG.format(start=start))
        return command("train", "start.toml", "--out", "new", *settings)

    return run


def first_batch(run: Path) -> Batch:
    recorded = json.loads((run / "data.json").read_text())
    order = {k: recorded["order"][k] for k in ("context", "batch_tokens", "seed")}
    return Batches(Dataset.open(run / recorded["dataset"]), **order).batch(0)


def ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


def plain_loss(logits: Any, batch: Batch) -> float:
    log_probs = logits.double().log_softmax(dim=-1)
    return -float(log_probs.gather(2, torch.from_numpy(batch.targets_BT)[..., None]).mean())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["bpe", "patches"])
def test_the_first_step_has_the_old_models_loss(
    train: Command, finished: Finished, kind: str
) -> None:
    hidden = ["model.ngrams.dropout=0.0"] if kind == "patches" else []
    said = train(finished(kind), *hidden).ok().err
    assert "its weights are in checkpoint 0" in said
    new = Path("new")
    batch = first_batch(new)
    old = flyweight.load(finished(kind), engine="torch").decoder
    with torch.no_grad():
        tokens, documents = (torch.from_numpy(a) for a in (batch.tokens_BT, batch.documents_BT))
        expected = plain_loss(old(tokens, documents), batch)
    assert ledger(new)[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert expected < ledger(finished(kind))[0]["loss"] - 0.2, "it had learned something"
    # The same weights in every place, and their digest in run.toml.
    weights = finished(kind) / "checkpoints/000012/model.safetensors"
    run = tomllib.loads((new / "run.toml").read_text())
    assert run["start"] == {"model": str(finished(kind)), "sha256": sha256(weights)}
    assert sha256(new / "checkpoints/000000/model.safetensors") == sha256(weights)
    assert (new / "dataset/tokenizer.json").read_bytes() == (
        finished(kind) / "model/tokenizer.json"
    ).read_bytes()


def test_it_is_resumed_without_the_model_that_it_started_from(
    train: Command, finished: Finished, command: Command
) -> None:
    shutil.copytree(finished("bpe"), "old")
    train("old@8", "train.checkpoint.every=1", "train.checkpoint.keep=1").ok()
    new, last = Path("new"), Path("new/checkpoints/000003")
    assert sorted(p.name for p in Path("new/checkpoints").iterdir()) == ["000000", "000003"]
    whole = {path.name: path.read_bytes() for path in last.iterdir()}
    losses = [line["loss"] for line in ledger(new)]
    shutil.rmtree(last)
    shutil.rmtree("old")
    command("resume", "new").ok()
    assert {path.name: path.read_bytes() for path in last.iterdir()} == whole
    assert [line["loss"] for line in ledger(new)] == losses
    # Killed before checkpoint 0 was whole, it must find the start again, and finds it gone.
    shutil.rmtree(last)
    shutil.rmtree("new/checkpoints/000000")
    command("resume", "new").failed("no such run folder", "old")


def test_from_a_folder_that_transformers_wrote(train: Command, finished: Finished) -> None:
    tokenizer = finished("bpe") / "model/tokenizer.json"
    vocab = flyweight.load_tokenizer(tokenizer).vocab_size
    torch.manual_seed(3)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.3, rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        )
    )  # fmt: skip
    theirs.save_pretrained("llama")
    shutil.copy(tokenizer, "llama/tokenizer.json")
    # Rows longer than its context, and slower positions, of which its tensors know nothing.
    done = train("llama", "train.context=128", "model.position.theta=500000.0").ok()
    assert "model.context grows from 64 to train.context = 128" in done.err
    spec = flyweight.load("new", engine="torch").spec
    assert (spec.context, spec.position.theta, spec.kv_heads) == (128, 500000.0, 2)
    theirs.config.rope_parameters["rope_theta"] = 500000.0
    slower = transformers.LlamaForCausalLM(theirs.config)
    slower.load_state_dict(theirs.state_dict())
    batch = first_batch(Path("new"))
    logits = []
    with torch.no_grad():
        for row, documents in zip(batch.tokens_BT, batch.documents_BT, strict=True):
            same = torch.from_numpy(documents[:, None] == documents[None, :])
            seen = same & torch.ones_like(same).tril()
            mask = torch.zeros(same.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            tokens = torch.from_numpy(row)[None]
            logits.append(slower(tokens, attention_mask=mask[None, None]).logits)
    expected = plain_loss(torch.cat(logits), batch)
    assert ledger(Path("new"))[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_quantised_file_starts_as_what_it_stands_for(
    train: Command, finished: Finished, command: Command
) -> None:
    command("export", finished("bpe"), "old.gguf", "--to", "gguf", "--type", "q8_0").ok()
    done = train("old.gguf").ok()
    assert "old.gguf is quantised (q8_0): it starts rounded" in done.err
    old = flyweight.load("old.gguf", engine="torch").decoder
    begun = flyweight.load("new@0", engine="torch").decoder
    for name, tensor in old.state_dict().items():
        assert torch.equal(begun.state_dict()[name], tensor), name


def test_a_built_dataset_must_have_the_same_tokenizer(
    train: Command, finished: Finished, command: Command
) -> None:
    train(finished("bpe"), f'data.train=["{finished("bpe")}/dataset"]').ok()
    shutil.rmtree("new")
    done = train(finished("bpe"), f'data.train=["{finished("bytes")}/dataset"]')
    done.failed("is not the tokenizer of model.start", "Leave text.tokenizer out")
    assert not Path("new").exists()


def test_a_run_started_from_weights_can_be_trained_again_from_its_run_toml(
    train: Command, finished: Finished, command: Command
) -> None:
    train(finished("bpe")).ok()
    command("train", "new/run.toml", "--out", "again").ok()
    again, new = (Path(name, "checkpoints/000003/model.safetensors") for name in ("again", "new"))
    assert again.read_bytes() == new.read_bytes()
    wrong = "start.sha256=" + 64 * "0"
    command("train", "new/run.toml", "--out", "other", wrong).failed("holds other weights")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.use=stlm-10m"], ["model.use = 'stlm-10m'", "keep one of them"]),
        (["model.width=64"], ["model.width = 64", "model.start has 32", "position.theta"]),
        (["model.attention.heads=4"], ["model.attention.heads = 4", "has 2"]),
        (['text.tokenizer={ kind = "bpe", size = 400 }'], ["trains a new vocabulary"]),
        (["text.tokenizer=bytes"], ["text.tokenizer = bytes is not", "258 tokens, the model's"]),
        (["start.model=elsewhere"], ["both set"]),
        (["model.start=4"], ["`start.model`", "text is wanted"]),
        (["model.start=stlm-10m"], ["a name of the zoo", 'model.use = "stlm-10m"']),
        (["model.start=nothing-there"], ["no model at"]),
        (["model.start=texts"], ["is no model"]),
    ],
)
def test_what_cannot_be_is_refused(
    train: Command, finished: Finished, settings: list[str], said: list[str]
) -> None:
    train(finished("bpe"), *settings).failed(*said)
    assert not Path("new").exists()


def test_learned_positions_end_where_they_end(
    train: Command, command: Command, finished: Finished
) -> None:
    shape = (
        "model={ width = 32, depth = 1, attention = { heads = 2 }, feedforward = { hidden = 32 }"
    )
    (Path("gpt.toml")).write_text(CONFIG.format(start="x").replace('start = "x"\n', ""))
    learned = shape + ', position = { kind = "learned" } }'
    command("train", "gpt.toml", "--out", "gpt", learned, "train.context=64").ok()
    train("gpt", "train.context=128").failed("model.context = 128", "learned its 64 positions")
