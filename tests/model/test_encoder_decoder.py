"""Encoder-decoders beside transformers' T5, on the same random weights of a reduced size."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

from flyweight.model.answer import AnsweringModel  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.model.positions import relative_buckets  # noqa: E402
from flyweight.spec.errors import FlyweightError  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.position import Position  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402

VOCAB, WIDTH, HIDDEN, HEADS, HEAD = 258, 48, 80, 4, 10
ENCODER, DECODER, BUCKETS, FAR = 3, 2, 8, 20
PAD, EOT = 256, 257
# FLAN's: gated, a head of its own, inner width unlike the model's; T5 1.0's: ReLU, tied and scaled.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flan": (
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"feedforward": {"kind": "geglu", "hidden": HIDDEN}},
    ),
    "t5 1.0": (
        {"feed_forward_proj": "relu"},
        {
            "feedforward": {"kind": "relu", "hidden": HIDDEN},
            "tie_embeddings": True,
            "scale": {"logits": WIDTH**-0.5},
        },
    ),
    "silu": (
        {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
        {"feedforward": {"kind": "swiglu", "hidden": HIDDEN}},
    ),
}


@torch.no_grad()
def theirs(settings: dict[str, Any], untied: bool) -> nn.Module:
    """T5 with weights far from their starting values."""
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=HEAD,
        d_ff=HIDDEN,
        num_layers=ENCODER,
        num_decoder_layers=DECODER,
        num_heads=HEADS,
        relative_attention_num_buckets=BUCKETS,
        relative_attention_max_distance=FAR,
        decoder_start_token_id=0,
        pad_token_id=PAD,
        eos_token_id=EOT,
        **settings,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    if untied:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        wide = parameter.shape[-1] ** -0.5
        if parameter.ndim == 1 or "relative" in name or "shared" in name:
            wide = 0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * wide)
        if parameter.ndim == 1:
            parameter += 1
    return model


def ours(model: nn.Module, changes: dict[str, Any]) -> Decoder:
    """Our model with exactly their tensors; every one of theirs is used."""
    state = model.state_dict()
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        state.pop(copy)
    head = state.pop("lm_head.weight")
    tensors = {"embedding.weight": state.pop("shared.weight")}
    if not changes.get("tie_embeddings"):
        tensors["head.weight"] = head
    for mine, stack, depth in (("encoder.", "encoder", ENCODER), ("", "decoder", DECODER)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tensors[f"{mine}positions.bias"] = state.pop(bias)
        tensors[f"{mine}norm.weight"] = state.pop(f"{stack}.final_layer_norm.weight")
        branches = [("attention", "SelfAttention"), ("cross_attention", "EncDecAttention")]
        branches = branches[: 1 if mine else 2]
        for i in range(depth):
            to, at = f"{mine}blocks.{i}.", f"{stack}.block.{i}.layer."
            for j, (name, their_name) in enumerate(branches):
                parts = [state.pop(f"{at}{j}.{their_name}.{n}.weight") for n in "qkv"]
                tensors[f"{to}{name}.qkv.weight"] = torch.cat(parts)
                tensors[f"{to}{name}.output.weight"] = state.pop(f"{at}{j}.{their_name}.o.weight")
                tensors[f"{to}{name}_norm.weight"] = state.pop(f"{at}{j}.layer_norm.weight")
            at = f"{at}{len(branches)}."
            tensors[f"{to}feedforward_norm.weight"] = state.pop(f"{at}layer_norm.weight")
            up = [f"{at}DenseReluDense.wi{part}.weight" for part in ("", "_0", "_1")]
            parts = [state.pop(name) for name in up if name in state]
            name = "gate_up" if len(parts) > 1 else "up"
            tensors[f"{to}feedforward.{name}.weight"] = torch.cat(parts)
            down = state.pop(f"{at}DenseReluDense.wo.weight")
            tensors[f"{to}feedforward.down.weight"] = down
    assert not state, sorted(state)
    mine = Decoder(small(**changes))
    mine.load_state_dict(tensors, strict=True)
    return mine.eval()


def small(**changes: Any) -> ModelSpec:
    return ModelSpec.parse(
        {
            "vocab_size": VOCAB,
            "width": WIDTH,
            "depth": DECODER,
            "context": 32,
            "norm": {"kind": "rms", "eps": 1e-6},
            "position": {"kind": "relative", "buckets": BUCKETS, "max_distance": FAR},
            "attention": {"heads": HEADS, "head_dim": HEAD, "scale": "1"},
            "feedforward": {"kind": "geglu", "hidden": HIDDEN},
            "encoder": {"depth": ENCODER},
            **changes,
        }
    )


Pair = tuple[Decoder, nn.Module]


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> Pair:
    settings, changes = KINDS[request.param]
    other = theirs(settings, not changes.get("tie_embeddings"))
    return ours(other, changes), other


@pytest.fixture(scope="module")
def texts(source: bytes) -> tuple[Tensor, Tensor]:
    """Sources (2, 50) and answers (2, 40) of real bytes."""
    rows = [list(source[at : at + 50]) for at in (0, 700)]
    answers = [[0, *source[at : at + 39]] for at in (1500, 3000)]
    return torch.tensor(rows), torch.tensor(answers)


def near(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_logits_are_those_of_t5(pair: Pair, texts: tuple[Tensor, Tensor]) -> None:
    mine, other = pair
    source, answer = texts
    expected = other(input_ids=source, decoder_input_ids=answer)
    memory = mine.encode(source)
    near(memory.hidden, expected.encoder_last_hidden_state)
    near(mine(answer, memory=memory), expected.logits)
    # The source matters, and so does its order.
    moved = mine(answer, memory=mine.encode(source.flip(1)))
    assert (moved - expected.logits).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 40, [7, 1, 1, 30, 1], [40]])
def test_from_a_cache_all_is_as_from_one_pass(
    pair: Pair, texts: tuple[Tensor, Tensor], chunks: list[int]
) -> None:
    mine, other = pair
    source, answer = (text[:1] for text in texts)
    expected = other(input_ids=source, decoder_input_ids=answer).logits
    memory = mine.encode(source)
    cache = mine.new_cache(memory=memory)
    parts = [mine(answer[:, : chunks[0]], cache=cache)]
    # Keys and values of the source are there now: what they were made of is not read again.
    memory.hidden = torch.full_like(memory.hidden, float("nan"))
    at = chunks[0]
    for chunk in chunks[1:]:
        parts.append(mine(answer[:, at : at + chunk], cache=cache))
        at += chunk
    near(torch.cat(parts, dim=1), expected)
    for slot in cache.slots:
        assert slot.source is not None and slot.source[0].shape == (1, HEADS, 50, HEAD)
    row = 4 * DECODER * 2 * HEADS * HEAD
    assert cache.bytes() == row * (50 + cache.slots[0].keys.shape[2])


@torch.no_grad()
def test_sources_of_unequal_lengths_are_each_as_alone(
    pair: Pair, texts: tuple[Tensor, Tensor]
) -> None:
    mine, other = pair
    source, answer = texts
    lengths = torch.tensor([50, 17])
    real = torch.arange(50)[None] < lengths[:, None]
    padded = source.masked_fill(~real, PAD)
    together = mine(answer, memory=mine.encode(padded, real))
    near(together, other(padded, real.long(), decoder_input_ids=answer).logits)
    for row, length in enumerate(lengths.tolist()):
        alone = mine(answer[row : row + 1], memory=mine.encode(source[row : row + 1, :length]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_packed_answers_are_each_as_alone(pair: Pair, texts: tuple[Tensor, Tensor]) -> None:
    """Documents within a row of the decoder: the position bias and the boundaries go together."""
    mine, _ = pair
    source, answer = (text[:1] for text in texts)
    memory = mine.encode(source)
    documents = torch.tensor([[0] * 15 + [1] * 25])
    together = mine(answer, documents, memory=memory)
    alone = torch.cat([mine(part, memory=memory) for part in answer.split([15, 25], dim=1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_t5(pair: Pair, texts: tuple[Tensor, Tensor]) -> None:
    """What tuning will follow, through the encoder, the cross attention and both bias tables."""
    mine, other = pair
    source, answer = texts
    labels = answer.roll(-1, dims=1)
    other.zero_grad()
    other(input_ids=source, decoder_input_ids=answer, labels=labels).loss.backward()
    mine.zero_grad()
    logits = mine(answer, memory=mine.encode(source))
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    key = "block.1.layer.1.EncDecAttention.k.weight"
    inner = HEADS * HEAD
    for found, expected in {
        mine.embedding.weight: other.shared.weight,
        mine.positions.bias: other.decoder.get_parameter(table),
        mine.encoder.positions.bias: other.encoder.get_parameter(table),
        mine.blocks[1].cross_attention.qkv.weight: other.decoder.get_parameter(key),
    }.items():
        grad = found.grad
        if grad.shape != expected.grad.shape:
            grad = grad[inner : 2 * inner]
        assert expected.grad.abs().max() > 1e-4
        assert (grad - expected.grad).abs().max() < 1e-4 * expected.grad.abs().max()


def test_gradients_in_half_precision_reach_the_whole_source(pair: Pair, source: bytes) -> None:
    """As many tokens in the answer as in the padded source: no cause for a causal gradient."""
    mine, _ = pair
    text = torch.tensor([list(source[at : at + 300]) for at in (0, 900)])
    real = torch.arange(300)[None] < torch.tensor([[300], [280]])
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        mine.zero_grad()
        logits = mine(text, memory=mine.encode(text, real, dtype), dtype=dtype)
        logits.logsumexp(-1).mean().backward()
        grads.append(mine.blocks[0].cross_attention.qkv.weight.grad[HEADS * HEAD :].clone())
    exact, rounded = grads
    assert exact.norm() > 1e-3
    # Rounding costs up to 0.1; a causal gradient, without what later tokens are worth, 0.37 to 0.4.
    assert (rounded - exact).norm() < 0.2 * exact.norm()


@given(
    half=st.integers(2, 40),
    more=st.integers(1, 300),
    both_ways=st.booleans(),
    first=st.integers(-1000, 1000),
)
def test_buckets_are_those_of_t5(half: int, more: int, both_ways: bool, first: int) -> None:
    buckets, farthest = 2 * half, half + more
    position = Position(kind="relative", buckets=buckets, max_distance=farthest)
    distance = torch.arange(first, first + 300)
    expected = T5Attention._relative_position_bucket(-distance, both_ways, buckets, farthest)
    assert torch.equal(relative_buckets(position, distance, both_ways), expected)


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_published_buckets(both_ways: bool) -> None:
    """32 buckets to 128, at every distance that a long text has: rounding is theirs, too."""
    distance = torch.arange(-5000, 5000)
    expected = T5Attention._relative_position_bucket(-distance, both_ways, 32, 128)
    assert torch.equal(relative_buckets(Position(kind="relative"), distance, both_ways), expected)
    # Both ways, no key is ahead by nothing: that bucket is never used.
    assert set(expected.tolist()) == set(range(32)) - ({16} if both_ways else set())


def talking(pair: Pair) -> AnsweringModel:
    return AnsweringModel("tiny", pair[0], ByteTokenizer())


@torch.no_grad()
def test_greedy_answers_are_those_of_transformers(pair: Pair) -> None:
    model, other = talking(pair), pair[1]
    ends = 0
    for text in ("summarize: ", "What is the answer to this question?", "", "Grüße"):
        ids = [EOT, *text.encode(), EOT]
        expected = other.generate(
            torch.tensor([ids]),
            max_new_tokens=30,
            do_sample=False,
            num_beams=1,
            suppress_tokens=[PAD],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        )[0].tolist()[1:]
        ends += EOT in expected
        shown = bytes(id for id in expected if id < 256).decode("utf-8", "replace")
        assert model.generate(text, max_tokens=30) == shown
        assert "".join(model.stream(text, max_tokens=30)) == shown
        # Past the trained context of 32 as well.
        assert model.generate(text, max_tokens=60, min_tokens=60).startswith(shown[:20])
    assert model.generate("a", max_tokens=0) == ""


@torch.no_grad()
def test_the_log_probability_of_an_answer(pair: Pair) -> None:
    model, other = talking(pair), pair[1]
    source, answer = "Where does it stand?", "Nowhere: é."
    found = model.logprobs(answer, source=source)
    labels = [*answer.encode(), EOT]
    assert [id for id, _ in found] == labels
    ids = torch.tensor([[EOT, *source.encode(), EOT]])
    logits = other(ids, decoder_input_ids=torch.tensor([[0, *labels[:-1]]])).logits[0]
    expected = logits.double().log_softmax(-1)[range(len(labels)), labels]
    values = torch.tensor([value for _, value in found], dtype=torch.float64)
    assert (values - expected).abs().max() < 1e-3
    # An empty answer is its end; a source without the token that the tokenizer puts in front.
    ((id, _),) = model.logprobs("", source=source)
    assert id == EOT
    assert model.logprobs(answer, bos=False, source=source) != found
    with pytest.raises(FlyweightError, match=r"encoder-decoder.*logprobs\(text, source=...\)"):
        model.logprobs(answer)


def test_an_answer_of_a_batch_is_not_cached(pair: Pair, texts: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(FlyweightError, match="its decoder needs a source"):
        pair[0](texts[1])


def test_a_decoder_alone_has_no_source(texts: tuple[Tensor, Tensor]) -> None:
    alone = Decoder(small(encoder=None))
    init_weights(alone, 0)
    with pytest.raises(FlyweightError, match="has no encoder"):
        alone.encode(texts[0])
    pair = Decoder(small())
    init_weights(pair, 0)
    with pytest.raises(FlyweightError, match="answers no encoded source"):
        alone(texts[1], memory=pair.encode(texts[0]))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["normal", "zero-outputs"])
def test_every_weight_starts_somewhere(kind: str, texts: tuple[Tensor, Tensor]) -> None:
    """Zero outputs leave the stream as it is: then the answer is that of norm and head alone."""
    model = Decoder(small(init={"kind": kind}))
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    init_weights(model, 1)
    zero = {name for name, p in model.named_parameters() if not p.any()}
    ends = ("attention.output.weight", "feedforward.down.weight", "head.weight")
    outputs = {name for name, _ in model.named_parameters() if name.endswith(ends)}
    assert zero == (outputs if kind == "zero-outputs" else set())
    assert model(texts[1], memory=model.encode(texts[0])).isfinite().all()


@torch.no_grad()
def test_all_other_parts_go_with_an_encoder(texts: tuple[Tensor, Tensor]) -> None:
    """Grouped queries, biases, normalised queries and keys, layer norms, multipliers: padded rows
    and the cache agree with one row alone."""
    model = Decoder(
        small(
            attention={"heads": 4, "kv_heads": 2, "bias": True, "qk_norm": True, "qk_gain": True},
            norm={"kind": "layer", "bias": True},
            feedforward={"kind": "gelu", "hidden": 40, "bias": True},
            scale={"embedding": 3.0, "residual": 0.5, "logits": 0.7},
            logit_bias=True,
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    source, answer = texts
    real = torch.arange(50)[None] < torch.tensor([[50], [9]])
    together = model(answer, memory=model.encode(source, real))
    cache = model.new_cache(memory=model.encode(source[1:, :9]))
    alone = [model(part, cache=cache) for part in answer[1:].split(13, dim=1)]
    torch.testing.assert_close(torch.cat(alone, dim=1), together[1:], rtol=1e-4, atol=1e-4)
    assert together.std() > 0.1
