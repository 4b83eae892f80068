"""TOML out and in again gives the same values; overrides reach the key that they name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec import toml
from flyweight.spec.errors import ConfigurationError

# Everything that TOML can say and a configuration uses; text without lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_what_is_written_reads_back_equal(values: dict[str, Any]) -> None:
    assert repr(tomllib.loads(toml.dumps(values))) == repr(_top_tables_last(values))


def _top_tables_last(values: dict[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    return plain | {k: v for k, v in values.items() if isinstance(v, dict)}


def test_what_toml_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        toml.dumps({"a": None})


def test_a_written_file_is_one_that_a_person_would_write() -> None:
    values = {"name": "a", "model": {"width": 8, "norm": {"kind": "rms", "eps": 1e-5}}}
    assert toml.dumps(values) == (
        'name = "a"\n\n[model]\nwidth = 8\nnorm = { kind = "rms", eps = 1e-05 }\n'
    )


@given(
    st.lists(st.sampled_from(["a", "b", "c-d", "e_1"]), min_size=1, max_size=4),
    SCALARS | st.lists(st.integers(), max_size=3),
)
def test_an_override_sets_one_dotted_key(keys: list[str], value: Any) -> None:
    before: dict[str, Any] = {"kept": 1, "table": {"kept": 2}}
    written = toml.dumps({"v": value}).removeprefix("v = ").rstrip("\n")
    after = toml.override(before, [f"{'.'.join(keys)}={written}"])
    assert before == {"kept": 1, "table": {"kept": 2}}, "the given tables stay as they were"
    found: Any = after
    for key in keys:
        found = found[key]
    assert repr(found) == repr(value)
    assert after["kept"] == 1
    assert after["table"] == {"kept": 2}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("k=texts/*.txt", "texts/*.txt"),
        ("k = bytes ", "bytes"),
        ("k=", ""),
        ("k=a=b", "a=b"),
        ("k=1e-3", 1e-3),
        ("k=true", True),
        ("k=[1, 2]", [1, 2]),
        ('k={ kind = "muon" }', {"kind": "muon"}),
        # A date is TOML, but no setting is one: a name may look like it.
        ("k=2024-01-31", "2024-01-31"),
        ("k=1\nother=2", "1\nother=2"),
    ],
)
def test_an_override_is_toml_where_it_can_be_and_text_elsewhere(setting: str, value: Any) -> None:
    assert toml.override({}, [setting]) == {"k": value}


@pytest.mark.parametrize("setting", ["novalue", "=1", "a..b=1", ".a=1", ""])
def test_what_is_no_override_is_refused(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="section.key=value"):
        toml.override({}, [setting])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`train` is a value, not a table"):
        toml.override({"train": 3}, ["train.steps=4"])


def test_later_overrides_win() -> None:
    assert toml.override({"a": {"b": 0}}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


def test_files_that_are_no_toml_are_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[model]\nwidth = = 3\n")
    with pytest.raises(ConfigurationError, match=r"wrong\.toml.*line 2"):
        toml.read(wrong)
    wrong.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigurationError, match=r"wrong\.toml is not UTF-8"):
        toml.read(wrong)
    with pytest.raises(ConfigurationError, match="no such file"):
        toml.read(tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match="is a folder"):
        toml.read(tmp_path)
