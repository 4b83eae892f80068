"""Flyweight makes small language models: from raw text to a model that talks on a laptop's CPU.

>>> import flyweight
>>> model = flyweight.load("runs/quickstart")              # doctest: +SKIP
>>> model.generate("def read_", max_tokens=64)             # doctest: +SKIP

Importing the package imports none of its rooms; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flyweight.load import load
    from flyweight.spec.errors import FlyweightError
    from flyweight.text.load import load_tokenizer

__all__ = ["FlyweightError", "__version__", "load", "load_tokenizer"]
__version__ = "0.1.0"

_HOMES = {
    "FlyweightError": "flyweight.spec.errors",
    "load": "flyweight.load",
    "load_tokenizer": "flyweight.text.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flyweight' has no attribute {name!r}")
    from flyweight.spec.collection import no_collection

    with no_collection():
        value = getattr(importlib.import_module(_HOMES[name]), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing a submodule binds it to its name in the package; ``load`` stays the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "load" and isinstance(value, ModuleType):
            value = value.load
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
