"""Specs: classical tables, JSON there and back, hostile JSON, validation, checking state dicts."""

import copy
import json

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from helpers.specs import blocks_spec, grouped_spec, nested_spec, random_state
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.errors import (
    NonFiniteError,
    OutputError,
    RebasinError,
    SpecError,
    StateDictError,
)
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    Permutation,
    PermutationSpec,
    Pin,
    TensorInfo,
    check_equivalence,
)

ALL = {
    "nested": nested_spec(),
    "grouped": grouped_spec(),
    "blocks": blocks_spec(),
}
sizes = st.integers(1, 4)


def paper_table(layers):
    """``mlp_permutation_spec`` of the paper's code, in PyTorch's (out, in) layout."""
    table = {}
    for i in range(layers + 1):
        table[f"{2 * i}.weight"] = (
            f"P_{i}" if i < layers else None,
            f"P_{i - 1}" if i else None,
        )
        table[f"{2 * i}.bias"] = (f"P_{i}" if i < layers else None,)
    return table


def test_papers_mlp_table_is_exact():
    module = randomise(mlp(6, 8, 7, 9, 3))
    spec = PermutationSpec.from_table(paper_table(3), module.state_dict())
    assert {g.id: g.size for g in spec.groups.values()} == {
        "P_0": 8,
        "P_1": 7,
        "P_2": 9,
    }
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, torch.randn(5, 6)) < 1e-12


def test_papers_convolution_table_is_exact():
    """``conv``, ``norm`` and ``dense`` axes as the VGG and ResNet specs of the paper's code write them."""
    conv = lambda name, p_in, p_out: {
        f"{name}.weight": (p_out, p_in, None, None)
    }
    norm = lambda name, p: {
        f"{name}.{leaf}": (p,)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    }
    dense = lambda name, p_in, p_out: {
        f"{name}.weight": (p_out, p_in),
        f"{name}.bias": (p_out,),
    }
    table = {
        **conv("conv1", None, "P_1"),
        **norm("bn1", "P_1"),
        **conv("conv2", "P_1", "P_2"),
        **norm("bn2", "P_2"),
        **dense("fc", "P_2", None),
    }
    module = randomise(BatchNormCNN())
    spec = PermutationSpec.from_table(table, module.state_dict())
    assert (
        spec.tensors["bn1.running_mean"].kind
        == spec.tensors["bn1.num_batches_tracked"].kind
        == "buffer"
    )
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, torch.randn(2, 3, 8, 8)) < 1e-12


def test_square_recurrent_table_moves_both_axes_alike():
    spec = PermutationSpec.from_table({"w": ("h", "h")}, {"w": (3, 3)})
    new = Permutation(spec, {"h": torch.tensor([1, 2, 0])}).apply(
        {"w": torch.arange(9).reshape(3, 3)}
    )
    assert new["w"].tolist() == [[4, 5, 3], [7, 8, 6], [1, 2, 0]]


@pytest.mark.parametrize(
    ("table", "shapes", "message"),
    [
        ({"a": ("h",)}, {}, "'a', which the model does not have"),
        ({"a": ("h", None)}, {"a": (3,)}, "'a' has 1 dimensions"),
        ({"a": "h"}, {"a": (3,)}, "'a' has 1 dimensions"),
        (
            {"a": ("h",), "b": ("h",)},
            {"a": (3,), "b": (4,)},
            "'h' has size 3, but 'b' dim 0 has 4",
        ),
        ({"a": (1,)}, {"a": (3,)}, "1 is not a group name"),
        ({"a": ("h",)}, {"a": (0,)}, "'h' has 0 units"),
    ],
)
def test_bad_tables_are_refused(table, shapes, message):
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_table(table, shapes)


def test_tied_tensors_of_a_table():
    weight = torch.zeros(2, 3)
    state = {"a": weight, "b": weight, "c": torch.zeros(3)}
    spec = PermutationSpec.from_table({"b": (None, "h"), "c": ("h",)}, state)
    assert dict(spec.aliases) == {"b": "a"} and set(spec.maps) == {"a", "c"}
    with pytest.raises(SpecError, match="'b' and 'a' are one tied tensor"):
        PermutationSpec.from_table({"a": ("v", None), "b": (None, "h")}, state)


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


