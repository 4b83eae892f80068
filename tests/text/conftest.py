"""Real text for the tokenizers: modules of the running interpreter's standard library."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import textwrap
import typing
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from flyweight.text.subword import SubwordTokenizer

MODULES: list[ModuleType] = [argparse, dataclasses, json, textwrap, typing, inspect]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [Path(str(module.__file__)).read_text(encoding="utf-8") for module in MODULES]


@pytest.fixture(scope="session")
def bpe(texts: list[str]) -> SubwordTokenizer:
    return SubwordTokenizer.train("bpe", 600, texts)


@pytest.fixture(scope="session")
def unigram(texts: list[str]) -> SubwordTokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return SubwordTokenizer.train("unigram", 600, texts)


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest) -> SubwordTokenizer:
    return request.getfixturevalue(request.param)
