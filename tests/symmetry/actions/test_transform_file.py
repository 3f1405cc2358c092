"""Files of transforms: exact round trips in both formats, and clear errors for anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.kinds import networks
from safetensors.torch import load_file, save_file

from lightning_rebasin import infer_spec
from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
    Transform,
)
from lightning_rebasin.symmetry.actions.transform import MixedTransform

NETWORKS = ["layer norm", "rotary", "relu", "tanh", "low rank", "planes"]


def planes() -> PermutationSpec:
    """Two rotary planes, written by hand."""
    group = Group("p", 4, kind="plane")
    component = Component("p", (0,), torch.arange(4)[:, None])
    maps = {"w": AxisMap("w", ((4,), (3,)), (component,))}
    return PermutationSpec({"p": group}, {"w": TensorInfo((4, 3))}, maps)


def drawn(name: str) -> Transform:
    if name == "planes":
        generator = torch.Generator().manual_seed(0)
        return Transform.random(planes(), generator)
    module, batch = networks(name)
    spec = infer_spec(module, batch, kinds="all")
    return Transform.random(spec, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", ["perm", "safetensors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_round_trip_gives_the_same_bits(
    tmp_path: Path, name: str, suffix: str
) -> None:
    transform = drawn(name)
    path = tmp_path / f"t.{suffix}"
    transform.save(path)
    loaded = Transform.load(path, transform.spec)
    assert type(loaded) is type(transform)
    assert loaded.spec is transform.spec
    for group, element in transform.elements.items():
        assert loaded[group].dtype == element.dtype
        assert torch.equal(loaded[group], element)


def test_every_kind_is_among_them() -> None:
    found = {
        group.kind
        for name in NETWORKS
        for group in drawn(name).spec.groups.values()
    }
    assert found == {
        "permutation",
        "sign",
        "scale",
        "linear",
        "plane",
        "orthogonal",
        "orthogonal_mean",
    }


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    transform = drawn("tanh")
    transform.save(tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").rename(tmp_path / "t.perm")
    assert Transform.load(tmp_path / "t.perm") == transform
    # Other programs can read it.
    assert set(load_file(tmp_path / "t.perm")) == set(transform.elements)


def damaged(path: Path, how: str, transform: Transform) -> None:
    """Write a file that is not a transform."""
    spec = json.dumps(transform.spec.to_dict())
    elements = dict(transform.elements)
    first = next(iter(elements))
    header: dict[str, Any] = {"format": MixedTransform.format, "spec": spec}
    if how == "other tensors":
        header = {}
    elif how == "no spec":
        del header["spec"]
    elif how == "broken spec":
        header["spec"] = spec[:-7]
    elif how == "wrong group":
        elements["nobody"] = elements.pop(first)
    elif how == "not an element":
        elements[first] = torch.zeros(3)
    save_file(elements, path, header)
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("other tensors", "is not a transform file"),
        ("no spec", "not a valid transform file: KeyError"),
        ("broken spec", "not a valid transform file"),
        ("wrong group", "has no group 'nobody'"),
        ("not an element", "group '0'"),
        ("cut off", "cannot read a transform"),
        ("empty", "cannot read a transform"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, how: str, message: str
) -> None:
    path = tmp_path / "t.safetensors"
    damaged(path, how, drawn("relu"))
    with pytest.raises(TransformError, match=message) as caught:
        Transform.load(path)
    assert "t.safetensors" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match=r"nowhere\.safetensors"):
        Transform.load(tmp_path / "nowhere.safetensors")


def test_a_file_of_another_spec_is_refused(tmp_path: Path) -> None:
    drawn("tanh").save(tmp_path / "t.safetensors")
    other = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
    with pytest.raises(TransformError, match="belongs to another spec"):
        Transform.load(tmp_path / "t.safetensors", other)
