"""Whatever the input and the positions: causal, cached, chunked and packed all say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def test_later_tokens_change_nothing_earlier(any_decoder: Decoder, text_BT: Tensor) -> None:
    whole = any_decoder(text_BT)
    for cut in (1, 2, 17, 31, 59):
        changed = text_BT.clone()
        changed[:, cut:] = torch.randint(0, 256, changed[:, cut:].shape)
        torch.testing.assert_close(any_decoder(changed)[:, :cut], whole[:, :cut], **CLOSE)
        torch.testing.assert_close(any_decoder(text_BT[:, :cut]), whole[:, :cut], **CLOSE)


@torch.no_grad()
def test_earlier_tokens_do_change_what_comes_later(any_decoder: Decoder, text_BT: Tensor) -> None:
    changed = text_BT.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 256
    # The byte itself, and the one after the patch that it is in.
    moved = (any_decoder(changed) - any_decoder(text_BT)).abs().amax(dim=-1)
    assert (moved[:, 40] > 1e-3).all()
    assert (moved[:, 41:48].amax(dim=1) > 1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 2, 13, 60])
def test_cached_decoding_is_the_full_forward_pass(
    any_decoder: Decoder, text_BT: Tensor, first: int
) -> None:
    row = text_BT[:1]
    cache = any_decoder.new_cache()
    parts = [any_decoder(row[:, :first], cache=cache)]
    parts += [any_decoder(row[:, i : i + 1], cache=cache) for i in range(first, row.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), any_decoder(row), **CLOSE)
    assert cache.tokens == row[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3, 100])
def test_the_cache_outgrows_its_storage(
    decoder: Callable[..., Decoder], source: bytes, first: int
) -> None:
    model = decoder(context=512)
    row = torch.tensor([[257, *source[:399]]])
    cache = model.new_cache()
    parts = [model(row[:, :first], cache=cache)]
    parts += [model(part, cache=cache) for part in row[:, first:].split(9, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(row), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [2, 7, 32])
def test_a_prompt_in_chunks_is_a_prompt_at_once(
    any_decoder: Decoder, text_BT: Tensor, chunk: int
) -> None:
    row = text_BT[1:2]
    cache = any_decoder.new_cache()
    parts = [any_decoder(part, cache=cache) for part in row.split(chunk, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), any_decoder(row), **CLOSE)


@torch.no_grad()
def test_documents_packed_in_a_row_are_each_as_alone(any_decoder: Decoder, text_BT: Tensor) -> None:
    lengths = [23, 1, 36]
    pieces = [row[:n] for row, n in zip(text_BT, lengths, strict=True)]
    # Another row, with other borders, must not matter either.
    other = torch.cat((text_BT[2, :40], text_BT[0, :20]))
    packed = torch.stack((torch.cat(pieces), other))
    documents = (packed == 257).cumsum(dim=1) - 1
    together = any_decoder(packed, documents)[0].split(lengths)
    for piece, logits in zip(pieces, together, strict=True):
        torch.testing.assert_close(logits, any_decoder(piece[None])[0], **CLOSE)


@torch.no_grad()
def test_rows_of_a_batch_do_not_meet(any_decoder: Decoder, text_BT: Tensor) -> None:
    together = any_decoder(text_BT)
    for row, logits in zip(text_BT, together, strict=True):
        torch.testing.assert_close(any_decoder(row[None])[0], logits, **CLOSE)


@torch.no_grad()
def test_bfloat16_is_near_float32(any_decoder: Decoder, text_BT: Tensor) -> None:
    exact, rough = any_decoder(text_BT), any_decoder(text_BT, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.06 * exact.std()


def test_bfloat16_gradients_are_near_float32s(any_decoder: Decoder, text_BT: Tensor) -> None:
    documents = (text_BT == 257).cumsum(dim=1) + (torch.arange(60) > 30)
    text_BT = text_BT.clone()
    text_BT[:, 31] = 257
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        any_decoder.zero_grad()
        logits = any_decoder(text_BT, documents, dtype=dtype)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), text_BT[:, 1:].flatten()).backward()
        grads.append(
            {n: p.grad.clone() for n, p in any_decoder.named_parameters() if p.requires_grad}
        )
    for name, exact in grads[0].items():
        assert F.cosine_similarity(exact.flatten(), grads[1][name].flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_the_cache_has_a_slot_for_each_use(
    decoder: Callable[..., Decoder], text_BT: Tensor, repeat: int
) -> None:
    share = {"block": "adjacent", "repeat": repeat} if repeat > 1 else {}
    model = decoder(share=share)
    cache = model.new_cache()
    with torch.no_grad():
        model(text_BT[:1], cache=cache)
    assert len(cache.slots) == 2 * repeat
    assert [slot.length for slot in cache.slots] == [60] * (2 * repeat)
    keys = [slot.keys for slot in cache.slots]
    assert all(k is not None and k.shape[:2] == (1, 2) for k in keys), "kv_heads alone are kept"
    stored = sum(2 * k.numel() * 4 for k in keys if k is not None)
    assert cache.bytes() == stored


def test_sliding_window_is_a_dense_mask(decoder: Callable[..., Decoder], text_BT: Tensor) -> None:
    """A window as long as the row changes nothing; a shorter one is a band in one layer."""
    plain = decoder(depth=1, attention={"heads": 4, "kv_heads": 2})
    windowed = decoder(depth=1, attention={"heads": 4, "kv_heads": 2, "window": 5})
    wide = decoder(depth=1, attention={"heads": 4, "kv_heads": 2, "window": 60})
    with torch.no_grad():
        torch.testing.assert_close(wide(text_BT), plain(text_BT), **CLOSE)
        logits = windowed(text_BT)
        # Without a second layer position i sees exactly i - 4 to i; RoPE is relative.
        for i in (4, 30, 59):
            alone = plain(text_BT[:, i - 4 : i + 1])[:, -1]
            torch.testing.assert_close(logits[:, i], alone, **CLOSE)
