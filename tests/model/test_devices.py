"""A step's forward and backward pass stays on its device: nothing is asked of it in between.

On PyTorch's device "meta", whose tensors have no numbers: who asks for one, as a copy to the
processor does, fails there, and so does who mixes devices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.positions import positions_in_document  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.run import Objective  # noqa: E402
from flyweight.text.ngrams import positions_in_document as numpy_positions  # noqa: E402
from flyweight.train.objective import Part, training_loss  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "further tokens": {"ahead": 2},
    "alibi": {"position": {"kind": "alibi"}},
    "a window": {"attention": {"heads": 4, "window": 7}},
    "learned positions": {"position": {"kind": "learned"}},
    "relative positions": {"position": {"kind": "relative"}},
    "shared, low rank": {"share": {"feedforward": "interior", "lora_rank": 4}},
    "biases": {"norm": {"kind": "layer", "bias": True}, "logit_bias": True},
}


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_asks_its_device_nothing(name: str, documents: bool) -> None:
    table: dict[str, Any] = {
        "vocab_size": 264,
        "width": 32,
        "depth": 3,
        "context": 32,
        "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_gain": True},
        "feedforward": {"hidden": 48},
    }
    model = Decoder(ModelSpec.parse({**table, **MODELS[name]})).to("meta").train()
    model.drop(0.1)
    tokens_BT = torch.zeros(4, 32, dtype=torch.int64, device="meta")
    prefix_B = torch.ones(4, dtype=torch.int64, device="meta")
    part = Part(tokens_BT, tokens_BT, *((tokens_BT.int(), prefix_B) if documents else ()))
    objective = Objective.parse({"z_loss": 1e-3, "label_smoothing": 0.1})
    loss, plain = training_loss(model, part, objective, torch.bfloat16, 128.0)
    loss.backward()
    assert loss.is_meta and plain.is_meta
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@given(st.lists(st.lists(st.integers(0, 1), min_size=9, max_size=9), min_size=1, max_size=4))
def test_positions_in_documents(ends: list[list[int]]) -> None:
    documents = np.cumsum(np.array(ends, np.int32), axis=1, dtype=np.int32)
    found = positions_in_document(torch.from_numpy(documents))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), numpy_positions(documents))