@pytest.mark.parametrize("name", ALL)
def test_save_and_load(tmp_path, name):
    ALL[name].save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == ALL[name]
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_pins_aliases_and_notes_survive(tmp_path):
    pin = Pin("w", 1, 2, 2, "input", "aten.mm in 'a'")
    infos = {"w": TensorInfo((3, 2)), "v": TensorInfo((3, 2), "buffer")}
    axis_map = AxisMap(
        "w", ((3,), (2,)), (Component("h", (0,), torch.arange(3)[:, None]),)
    )
    spec = PermutationSpec(
        {"h": Group("h", 3)},
        infos,
        {"w": axis_map},
        (pin,),
        {"v": "w"},
        ("a note",),
    )
    spec.save(tmp_path / "spec.json")
    again = PermutationSpec.load(tmp_path / "spec.json")
    assert (again.pinned, dict(again.aliases), again.notes) == (
        (pin,),
        {"v": "w"},
        ("a note",),
    )
    assert again.tensors["v"].kind == "buffer"


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


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000]
)
def test_foreign_files_are_refused(tmp_path, text):
    (tmp_path / "spec.json").write_bytes(text)
    with pytest.raises(SpecError):
        PermutationSpec.load(tmp_path / "spec.json")


def test_missing_file_and_missing_folder(tmp_path):
    with pytest.raises(SpecError, match=r"nothing\.json"):
        PermutationSpec.load(tmp_path / "nothing.json")
    with pytest.raises(OutputError, match="nowhere"):
        nested_spec().save(tmp_path / "nowhere" / "spec.json")


def test_overlapping_units_are_refused():
    index = torch.arange(3)[:, None]
    axis_map = AxisMap(
        "w",
        ((4,),),
        (Component("a", (0,), index), Component("b", (0,), index + 1)),
    )
    with pytest.raises(SpecError, match="belongs to two units"):
        PermutationSpec(
            {"a": Group("a", 3), "b": Group("b", 3)},
            {"w": TensorInfo((4,))},
            {"w": axis_map},
        )


def test_values_are_frozen():
    spec = nested_spec()
    for change in (
        lambda: spec.groups.update({}),
        lambda: setattr(spec, "notes", ()),
        lambda: setattr(spec.groups["heads"], "size", 9),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()


def test_copies_are_equal_and_specs_hash():
    spec = nested_spec()
    assert copy.copy(spec) == spec and spec != nested_spec(2) and spec != 3
    assert len({spec, spec}) == 1


def test_look_ups():
    spec = nested_spec()
    assert [g.id for g in spec.children("heads")] == [
        "value"
    ] and spec.children("model") == ()
    assert spec.tensors_of("heads") == ("scale",) and spec.tensors_of(
        "value"
    ) == (
        "value.weight",
        "out.weight",
    )
    assert spec.maps["value.weight"].dims_of("model") == (1,)
    assert (
        repr(spec)
        == "PermutationSpec(3 groups, 10^7.0 symmetries, 3 of 3 tensors permutable)"
    )


def test_check_state_names_the_culprit():
    spec = nested_spec()
    state = random_state(spec)
    spec.check_state(state, finite=True)
    missing = {
        name: tensor for name, tensor in state.items() if name != "scale"
    }
    with pytest.raises(
        StateDictError, match=r"b\.ckpt does not fit the spec: missing 'scale'"
    ):
        spec.check_state(missing, "b.ckpt")
    with pytest.raises(StateDictError, match=r"unexpected 'module.scale'"):
        spec.check_state(state | {"module.scale": torch.zeros(3)})
    with pytest.raises(StateDictError, match="'scale' has shape"):
        spec.check_state(state | {"scale": torch.zeros(2)})
    bad = state | {"scale": torch.tensor([0.0, float("nan"), 1.0])}
    spec.check_state(bad)
    with pytest.raises(NonFiniteError, match="'scale'"):
        spec.check_state(bad, finite=True)
    many = {f"x{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(StateDictError, match=r"\+6 more"):
        spec.check_state(state | many)
    assert issubclass(SpecError, RebasinError) and issubclass(
        SpecError, ValueError
    )
