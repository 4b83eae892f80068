"""TOML in and out, and dotted overrides from the command line."""

from __future__ import annotations

import json
import os
import re
import tomllib
from datetime import date, time
from pathlib import Path
from typing import Any

from flyweight.spec.errors import ConfigurationError


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigurationError naming the file and the line."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise ConfigurationError(f"{path} is a folder, not a TOML file") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text, so not TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None


def dumps(values: dict[str, Any]) -> str:
    """Nested plain values as TOML: tables of depth one get a header, deeper ones are inline."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{_key(name)}]"]
            lines += [f"{_key(k)} = {_value(v)}" for k, v in table.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            text = repr(value)
            return text if any(c in text for c in ".en") else text + ".0"
        case str():
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case dict():
            inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
            return "{ " + inner + " }" if inner else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}: {value!r}")


def override(values: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """``values`` with each ``section.key=value`` of ``settings`` applied.

    A value is read as TOML where it is TOML (numbers, true, lists, inline tables), else as text.
    """
    result = _copy(values)
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise ConfigurationError(f"`{setting}` is no override; write section.key=value")
        table = result
        for key in keys[:-1]:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"`{setting}`: `{key}` is a value, not a table")
            table = inner
        table[keys[-1]] = _literal(text.strip())
    return result


def _literal(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # No setting is a date, and text of more than one line is no single value.
    if len(parsed) > 1 or isinstance(parsed["value"], (date, time)):
        return text
    return parsed["value"]


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in values.items()}
