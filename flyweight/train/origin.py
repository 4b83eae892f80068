"""Starting from weights: ``[model] start = MODEL`` goes on from what anybody trained before.

The model's spec and tokenizer are the start's; the schedule, the data and the optimiser are new,
and the context may be longer. The weights' digest goes into run.toml, the weights themselves into
checkpoint 0, so that the run stays whole whatever becomes of where it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyweight.data.shards import is_dataset
from flyweight.files.formats import NUMBERED
from flyweight.files.weights import NUMBERS, Dequantised
from flyweight.load import Stored, stored
from flyweight.model.decoder import Decoder
from flyweight.model.weights import fill_weights
from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.run import Start, Tokenizer, Train
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.load import load_tokenizer
from flyweight.text.tokenizer import Tokenizer as Words
from flyweight.train.configure import merged
from flyweight.zoo import catalog

# What of a model may change while its tensors stay as they are, and mean the same.
MAY_CHANGE = ("context", "position.theta", "position.scaling", "attention.window", "ngrams.dropout")

Notice = Callable[[str], None]


class Origin:
    """The model that a run starts from: ``spec`` as the run has it, and where the weights lie."""

    def __init__(self, start: Start, overrides: dict[str, Any], notice: Notice) -> None:
        self.start, self.notice = start, notice
        self.stored = open_start(start.model, notice)
        self.spec = changed(self.stored.spec, overrides)
        formats = {NUMBERED[t.format].name for t in _quantised(self.stored)}
        if formats:
            notice(f"{start.model} is quantised ({', '.join(sorted(formats))}): it starts rounded")

    def words(self) -> Words:
        """The model's own tokenizer."""
        try:
            return self.stored.words()
        except CorruptFileError:
            raise
        except FlyweightError as error:
            raise FlyweightError(f"{error}; or say which it is: text.tokenizer = PATH") from None

    def check_tokenizer(self, tokenizer: Words, named: str) -> None:
        """Refuse a tokenizer whose ids stand for other bytes than those the model learned."""
        try:
            own = self.stored.words()
        except CorruptFileError:
            raise
        except FlyweightError as error:
            self.notice(f"{named} could not be compared with the model's own: {error}")
            return
        if own.digest == tokenizer.digest:
            return
        what = None
        if own.vocab_size != tokenizer.vocab_size:
            what = f"{tokenizer.vocab_size} tokens, the model's {own.vocab_size}"
        elif own.eot_id != tokenizer.eot_id:
            what = f"its end of text at id {tokenizer.eot_id}, the model's at {own.eot_id}"
        else:
            ids = range(own.vocab_size)
            other = next((i for i in ids if own.token_bytes(i) != tokenizer.token_bytes(i)), None)
            if other is not None:
                mine, theirs = own.token_bytes(other), tokenizer.token_bytes(other)
                what = f"{theirs!r} as id {other}, the model's {mine!r}"
        if what is not None:
            raise ConfigurationError(
                f"{named} is not the tokenizer of model.start = {self.start.model}: it has {what}."
                " Leave text.tokenizer out to take the model's own"
            )

    def recorded(self) -> Start:
        """What run.toml says: the model, and the digest of its weights as checkpoint 0's."""
        model = Decoder(self.spec)
        fill_weights(model, self.stored.weights, self.stored.path)
        return _checked(model, self.start)


def from_start(values: dict[str, Any], notice: Notice) -> tuple[dict[str, Any], Origin | None]:
    """A run's tables with the start's model, tokenizer and context spelled out in them.

    ``[model] start`` is the short form of ``[start] model``. Without either: as they are, and None.
    """
    model = values.get("model", {})
    start = values.get("start")
    if not isinstance(model, dict) or ("start" not in model and start is None):
        return values, None
    model = dict(model)
    if "start" in model:
        if start is not None:
            raise ConfigurationError("model.start and [start] are both set; keep one of them")
        start = {"model": model.pop("start")}
    if "use" in model:
        raise ConfigurationError(
            f"model.use = {model['use']!r} names a shape and model.start a model that has its own;"
            " keep one of them"
        )
    if not isinstance(start, dict):
        raise ConfigurationError("`start` is a table: write [start] and model = MODEL below")
    origin = Origin(Start.parse(start, "start"), model, notice)
    values = {**values, "start": origin.start.values()}
    train = values.get("train", {})
    if isinstance(train, dict):
        context = train.get("context")
        if context is None and origin.spec.context < Train().context:
            values["train"] = {**train, "context": origin.spec.context}
        elif isinstance(context, int) and context > origin.spec.context and "context" not in model:
            notice(f"model.context grows from {origin.spec.context} to train.context = {context}")
            origin.spec = changed(origin.spec, {"context": context})
    values["model"] = origin.spec.values()
    text = values.get("text", {})
    if isinstance(text, dict):
        values["text"] = _text(text, origin, values.get("data", {}))
    return values, origin


