"""Plain values, as TOML and JSON have them, read into tables: each checked against what its key
takes, with the problems of all of them in words for a person."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from flyweight.spec.table import Table, closest, nearest

Path = tuple[str | int, ...]
# What a value that is wrong becomes; its problem has been noted.
_BAD = object()


class Within(NamedTuple):
    """What a number keeps to, or a text as a whole: ``Annotated[int, Within(gt=0)]``."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    # A regular expression.
    pattern: str | None = None
    # Entries of a list at least.
    entries: int = 0

    def wanted(self, value: Any) -> str | None:
        """What is, where ``value`` is something else."""
        if self.gt is not None and not value > self.gt:
            return f"more than {self.gt}"
        if self.ge is not None and not value >= self.ge:
            return f"{self.ge} or more"
        if self.lt is not None and not value < self.lt:
            return f"less than {self.lt}"
        if self.le is not None and not value <= self.le:
            return f"{self.le} or less"
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            return f"text of the form {self.pattern}"
        if self.entries and len(value) < self.entries:
            return "an entry" if self.entries == 1 else f"{self.entries} entries or more"
        return None


Positive = Annotated[int, Within(gt=0)]
Count = Annotated[int, Within(ge=0)]
PositiveFloat = Annotated[float, Within(gt=0)]
NotNegative = Annotated[float, Within(ge=0)]
Share = Annotated[float, Within(ge=0, le=1)]


class Before(NamedTuple):
    """Brings a value into shape before it is checked: ``Annotated[Table, Before(from_text)]``.

    Raises ValueError, in words for a person, where it cannot.
    """

    change: Callable[[Any], Any]


