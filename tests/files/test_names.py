"""Name maps as data: complete for what the zoo lists, and the inverse of themselves."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.files import names
from flyweight.files.names import Planned
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.zoo import catalog
from flyweight.zoo.layout import layout, layouts, of_family

# Families without a published checkpoint whose names could be known.
NAMELESS = {"flyweight", "stlm"}


def first_choices(name: str) -> dict[str, Any]:
    found = layout(name)
    return names.choose(found, {option: next(iter(c)) for option, c in found.options.items()})


def check(planned: list[Planned]) -> None:
    """No published name twice; every row of ours comes from one row of theirs, and the reverse."""
    seen: set[str] = set()
    for each in planned:
        for copy in (*each.copies, *each.duplicates):
            ours: list[int] = []
            for piece in copy:
                assert piece.name not in seen and "{" not in piece.name and "*" not in piece.name
                seen.add(piece.name)
                theirs = [s.theirs + i for s in piece.segments for i in range(s.rows)]
                assert sorted(theirs) == list(range(len(theirs)))
                assert prod(piece.shape) == len(theirs) * prod(each.shape[1:])
                ours += [s.ours + i for s in piece.segments for i in range(s.rows)]
            assert sorted(ours) == list(range(each.shape[0]))


@pytest.mark.parametrize("name", catalog.names())
def test_every_published_model_of_the_zoo_has_its_names(name: str) -> None:
    entry = catalog.get(name)
    found = of_family(entry.family)
    if entry.family in NAMELESS:
        assert found is None
        return
    assert found is not None, f"no layout for the family {entry.family}"
    check(names.plan(entry.spec, found, first_choices(found.name)))


def test_layouts_are_found_by_their_families() -> None:
    families = [family for name in layouts() for family in layout(name).families]
    assert len(set(families)) == len(families)
    with pytest.raises(ConfigurationError, match="did you mean `llama`"):
        layout("lama")


def test_a_tensor_without_a_name_is_an_error() -> None:
    spec = catalog.get("quickstart").spec
    with pytest.raises(FlyweightError, match="`llama` has no name for our tensor embedding"):
        names.plan(spec, layout("llama"))


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 9),
    st.integers(3, 5),
    st.sampled_from(["none", "all", "interior"]),
    st.integers(1, 3),
    st.sampled_from(["llama", "phi3", "geb", "glm"]),
    st.booleans(),
)
def test_theirs_made_of_ours_make_ours_again(
    groups: int, per: int, hidden: int, depth: int, share: str, repeat: int, which: str, tied: bool
) -> None:
    """Any shapes and sharing, every choice of every option: not a bit is lost either way."""
    torch = pytest.importorskip("torch")
    from flyweight.files.published import Published
    from flyweight.files.tensors import bits_of, kind_of
    from flyweight.zoo import shapes

    sharing: dict[str, Any] = {"feedforward": share}
    if repeat > 1:
        sharing |= {"block": "adjacent", "repeat": repeat}
    spec = ModelSpec.parse(
        {
            "vocab_size": 7,
            "width": 4 * groups * per,
            "depth": depth,
            "context": 8,
            "attention": {"heads": groups * per, "kv_heads": groups},
            "feedforward": {"hidden": hidden},
            "share": sharing,
            "tie_embeddings": tied,
        }
    )
    ours = {t.name: torch.randn(t.shape) for t in shapes.tensors(spec)}
    found = layout(which)
    for key_value in found.options.get("key_value", {"": ""}):
        for gate_up in found.options.get("gate_up", {"": ""}):
            options = {"key_value": key_value, "gate_up": gate_up, "rotation": "full-split"}
            options = {k: v for k, v in options.items() if k in found.options}
            planned = names.plan(spec, found, names.choose(found, options))
            check(planned)
            theirs: dict[str, Any] = {}
            for each in planned:
                for piece in (p for copy in each.copies for p in copy):
                    made = torch.empty(piece.shape)
                    for at, begin, rows in piece.segments:
                        made[begin : begin + rows] = ours[each.name][at : at + rows]
                    theirs[piece.name] = made

            class Source(dict[str, Any]):
                @property
                def kinds(self) -> dict[str, Any]:
                    return {name: kind_of(tensor) for name, tensor in self.items()}

                def bits(self, name: str) -> Any:
                    return bits_of(self[name])

            back = Published(__file__, spec, found, Source(theirs), options)  # type: ignore[arg-type]
            assert back.kinds.keys() == ours.keys()
            assert all(torch.equal(back[name], ours[name]) for name in ours)
