"""llama.cpp in this process, and small models in every architecture that it shares with us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.files.tensors import kind_of
from flyweight.files.to_gguf import StoredSource, export_gguf
from flyweight.spec.model import ModelSpec
from flyweight.text.tokenizer import Tokenizer
from flyweight.zoo import catalog

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed; `make test-oracles` installs it"
)
torch = pytest.importorskip("torch")

CONTEXT = 96
_SMALL: dict[str, Any] = {"width": 64, "depth": 3, "context": CONTEXT, "vocab_size": 300}
_LONG = {"kind": "longrope", "original": 32, "short": [1.0, 1.1, 1.3], "long": [1.0, 2.5, 7.0]}
_LLAMA3 = {"kind": "llama3", "factor": 8.0, "original": 16}
_ROPE = {"kind": "rope", "theta": 500.0}
# A model of the zoo, and what is changed beside its size.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("smollm2-135m", {"tie_embeddings": False}),
    "llama-tied": ("smollm2-135m", {}),
    "llama-biased": (
        "smollm2-135m",
        {
            "attention": {"heads": 4, "kv_heads": 2, "head_dim": 24, "bias": True},
            "feedforward": {"kind": "swiglu", "hidden": 96, "bias": True},
        },
    ),
    "llama3-rope": ("smollm2-135m", {"position": _ROPE | {"scaling": _LLAMA3}}),
    "linear-rope": (
        "smollm2-135m",
        {"position": _ROPE | {"scaling": {"kind": "linear", "factor": 4.0}}},
    ),
    "partial-rope": ("smollm2-135m", {"position": _ROPE | {"fraction": 0.5}}),
    "geb": ("geb-1.3b", {}),
    "mobillama": ("mobillama-0.5b", {}),
    "mobilellm-ls": ("mobilellm-ls-125m", {}),
    "minicpm": ("minicpm-1.2b", {}),
    "phi3": ("phi-4-mini", {}),
    # llama.cpp takes the long factors for a context of CONTEXT, ours for sequences beyond 32.
    "phi3-longrope": (
        "phi-4-mini",
        {
            "attention": {"heads": 8, "kv_heads": 4},
            "position": {"kind": "rope", "fraction": 0.75, "scaling": _LONG},
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_embeddings": False}),
    "qwen2": ("qwen2.5-0.5b", {}),
    "qwen3": ("qwen3-0.6b", {"attention": {"heads": 4, "kv_heads": 2, "head_dim": 24,
                                           "qk_norm": True, "qk_gain": True}}),
    "btlm": ("btlm-3b-8k", {}),
    "jais": ("jais-256m", {"attention": {"heads": 6, "bias": True, "scale": "1/d"},
                           "width": 72}),
}  # fmt: skip


def spec_of(name: str) -> ModelSpec:
    model, changes = MODELS[name]
    values = catalog.get(model).spec.values() | _SMALL
    attention = values["attention"]
    groups = attention["heads"] // attention.get("kv_heads", attention["heads"])
    values["attention"] = attention | {"heads": 4, "kv_heads": 4 if groups == 1 else 2}
    values["feedforward"] |= {"hidden": 96}
    return ModelSpec.parse(values | changes)


class Held:
    """A decoder's tensors as stored ones."""

    def __init__(self, decoder: Any) -> None:
        self._tensors = decoder.state_dict()
        self.kinds = {name: kind_of(tensor) for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> Any:
        return self._tensors[name]


def decoder_of(spec: ModelSpec) -> Any:
    """Random weights, large enough that every part shows in the logits."""
    from flyweight.model.decoder import Decoder

    decoder = Decoder(spec).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(noise * 0.2)
    return decoder


class Peer:
    """llama.cpp on one thread, with its cache in F32."""

    def __init__(self, path: Path) -> None:
        library = llama_cpp.llama_cpp
        defaults = library.llama_model_default_params

        def plain() -> Any:
            # Weights as the file has them: 0.3.36's repacking for AMX crashes on small matrices.
            parameters = defaults()
            parameters.use_extra_bufts = False
            return parameters

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "llama_model_default_params", plain)
            self.model = llama_cpp.Llama(
                model_path=str(path),
                n_ctx=CONTEXT,
                n_batch=CONTEXT,
                n_threads=1,
                n_threads_batch=1,
                logits_all=True,
                type_k=0,
                type_v=0,
                verbose=False,
            )

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(tokens, vocabulary)."""
        self.model.reset()
        self.model.eval(tokens)
        return np.array(self.model.scores[: len(tokens)])

    def tokens(self, text: str, specials: bool = False) -> list[int]:
        return list(self.model.tokenize(text.encode(), add_bos=False, special=specials))


def exported(decoder: Any, tokenizer: Tokenizer, path: Path, type: str = "f32") -> Peer:
    spec = decoder.spec
    export_gguf(spec, StoredSource(Held(decoder)), tokenizer, path, "m", type, expand=True)
    return Peer(path)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
