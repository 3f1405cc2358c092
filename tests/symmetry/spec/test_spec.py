"""Specs: classical tables, JSON there and back, hostile JSON, validation, checking state dicts."""

import copy

import pytest
import torch
from helpers.specs import blocks_spec, grouped_spec, nested_spec, random_state

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
    PermutationSpec,
    Pin,
    TensorInfo,
)

ALL = {
    "nested": nested_spec(),
    "grouped": grouped_spec(),
    "blocks": blocks_spec(),
}


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
