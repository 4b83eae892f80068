"""The base of every table in a configuration: typed, closed, with errors a person can act on."""

from __future__ import annotations

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from flyweight.spec.errors import ConfigurationError


class Table(BaseModel):
    """A TOML table with a fixed set of keys. Unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "") -> Self:
        """Check ``values`` (nested plain tables) and build the table.

        Raises ConfigurationError naming the dotted key, the value, and the nearest known key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(cls, item, where) for item in error.errors()]
            raise ConfigurationError("\n".join(dict.fromkeys(lines))) from None

    def values(self) -> dict[str, Any]:
        """The table as plain nested dicts, without keys that are unset (None)."""
        return self.model_dump(mode="json", exclude_none=True)


def _explain(root: type[BaseModel], item: Any, where: str) -> str:
    path = [str(part) for part in item["loc"]]
    dotted = ".".join(([where] if where else []) + path)
    if item["type"] == "extra_forbidden":
        known = _keys_at(root, path[:-1])
        return f"unknown key `{dotted}`{nearest(path[-1], known)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"`{dotted}` is required but missing"
    shown = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"`{dotted}`: {message}{shown}" if dotted else f"{message}"


def _keys_at(root: type[BaseModel], path: list[str]) -> list[str]:
    """The known keys of the sub-table at ``path``, walking annotations."""
    tables = [root]
    for part in path:
        found: list[type[BaseModel]] = []
        for table in tables:
            field = table.model_fields.get(part)
            if field is not None:
                found += _tables_in(field.annotation)
        # A part that names a union's member rather than a key leaves the tables as they are.
        tables = found or tables
    return sorted({key for table in tables for key in table.model_fields})


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for arg in getattr(annotation, "__args__", ()) for table in _tables_in(arg)]


def nearest(word: str, known: list[str]) -> str:
    """A hint for an error message: the nearest known name, else all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.55)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(known)}" if known else ""
