"""Tiny models in the published form, written by transformers itself or by hand in its layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flyweight.text.bytes import ByteTokenizer

VOCAB, WIDTH, HIDDEN, CONTEXT = 300, 48, 80, 64
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}
CODEGEN: dict[str, Any] = GPT2 | {"n_head": 8, "n_ctx": CONTEXT, "rotary_dim": 4}
_FACTORS = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 2.5, 7.0]}
# Every class and setting that import and export know: class, configuration class, settings.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "llama-biased": (
        "LlamaForCausalLM",
        "LlamaConfig",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "rms_norm_eps": 1e-4},
    ),
    "llama3-rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        LLAMA
        | {
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "linear-rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "mistral": (
        "MistralForCausalLM",
        "MistralConfig",
        LLAMA | {"sliding_window": 9, "head_dim": 10, "attn_implementation": "eager"},
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA | {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        LLAMA | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
    ),
    "glm": ("GlmForCausalLM", "GlmConfig", LLAMA | {"head_dim": 8}),
    "glm-unbiased": (
        "GlmForCausalLM",
        "GlmConfig",
        LLAMA
        | {
            "attention_bias": False,
            "head_dim": 12,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0},
        },
    ),
    "dynamic-rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "gpt2-exact": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2 | {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", LLAMA | {"head_dim": 12}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", LLAMA),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        "Phi3Config",
        LLAMA
        | {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": "longrope", **_FACTORS},
            "tie_word_embeddings": True,
        },
    ),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", CODEGEN),
    "codegen-exact": (
        "CodeGenForCausalLM",
        "CodeGenConfig",
        CODEGEN | {"n_head": 4, "rotary_dim": 12, "n_inner": 40, "activation_function": "gelu"},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2,
    ),
}


def _give_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(ByteTokenizer().to_json())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Hugging Face folder by hand: this config.json, exactly these tensors."""

    def write(config: dict[str, Any], tensors: dict[str, Any], name: str = "theirs") -> Path:
        from safetensors.torch import save_file

        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        apart = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(apart, path / "model.safetensors")
        return _give_tokenizer(path)

    return write


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes a model of transformers with random weights, saves it, and returns folder and model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(kind: str, dtype: Any = None, **saving: Any) -> tuple[Path, Any]:
        model_class, config_class, settings = KINDS[kind]
        settings = dict(settings)
        attention = settings.pop("attn_implementation", None)
        config = getattr(transformers, config_class)(**settings)
        if attention:
            config._attn_implementation = attention
        torch.manual_seed(1)
        model = getattr(transformers, model_class)(config).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
                noise = torch.randn(parameter.shape, generator=generator) * wide
                parameter.add_(noise)
        model = model.to(dtype or torch.float32)
        folder = tmp_path / "theirs"
        model.save_pretrained(folder, **saving)
        return _give_tokenizer(folder), model

    return make
