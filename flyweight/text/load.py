"""A tokenizer from wherever one may lie: a tokenizer.json, a model's folder, a run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.bytes import ByteTokenizer, is_byte_tokenizer
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import Tokenizer, read_json

_PLACES = ("tokenizer.json", "model/tokenizer.json")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer at ``path``: a tokenizer.json, or a folder that holds one.

    Looked for in a folder: tokenizer.json (a model, a dataset, a Hugging Face folder) and
    model/tokenizer.json (a run). A tokenizer_config.json beside it decides on the beginning-of-
    text token. Raises FlyweightError where there is none or it cannot be read.
    """
    file = _find(Path(path).expanduser())
    document = read_json(file)
    if is_byte_tokenizer(document):
        return ByteTokenizer()
    config = _config(file.with_name("tokenizer_config.json"))
    add_bos = config.get("add_bos_token")
    try:
        return SubwordTokenizer(
            document,
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            bos=_token(config.get("bos_token")),
            eot=_token(config.get("eos_token")),
        )
    except CorruptFileError as error:
        raise CorruptFileError(f"{file}: {error}") from None
    except FlyweightError as error:
        raise FlyweightError(f"{file}: {error}") from None


def _find(path: Path) -> Path:
    if path.is_dir():
        for place in _PLACES:
            if (path / place).is_file():
                return path / place
        raise FlyweightError(
            f"no tokenizer in {path}: looked for {' and '.join(_PLACES)}; name a tokenizer.json,"
            " a model's folder or a run's folder"
        )
    if not path.exists():
        raise FlyweightError(f"no such tokenizer: {path}")
    return path


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be read as JSON: {error}") from None
    return config if isinstance(config, dict) else {}


def _token(value: Any) -> str | None:
    """A token as tokenizer_config.json writes it: its text, or a table with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
