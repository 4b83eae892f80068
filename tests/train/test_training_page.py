"""docs/training.md: its configurations are ones that train accepts, and mean what it says."""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from flyweight.train.configure import check_tables, model_spec
from flyweight.train.schedule import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = [
    tomllib.loads(textwrap.dedent(block))
    for block in re.findall(r"^ *```toml\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("values", BLOCKS, ids=str)
def test_every_configuration_is_accepted(values: dict[str, Any]) -> None:
    text, _, train = check_tables(values)
    Plan(train, train.steps or 1000).at(10)
    model_spec(values, text, train, 258)


def test_the_recipes_are_the_papers() -> None:
    _, _, btlm = check_tables(BLOCKS[0])
    plan = Plan(btlm)
    assert plan.at(159_635).rate == pytest.approx(0.00010138, rel=0.01)
    assert plan.at(0).windows == 480
    (mini,) = (values for values in BLOCKS if "mup" in values.get("model", {}))
    text, _, train = check_tables(mini)
    spec = model_spec(mini, text, train, 122_753)
    assert spec.scale.residual == pytest.approx(0.40414518843274)
    assert (spec.scale.embedding, spec.scale.logits) == (12.0, 0.5)