class Reader:
    """Reads one configuration. ``where``: the dotted name of its outermost table."""

    def __init__(self, root: type[Table], where: str) -> None:
        self.problems: list[str] = []
        self._root, self._where = root, where

    def table(self, kind: type[Table], values: Any, path: Path) -> Any:
        """The table of ``kind`` with ``values``, or something else after noting problems."""
        if isinstance(values, kind):
            return values
        if not isinstance(values, Mapping):
            return self._wanted("a table", values, path)
        keys, read, before = kind.keys(), {}, len(self.problems)
        for name, key in keys.items():
            if name in values:
                read[name] = self._value(key.annotation, values[name], (*path, name))
            elif key.required:
                self.problems.append(f"`{self._dotted((*path, name))}` is required but missing")
        for name in values:
            if name not in keys:
                self._unknown(kind, str(name), path)
        if len(self.problems) > before:
            return _BAD
        try:
            return kind.of(read)
        except ValueError as error:
            return self._problem(str(error), path)

    def _value(self, annotation: Any, value: Any, path: Path) -> Any:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if annotation is Any:
            return value
        if origin is Annotated:
            return self._narrowed(arguments[0], arguments[1:], value, path)
        if origin in (Union, types.UnionType):
            return self._union(arguments, value, path)
        if origin is Literal:
            # True is 1 to Python, and not here.
            if any(value == each and type(value) is type(each) for each in arguments):
                return value
            return self._one_of(list(arguments), value, path)
        if not _fits(annotation, value):
            return self._wanted(_words(annotation), value, path)
        if origin in (list, tuple):
            items = [self._value(arguments[0], v, (*path, i)) for i, v in enumerate(value)]
            return origin(items)
        if origin is dict:
            return {
                self._name(arguments[0], key, path): self._value(arguments[1], v, (*path, key))
                for key, v in value.items()
            }
        if isinstance(annotation, type) and issubclass(annotation, Table):
            return self.table(annotation, value, path)
        return annotation(value)  # bool, int, float or str

    def _narrowed(self, kind: Any, how: tuple[Any, ...], value: Any, path: Path) -> Any:
        for each in how:
            if isinstance(each, Before):
                try:
                    value = each.change(value)
                except ValueError as error:
                    return self._problem(str(error), path)
        before = len(self.problems)
        read = self._value(kind, value, path)
        for each in how:
            if isinstance(each, Within) and len(self.problems) == before:
                if wanted := each.wanted(read):
                    return self._wanted(wanted, value, path)
        return read

    def _union(self, members: tuple[Any, ...], value: Any, path: Path) -> Any:
        if value is None and type(None) in members:
            return None
        kinds = [kind for kind in members if kind is not type(None)]
        if len(kinds) == 1:
            return self._value(kinds[0], value, path)
        if all(isinstance(kind, type) and issubclass(kind, Table) for kind in kinds):
            return self._tagged({kind.kind: kind for kind in kinds}, value, path)
        for kind in kinds:
            if _fits(_bare(kind), value):
                return self._value(kind, value, path)
        return self._wanted(" or ".join(_words(_bare(kind)) for kind in kinds), value, path)

    def _tagged(self, tables: dict[str, type[Table]], value: Any, path: Path) -> Any:
        """One of several tables, by its ``kind``."""
        if isinstance(value, tuple(tables.values())):
            return value
        if not isinstance(value, Mapping):
            return self._wanted("a table", value, path)
        if "kind" not in value:
            self.problems.append(f"`{self._dotted((*path, 'kind'))}` is required but missing")
            return _BAD
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in tables:
            return self._one_of(list(tables), kind, (*path, "kind"))
        return self.table(tables[kind], value, path)

    def _name(self, annotation: Any, key: Any, path: Path) -> Any:
        """A dict's key: text, or a number, which TOML and JSON have as text."""
        if _bare(annotation) is int and isinstance(key, str) and re.fullmatch(r"-?\d+", key):
            key = int(key)
        return self._value(annotation, key, (*path, str(key)))

    # Problems

    def _problem(self, text: str, path: Path, end: str = "") -> Any:
        dotted = self._dotted(path)
        self.problems.append((f"`{dotted}`: {text}" if dotted else text) + end)
        return _BAD

    def _wanted(self, what: str, value: Any, path: Path, hint: str = "") -> Any:
        return self._problem(f"{what} is wanted", path, f"{_shown(value)}{hint}")

    def _one_of(self, known: list[Any], value: Any, path: Path) -> Any:
        named = [repr(each) for each in known]
        listed = " or ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
        close = closest(value, known) if isinstance(value, str) else None
        return self._wanted(listed, value, path, f"; did you mean {close!r}?" if close else "")

    def _unknown(self, table: type[Table], name: str, path: Path) -> None:
        """With the same key where it does belong, else the nearest one of its table."""
        known = sorted(table.keys())
        if belongs := next((at for at in _all_keys(self._root) if at[-1] == name), None):
            hint = f"; did you mean `{self._dotted(belongs)}`?"
        elif close := closest(name, known):
            hint = f"; did you mean `{self._dotted((*path, close))}`?"
        else:
            hint = nearest(name, known)
        self.problems.append(f"unknown key `{self._dotted((*path, name))}`{hint}")

    def _dotted(self, path: Path) -> str:
        written = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        return (self._where + "".join(written)).lstrip(".")


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _fits(kind: Any, value: Any) -> bool:
    """Whether the value is of this kind, what is in it aside."""
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:  # 1e6 is a number of steps
        whole = isinstance(value, float) and value.is_integer()
        return (isinstance(value, int) and not isinstance(value, bool)) or whole
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < 1e308 and isfinite(value)
    if kind is str:
        return isinstance(value, str)
    if get_origin(kind) in (list, tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, Mapping | Table)


def _words(kind: Any) -> str:
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind in plain:
        return plain[kind]
    return "a list" if get_origin(kind) in (list, tuple) else "a table"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | Table):
        return ""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f" (got {text if len(text) <= 100 else text[:97] + '...'})"


def _all_keys(table: type[Table], *above: type[Table]) -> Iterator[Path]:
    """The paths of all keys; of a table within itself (a mix's decay), once."""
    for name, key in table.keys().items():
        yield (name,)
        for inner in _tables_in(key.annotation):
            if inner is not table and inner not in above:
                yield from ((name, *path) for path in _all_keys(inner, table, *above))


def _tables_in(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for arg in getattr(annotation, "__args__", ()) for table in _tables_in(arg)]
