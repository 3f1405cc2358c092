"""Specs as JSON, there and back; hostile JSON is refused."""

import json

import pytest
import torch
from helpers.specs import grouped_spec, nested_spec, random_state
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.errors import (
    SpecError,
)
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    Permutation,
    PermutationSpec,
    TensorInfo,
)
from lightning_rebasin.symmetry.spec.values import ActivationAddress

sizes = st.integers(1, 4)


@given(
    st.one_of(
        st.builds(nested_spec, sizes, sizes, sizes),
        st.builds(grouped_spec, sizes, sizes, sizes),
    )
)
@settings(deadline=None, max_examples=30)
def test_json_round_trip(spec):
    again = PermutationSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    p = Permutation.random(spec, torch.Generator().manual_seed(1))
    q = Permutation.random(again, torch.Generator().manual_seed(1))
    state = random_state(spec)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            p.apply(state).values(), q.apply(state).values(), strict=True
        )
    )


@given(st.permutations(range(6)))
@settings(deadline=None, max_examples=30)
def test_irregular_index_survives_json(order):
    index = torch.tensor(order)[:4, None]
    axis_map = AxisMap("w", ((6,),), (Component("h", (0,), index),))
    spec = PermutationSpec(
        {"h": Group("h", 4)}, {"w": TensorInfo((6,))}, {"w": axis_map}
    )
    again = PermutationSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert torch.equal(again.maps["w"].components[0].index, index)


def test_regular_index_is_stored_in_a_few_numbers():
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (100_000, 1)})
    assert len(json.dumps(spec.to_dict())) < 1000


def edited(change):
    data = json.loads(json.dumps(nested_spec().to_dict()))
    change(data)
    return data


def _component(data):
    return data["maps"]["value.weight"]["components"][0]


HOSTILE = {
    "no format": lambda d: d.pop("format"),
    "newer version": lambda d: d.update(version=99),
    "groups missing": lambda d: d.pop("groups"),
    "groups a number": lambda d: d.update(groups=3),
    "two groups of one name": lambda d: d["groups"].append(d["groups"][0]),
    "child before parent": lambda d: d["groups"].reverse(),
    "own parent": lambda d: d["groups"][0].update(parent="heads"),
    "size zero": lambda d: d["groups"][2].update(size=0),
    "size negative": lambda d: d["groups"][2].update(size=-3),
    "size text": lambda d: d["groups"][2].update(size="5"),
    "size fraction": lambda d: d["groups"][2].update(size=5.0),
    "size true": lambda d: d["groups"][0].update(size=True),
    "size too large": lambda d: d["groups"][2].update(size=10**12),
    "unknown kind of group": lambda d: d["groups"][2].update(
        kind="not a kind"
    ),
    "unknown kind of tensor": lambda d: d["tensors"]["scale"].update(
        kind="spam"
    ),
    "shape text": lambda d: d["tensors"]["scale"].update(shape="33"),
    "map of no tensor": lambda d: d["maps"].update(ghost=d["maps"]["scale"]),
    "unknown group in a map": lambda d: _component(d).update(group="ghost"),
    "map of another shape": lambda d: d["maps"]["scale"].update(sites=[[4]]),
    "site out of range": lambda d: _component(d).update(sites=[0, 9]),
    "sites descending": lambda d: _component(d).update(sites=[1, 0]),
    "no sites": lambda d: _component(d).update(sites=[]),
    "index too large": lambda d: _component(d)["index"].update(copies=10**12),
    "index out of range": lambda d: _component(d)["index"].update(start=5),
    "index negative": lambda d: _component(d)["index"].update(start=-1),
    "index repeated": lambda d: _component(d)["index"].update(
        strides=[0, 0, 0]
    ),
    "strides missing": lambda d: _component(d)["index"].update(strides=[4]),
    "index text": lambda d: _component(d).update(index="all"),
    "index ragged": lambda d: _component(d).update(index=[[0], [1, 2]]),
    "index fractions": lambda d: _component(d).update(index=[[0.5]] * 12),
    "index overflow": lambda d: _component(d).update(index=[[10**30]] * 12),
    "alias of nothing": lambda d: d["aliases"].update(ghost="scale"),
    "alias of another shape": lambda d: d["aliases"].update(
        {"scale": "out.weight"}
    ),
    "pin with other fields": lambda d: d["pinned"].append({"spam": 1}),
    "aliases a list": lambda d: d.update(aliases=[1]),
    "notes a number": lambda d: d.update(notes=1),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_json_is_refused(fault):
    with pytest.raises(SpecError):
        PermutationSpec.from_dict(edited(HOSTILE[fault]))


@pytest.mark.parametrize("data", [None, [], 3, "spec", {}])
def test_other_json_is_refused(data):
    with pytest.raises(SpecError, match="not a permutation spec"):
        PermutationSpec.from_dict(data)


def addressed():
    """A spec with one activation address: 4 units in blocks of 3 positions, the batch unknown."""
    index = torch.arange(12).reshape(4, 3)
    component = Component("h", (1,), index)
    address = ActivationAddress(2, "aten.addmm", 0, ((-1,), (12,)), component)
    return PermutationSpec(
        {"h": Group("h", 4)}, {}, {}, activations={"h": (address,)}
    )


def test_addresses_are_numbered_per_operation_and_say_so():
    data = addressed().to_dict()
    assert data["version"] == 2
    (entry,) = data["activations"]["h"]
    assert entry["numbering"] == "op"
    (again,) = PermutationSpec.from_dict(data).activations["h"]
    assert (again.ordinal, again.op, again.argument, again.numbering) == (
        2,
        "aten.addmm",
        0,
        "op",
    )
    assert again.sites == ((-1,), (12,))
    assert again.component.index.tolist() == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10, 11],
    ]


