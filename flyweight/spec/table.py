"""The base of every table in a configuration: typed, closed, with errors a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from flyweight.spec.errors import ConfigurationError

# How alike two names must be for the one to be taken for the other, misspelt.
_CLOSE = 0.55


class Table(BaseModel):
    """A TOML table with a fixed set of keys. Unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_not_one(cls, values: Any) -> Any:
        """Python counts True as 1; a configuration does not."""
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field and "bool" not in str(field.annotation):
                raise ValueError(f"{key} = {str(value).lower()}: a value of another kind is wanted")
        return values

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
    path, tables = _walk(root, item["loc"], item["type"])
    dotted = _dotted([where, *path])
    if item["type"] == "extra_forbidden":
        return f"unknown key `{dotted}`{_near(root, tables, path, where)}"
    context = item.get("ctx", {})
    if item["type"].startswith("union_tag"):
        dotted = _dotted([dotted, context["discriminator"].strip("'")])
    if item["type"] in ("missing", "union_tag_not_found"):
        return f"`{dotted}` is required but missing"
    message, given = item["msg"].removeprefix("Value error, "), item["input"]
    if item["type"] == "union_tag_invalid":
        message, given = f"Input should be one of {context['expected_tags']}", context["tag"]
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    return f"`{dotted}`: {message}{shown}" if dotted else f"{message}"


def _walk(
    root: type[BaseModel], loc: tuple[str | int, ...], kind: str
) -> tuple[list[str | int], list[type[BaseModel]]]:
    """The keys as a person wrote them, and the tables that the last key belongs to.

    Pydantic's path also names the members of unions that it tried; those are left out.
    """
    path: list[str | int] = []
    tables, at, parts = [root], [root], list(loc)
    while parts:
        part = parts.pop(0)
        field = next((t.model_fields[part] for t in at if part in t.model_fields), None)
        if field is not None:
            path.append(part)
            tables, at = at, _tables_in(field.annotation)
            if parts and _is_dict(field.annotation):
                path.append(parts.pop(0))  # a name that the user chose
            if field.discriminator is not None and parts:
                tag = parts.pop(0)
                at = [t for t in at if t.model_fields[str(field.discriminator)].default == tag]
        elif isinstance(part, int):
            path.append(part)
        elif kind == "extra_forbidden" and not parts:
            path.append(part)
            tables = at
    return path, tables


def _is_dict(annotation: Any) -> bool:
    return any(get_origin(kind) is dict for kind in (annotation, *get_args(annotation)))


def _dotted(path: list[str | int]) -> str:
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return written.lstrip(".")


def _near(
    root: type[BaseModel], tables: list[type[BaseModel]], path: list[str | int], where: str
) -> str:
    """A hint: the same key where it does belong, else the nearest one of the same table."""
    key, table = str(path[-1]), [where, *path[:-1]]
    known = sorted({name for t in tables for name in t.model_fields})
    elsewhere = (found for found in _all_keys(root) if found[-1] == key)
    if belongs := next(elsewhere, None):
        return f"; did you mean `{_dotted([where, *belongs])}`?"
    if close := difflib.get_close_matches(key, known, n=1, cutoff=_CLOSE):
        return f"; did you mean `{_dotted([*table, close[0]])}`?"
    return nearest(key, known)


def _all_keys(table: type[BaseModel], *above: type[BaseModel]) -> Iterator[list[str]]:
    """The paths of all keys; of a table within itself (a mix's decay), once."""
    for name, field in table.model_fields.items():
        yield [name]
        for inner in _tables_in(field.annotation):
            if inner is not table and inner not in above:
                yield from ([name, *path] for path in _all_keys(inner, table, *above))


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for arg in getattr(annotation, "__args__", ()) for table in _tables_in(arg)]


def nearest(word: str, known: list[str]) -> str:
    """A hint for an error message: the nearest known name, else all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=_CLOSE)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(known)}" if known else ""
