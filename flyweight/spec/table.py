"""The base of every table in a configuration: typed, closed, with errors a person can act on.

It is our own since a library for it took half of the time to a small model's first token.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform, get_type_hints

from flyweight.spec.errors import ConfigurationError

# How alike two names must be for the one to be taken for the other, misspelt.
_CLOSE = 0.55
# What a key without a default has in a default's place.
_NONE = object()
_Value = TypeVar("_Value")


class _Made(NamedTuple):
    """A default that every table has for itself."""

    factory: Callable[[], Any]


def field(*, default_factory: Callable[[], _Value]) -> _Value:
    """A key's default that can change: ``names: list[str] = field(default_factory=list)``."""
    return _Made(default_factory)  # type: ignore[return-value]


class Key(NamedTuple):
    """A key of a table: the values it takes, and whether it may be left out."""

    annotation: Any
    required: bool


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Table:
    """A TOML table with a fixed set of keys. Unknown keys are refused, values are immutable.

    A key is an annotated name of the class: numbers, text, ``Literal``, lists, tuples and dicts of
    them, other tables, unions; tables in a union are told apart by their ``kind``. ``Annotated``
    narrows one by a ``Within`` or brings it into shape by a ``Before`` (flyweight/spec/reading.py).
    """

    # Every key's default, or _NONE; and the keys, whose annotations are read when asked for.
    _defaults: ClassVar[dict[str, Any]] = {}
    _keys: ClassVar[dict[str, Key] | None] = None

    def __init_subclass__(cls) -> None:
        own = {name: getattr(cls, name, _NONE) for name in cls.__annotations__}
        cls._defaults = {**cls._defaults, **own}
        cls._keys = None

    def __init__(self, **values: Any) -> None:
        """Raises ConfigurationError, as ``parse``."""
        if not values and _NONE not in self._defaults.values():
            self._fill({})
            self._check()
        else:
            self._fill(vars(type(self).parse(values)), frozenset(values))

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Check ``values`` (nested plain tables) and build the table.

        Raises ConfigurationError naming, for all that is wrong, the dotted key, the value, and the
        nearest known key.
        """
        from flyweight.spec.reading import Reader

        reader = Reader(cls, where)
        table = reader.table(cls, values, ())
        if reader.problems:
            raise ConfigurationError("\n".join(dict.fromkeys(reader.problems)))
        assert isinstance(table, cls)
        return table

    @classmethod
    def of(cls, checked: dict[str, Any]) -> Self:
        """The table with these values, each of which was found right by itself.

        Raises ValueError where they do not go together.
        """
        table = cls.__new__(cls)
        table._fill(checked)
        table._check()
        return table

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """The keys by name, in the order of the class."""
        if cls._keys is None:
            hints = get_type_hints(cls, include_extras=True)
            cls._keys = {n: Key(hints[n], default is _NONE) for n, default in cls._defaults.items()}
        return cls._keys

    def _fill(self, values: Mapping[str, Any], given: frozenset[str] | None = None) -> None:
        own = self.__dict__
        for name, default in self._defaults.items():
            if name in values:
                own[name] = values[name]
            else:
                own[name] = default.factory() if isinstance(default, _Made) else default
        own["_given"] = frozenset(values) if given is None else given

    def _check(self) -> None:
        """Raises ValueError, in words for a person, where values do not go together."""

    @property
    def given(self) -> frozenset[str]:
        """The keys that were written, and not left to their defaults."""
        given: frozenset[str] = self.__dict__["_given"]
        return given

    def replace(self, **changes: Any) -> Self:
        """The table with these values in the place of its own."""
        return type(self)(**{name: getattr(self, name) for name in self.given} | changes)

    def values(self) -> dict[str, Any]:
        """The table as plain nested dicts, without keys that are unset (None)."""
        values: dict[str, Any] = _plain(self)
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, n) == getattr(other, n) for n in self._defaults)

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self._defaults)
        return f"{type(self).__name__}({', '.join(shown)})"


def _plain(value: Any) -> Any:
    match value:
        case Table():
            return _plain({name: getattr(value, name) for name in value._defaults})
        case dict():
            return {str(key): _plain(each) for key, each in value.items() if each is not None}
        case list() | tuple():
            return [_plain(each) for each in value]
    return value


def nearest(word: str, known: list[str]) -> str:
    """A hint for an error message: the nearest known name, else all of them."""
    if close := closest(word, known):
        return f"; did you mean `{close}`?"
    return f"; known: {', '.join(known)}" if known else ""


def closest(word: str, known: list[str]) -> str | None:
    """The known name that ``word`` may be, misspelt."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=_CLOSE)
    return close[0] if close else None
