"""From what a person wrote to a run that is fixed in every particular."""

from __future__ import annotations

from typing import Any

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.model import ModelSpec, Mup
from flyweight.spec.run import Data, RunSpec, Text, Train
from flyweight.spec.table import nearest
from flyweight.text.tokenizer import Tokenizer
from flyweight.zoo import catalog

BATCH_TOKENS = 8192
KEYS = ["name", "seed", "model", "text", "data", "train", "start", "distributed"]


def check_tables(values: dict[str, Any]) -> tuple[Text, Data, Train]:
    """The tables that do not depend on the data, checked before any work is done."""
    for key in values:
        if key not in KEYS:
            raise ConfigurationError(f"unknown key `{key}`{nearest(key, KEYS)}")
    _require_unicode(values, "")
    for key in ("model", "text", "data", "train"):
        if not isinstance(values.get(key, {}), dict):
            raise ConfigurationError(f"`{key}` is a table: write [{key}] and its keys below")
    train = dict(values.get("train", {}))
    if "batch_tokens" not in train:
        context = train.get("context", Train().context)
        if isinstance(context, int) and context > 0:
            train["batch_tokens"] = _batch_tokens(context)
    text = Text.parse(values.get("text", {}), "text")
    checked = Train.parse(train, "train")
    # The model too, as far as it can be known before there is a tokenizer.
    model = model_spec(values, text, checked, vocab_size=None)
    data = Data.parse(values.get("data", {}), "data")
    tables = {"model": model.values(), "train": checked.values(), "data": data.values()}
    RunSpec.parse({**_head(values), **tables})
    return text, data, checked


def model_spec(
    values: dict[str, Any], text: Text, train: Train, vocab_size: int | None
) -> ModelSpec:
    """The [model] table in full: quickstart's by default, ``use`` for a zoo name, overrides.

    ``vocab_size`` is the tokenizer's, taken where the table does not set one of its own.
    """
    given = dict(values.get("model", {}))
    use = given.pop("use", None)
    if use is None and not {"width", "depth"} & given.keys():
        use = "quickstart" if text.tokenizer.kind == "bytes" else "quickstart-tokens"
    base: dict[str, Any] = {}
    if use is not None:
        if not isinstance(use, str):
            raise ConfigurationError(f"model.use = {use!r}: a zoo name is wanted")
        base = catalog.get(use).spec.values()
        base["context"] = train.context
    table = merged(base, given)
    table.setdefault("context", train.context)
    if "mup" in table:
        table = _with_mup(table, given)
    if "vocab_size" not in given:
        spans = train.objective.spans
        # Behind the tokens: the masks, <sep> and <eom>.
        more = spans.most + 2 if spans is not None and vocab_size is not None else 0
        table["vocab_size"] = vocab_size + more if vocab_size else table.get("vocab_size", 258)
    spec = ModelSpec.parse(table, "model")
    if vocab_size is not None and spec.vocab_size < vocab_size:
        raise ConfigurationError(
            f"model.vocab_size = {spec.vocab_size}, but the tokenizer has {vocab_size} tokens;"
            " leave vocab_size out to take the tokenizer's"
        )
    if spec.context < train.context:
        raise ConfigurationError(
            f"train.context = {train.context} is longer than model.context = {spec.context}"
        )
    if spec.encoder is not None:
        raise ConfigurationError(
            "model.encoder: `train` teaches to continue a text, and an encoder-decoder answers one:"
            " it learns from pairs of source and answer, by tuning a published one; leave"
            " model.encoder out, or take a decoder"
        )
    if spec.input.kind == "patches" and text.tokenizer.kind != "bytes":
        raise ConfigurationError(
            "model.input.kind = 'patches' reads bytes; set text.tokenizer = \"bytes\""
        )
    return spec


def _with_mup(table: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """[model] mup written out as the scale and init of this width and depth."""
    for key in ("scale", "init"):
        if key in given:
            raise ConfigurationError(f"model.mup sets model.{key}; leave one of the two out")
    found = table.pop("mup")
    if not isinstance(found, dict):
        raise ConfigurationError("`model.mup` is a table: mup = { base_width = 256 }")
    mup = Mup.parse(found, "model.mup")
    # Checked as a whole, so that width and depth are numbers.
    plain = ModelSpec.parse({**table, "vocab_size": table.get("vocab_size", 258)}, "model")
    return {**table, **mup.tables(plain.width, plain.uses)}


def run_spec(
    values: dict[str, Any], text: Text, data: Data, train: Train, tokenizer: Tokenizer
) -> RunSpec:
    """The run, resolved but for what only a measurement on this machine can tell."""
    model = model_spec(values, text, train, tokenizer.vocab_size)
    tables = {"text": text.values(), "data": data.values(), "train": train.values()}
    return RunSpec.parse({**_head(values), **tables, "model": model.values()})


def fit_context(values: dict[str, Any], train: Train, tokens: int) -> Train:
    """``train`` with the default context cut to a text of fewer ``tokens``.

    What the user set stays as it is, even where it cannot work: that is then an error.
    """
    given = values.get("train", {})
    if tokens >= train.context or {"context", "batch_tokens", "ramp"} & given.keys():
        return train
    context = 1 << max(0, tokens.bit_length() - 1)
    changes = {"context": context, "batch_tokens": _batch_tokens(context)}
    return Train.parse({**train.values(), **changes}, "train")


def _require_unicode(value: Any, where: str) -> None:
    """A path or an argument may hold bytes that are no characters; run.toml cannot."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(
                f"`{where}`: {value!r} is no Unicode text; rename it, or set another {where}"
            ) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            _require_unicode(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            _require_unicode(inner, where)


def _batch_tokens(context: int) -> int:
    return context * max(1, round(BATCH_TOKENS / context))


def _head(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("name", "seed", "start", "distributed") if key in values}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``; a table that changes its kind replaces the old one."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = value
        if isinstance(value, dict) and isinstance(old, dict):
            if value.get("kind", old.get("kind")) == old.get("kind"):
                result[key] = merged(old, value)
    return result