def test_addresses_without_numbering_count_all_contractions_together():
    data = addressed().to_dict()
    data["version"] = 1
    del data["activations"]["h"][0]["numbering"]
    (old,) = PermutationSpec.from_dict(data).activations["h"]
    assert old.numbering == "together"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbering": "lucky"}, "numbered by 'lucky'"),
        ({"sites": [[-1], [11]]}, "more positions than its tensor"),
        ({"index": [[0], [1], [2], [12]]}, "positions outside its tensor"),
        ({"index": [[0], [1], [2], [-1]]}, "positions outside its tensor"),
        ({"group": "ghost"}, "malformed"),
        ({"ordinal": -1}, "not a size"),
        ({"sites": [[-2], [12]]}, "not a size"),
        ({"over": [5]}, "malformed"),
    ],
)
def test_hostile_addresses_are_refused(change, message):
    data = addressed().to_dict()
    data["activations"]["h"][0].update(change)
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_dict(data)


def test_a_version_beyond_is_refused_by_its_number():
    data = nested_spec().to_dict() | {"version": 3}
    with pytest.raises(
        SpecError, match="version 3 is not supported, expected 1 or 2"
    ):
        PermutationSpec.from_dict(data)


def test_power_is_written_only_where_it_is_not_one():
    data = nested_spec().to_dict()
    assert "power" not in _component(data)
    _component(data)["power"] = -1
    spec = PermutationSpec.from_dict(data)
    assert spec.maps["value.weight"].components[0].power == -1
    assert spec.to_dict() == data
    _component(data)["power"] = 5
    with pytest.raises(SpecError, match="power 5 of group 'value'"):
        PermutationSpec.from_dict(data)


def test_kinds_of_groups_are_open_names():
    data = nested_spec().to_dict()
    data["groups"][2]["kind"] = "sign"
    assert PermutationSpec.from_dict(data).groups["model"].kind == "sign"
    for kind in ("", "two words", 3, None):
        data["groups"][2]["kind"] = kind
        with pytest.raises(SpecError, match="unknown kind"):
            PermutationSpec.from_dict(data)
