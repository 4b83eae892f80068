"""The keys of a config.json, each checked and marked as read when it is taken."""

from __future__ import annotations

from typing import Any

from flyweight.spec.errors import ConfigurationError, FlyweightError

# What training, generation and bookkeeping leave behind; none of it changes a logit.
_HARMLESS = {
    "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "_name_or_path",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout",
    "resid_dropout", "initializer_range", "pretraining_tp", "task_specific_params",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "gradient_checkpointing", "max_window_layers", "n_ctx",
    "reorder_and_upcast_attn", "_attn_implementation", "attn_implementation", "tokenizer_class",
    "chunk_size_feed_forward", "max_sequence_length", "_commit_hash", "dropout_rate",
    "classifier_dropout", "initializer_factor", "output_past",
}  # fmt: skip
_MOST = 1 << 31


class Keys:
    """Raises FlyweightError for what is absent or not supported, ConfigurationError for what is
    no such value."""

    def __init__(self, values: dict[str, Any], path: str) -> None:
        self.values, self.path, self.read = values, path, set(_HARMLESS)

    def find(self, names: tuple[str, ...]) -> Any:
        """The value under the first of ``names`` that is there, unchecked; else None."""
        self.read.update(names)
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def whole(self, *names: str, default: int | None = None) -> int:
        """A positive whole number, under the first of ``names`` that is there."""
        value = self.find(names)
        value = default if value is None else value
        if value is None:
            raise FlyweightError(f"{self.path} does not say `{names[0]}`")
        if type(value) is not int or not 0 < value < _MOST:
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r} is no size")
        return value

    def id(self, *names: str, default: int = 0) -> int:
        """The number of a token, under the first of ``names`` that is there."""
        value = self.find(names)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < _MOST:
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r} is no token's number")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        value = self.find(names)
        value = default if value is None else value
        if value is None:
            raise FlyweightError(f"{self.path} does not say `{names[0]}`")
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r}: more than 0 is wanted")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        value = self.find(names)
        value = default if value is None else value
        if type(value) is not bool:
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r}: true or false")
        return value

    def table(self, *names: str) -> dict[str, Any]:
        value = self.find(names)
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{self.path}: {names[0]} = {value!r}: a table is wanted")
        return dict(value or {})

    def words(self, name: str) -> set[str]:
        """The different words of a list that may be absent."""
        value = self.find((name,))
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, str) for each in value)
        ):
            raise ConfigurationError(f"{self.path}: {name} = {value!r}: a list of words is wanted")
        return set(value or ())

    def only(self, name: str, *allowed: Any) -> Any:
        """A key that may be absent or have one of these values; any other is refused."""
        value = self.find((name,))
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            shown = " or ".join(repr(a) for a in allowed)
            raise FlyweightError(
                f"{self.path}: {name} = {value!r} is not supported; this decoder has {shown}"
            )
        return value

    def unused(self) -> tuple[str, ...]:
        """Keys that were not read and are not off."""
        left = sorted(self.values.keys() - self.read)
        return tuple(k for k in left if not _off(self.values[k]))


def _off(value: Any) -> bool:
    """Whether a value says that there is nothing: null, false, an empty list or table."""
    return value is None or value is False or value in ([], {}, "")