def _text(text: dict[str, Any], origin: Origin, data: Any) -> dict[str, Any]:
    """The [text] table: the start's tokenizer, or the given one where it is the same."""
    given = text.get("tokenizer")
    if given is None:
        paths = data.get("train") if isinstance(data, dict) else None
        if isinstance(paths, list) and any(isinstance(p, str) and is_dataset(p) for p in paths):
            return text  # the dataset's own, which is compared when it is open
        if origin.words().kind == "bytes":
            return {**text, "tokenizer": {"kind": "bytes"}}
        path = str(Path(str(origin.stored.tokenizer)).absolute())
        return {**text, "tokenizer": {"kind": "file", "path": path}}
    short = {"kind": "bytes"} if given == "bytes" else {"kind": "file", "path": given}
    table = Tokenizer.parse(given if isinstance(given, dict) else short, "text.tokenizer")
    if table.kind in ("bpe", "unigram"):
        raise ConfigurationError(
            f"text.tokenizer.kind = '{table.kind}' trains a new vocabulary, which model.start ="
            f" {origin.start.model} does not know; leave text.tokenizer out to take the model's own"
        )
    words = ByteTokenizer() if table.kind == "bytes" else load_tokenizer(table.path or "")
    origin.check_tokenizer(words, f"text.tokenizer = {table.path or table.kind}")
    return text


def open_start(name: str, notice: Notice) -> Stored:
    """What ``name`` stands for; a name of the zoo has no weights to start from."""
    if not Path(name).expanduser().exists() and name in catalog.names():
        raise ConfigurationError(
            f"model.start = {name!r} is a name of the zoo, a shape without weights: write"
            f' model.use = "{name}" to train it from the beginning, or name a folder or a file'
        )
    return stored(name, notice)


def changed(spec: ModelSpec, overrides: dict[str, Any]) -> ModelSpec:
    """``spec`` with ``overrides`` that leave every tensor what it is; others are refused."""
    new = ModelSpec.parse(merged(spec.values(), overrides), "model")
    before, after = _flat(spec.values()), _flat(new.values())
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            raise ConfigurationError(
                f"model.{key} = {after.get(key)!r}, but model.start has {before.get(key)!r}: its"
                " weights were made for that. What may change: " + ", ".join(MAY_CHANGE)
            )
    if new.position.kind == "learned" and new.context != spec.context:
        raise ConfigurationError(
            f"model.context = {new.context}, but model.start learned its {spec.context} positions"
            " one by one (position.kind = 'learned'), so there are no others; keep the context"
        )
    return new


def begin(model: Decoder, start: Start, notice: Notice) -> None:
    """Fill ``model`` from the start's weights, which must be those that run.toml recorded."""
    found = open_start(start.model, notice)
    fill_weights(model, found.weights, found.path)
    _checked(model, start)


def _checked(model: Decoder, start: Start) -> Start:
    digest = weights_digest(model)
    if start.sha256 not in (None, digest):
        raise CorruptFileError(
            f"{start.model} holds other weights (sha256 {digest[:12]}...) than start.sha256 ="
            f" {start.sha256} says; restore them, or start a new run without it"
        )
    return Start(model=start.model, sha256=digest)


def weights_digest(model: Decoder) -> str:
    """The sha256 of the safetensors file that ``write_tensors`` makes of the model."""
    from safetensors.torch import save

    tensors = {n: t.detach().cpu().contiguous() for n, t in sorted(model.state_dict().items())}
    return hashlib.sha256(save(tensors)).hexdigest()


def _quantised(found: Stored) -> list[Any]:
    if not isinstance(found.weights, Dequantised):
        return []
    return [t for t in found.tensors.values() if t.format not in NUMBERS.values()]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
