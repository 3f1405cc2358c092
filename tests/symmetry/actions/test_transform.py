"""Transforms: applied to state dicts, composed, kept in files good and bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.algebra import randomly, same, seeds, specs
from helpers.specs import nested_spec, random_state
from hypothesis import given, settings
from torch import Tensor

from lightning_rebasin.errors import (
    OutputError,
    PermutationError,
    RebasinError,
    StateDictError,
    TransformError,
)
from lightning_rebasin.symmetry import (
    Group,
    Permutation,
    PermutationSpec,
    Transform,
)


def test_apply_leaves_the_input_alone_and_returns_copies() -> None:
    spec = nested_spec()
    state = random_state(spec)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for p in (randomly(spec), Permutation.identity(spec)):
        for tensor in p.apply(state).values():
            tensor.zero_()
    assert same(state, kept)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64],
)
def test_apply_keeps_dtype(dtype: torch.dtype) -> None:
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})
    new = Permutation(spec, {"h": torch.tensor([1, 2, 0])}).apply(
        {"w": torch.tensor([0, 1, 0]).to(dtype)}
    )
    assert (
        new["w"].dtype is dtype
        and new["w"].tolist() == torch.tensor([1, 0, 0]).to(dtype).tolist()
    )


def test_module_versions_are_kept() -> None:
    module = torch.nn.BatchNorm1d(3)
    spec = PermutationSpec.from_table({"weight": ("h",)}, module.state_dict())
    state: Any = module.state_dict()
    new: Any = randomly(spec).apply(state)
    assert new._metadata == state._metadata
    assert new._metadata[""]["version"] == 2
    assert isinstance(new, dict)
    assert not hasattr(randomly(spec).apply(dict(state)), "_metadata")


def test_tied_tensors_stay_tied() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"embed": weight, "out": weight}
    spec = PermutationSpec.from_table({"embed": (None, "h")}, state)
    new = Permutation(spec, {"h": torch.tensor([2, 1, 0])}).apply(state)
    assert new["embed"] is new["out"] and new["embed"][0].tolist() == [2, 1, 0]
    loose = Permutation(spec, {"h": torch.tensor([2, 1, 0])}).apply(
        {"embed": weight, "out": weight.clone()}
    )
    assert loose["out"][0].tolist() == [2, 1, 0]


def test_compose_refuses_another_spec() -> None:
    with pytest.raises(PermutationError, match="different specs"):
        Permutation.identity(nested_spec(2)).compose(
            Permutation.identity(nested_spec(3))
        )
    assert (
        Permutation.identity(nested_spec(2))
        .compose(Permutation.identity(nested_spec(2)))
        .is_identity
    )


def test_apply_names_what_does_not_fit() -> None:
    spec = nested_spec()
    state = random_state(spec)
    for change, message in [
        ({"scale": torch.zeros(9)}, "'scale' has shape"),
        ({"extra": torch.zeros(1)}, "unexpected 'extra'"),
    ]:
        with pytest.raises(StateDictError, match=message):
            randomly(spec).apply(state | change)
    del state["scale"]
    with pytest.raises(StateDictError, match="missing 'scale'"):
        randomly(spec).apply(state)


@given(specs, seeds)
@settings(deadline=None, max_examples=20)
def test_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, spec: PermutationSpec, seed: int
) -> None:
    path = tmp_path_factory.mktemp("p") / "p.pt"
    p = randomly(spec, seed)
    p.save(path)
    assert (
        Permutation.load(path) == p
        and Permutation.load(path, spec).spec is spec
    )
    assert [file.name for file in path.parent.iterdir()] == ["p.pt"]


def test_load_refuses_another_spec(tmp_path: Path) -> None:
    randomly(nested_spec(2)).save(tmp_path / "p.pt")
    with pytest.raises(PermutationError, match="another spec"):
        Permutation.load(tmp_path / "p.pt", nested_spec(3))


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        randomly(nested_spec()).save(tmp_path / "nowhere" / "p.pt")


FORMAT = "lightning-rebasin-permutation"


@pytest.mark.parametrize(
    "payload",
    [
        [1, 2],
        {},
        {"format": "other"},
        {"format": FORMAT},
        {"format": FORMAT, "spec": "{"},
        {"format": FORMAT, "spec": 5, "orders": {}},
        {"format": FORMAT, "spec": "{}", "orders": {}},
        {"format": FORMAT, "spec": None},
        "orders missing",
        "orders foreign",
        "orders wrong",
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, payload: Any) -> None:
    if isinstance(payload, str):
        randomly(nested_spec()).save(tmp_path / "good.pt")
        good = torch.load(tmp_path / "good.pt")
        payload = {
            "orders missing": {k: v for k, v in good.items() if k != "orders"},
            "orders foreign": good | {"orders": [1]},
            "orders wrong": good
            | {"orders": {"heads": torch.tensor([0, 0, 0])}},
        }[payload]
    torch.save(payload, tmp_path / "p.pt")
    with pytest.raises(PermutationError):
        Permutation.load(tmp_path / "p.pt")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_files_that_are_no_torch_files_or_hold_code_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"format": FORMAT, "spec": Evil()}, tmp_path / "evil.pt")
    for name in ("text.pt", "empty.pt", "evil.pt", "missing.pt"):
        with pytest.raises(RebasinError, match=name):
            Permutation.load(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_a_spec_of_permutations_gets_permutations() -> None:
    spec = nested_spec()
    generator = torch.Generator().manual_seed(0)
    for made in (
        Transform.identity(spec),
        Transform.random(spec, generator),
        Transform.of(spec, {"heads": torch.tensor([2, 0, 1])}),
        Transform.identity(PermutationSpec.from_table({}, {"w": (2,)})),
    ):
        assert type(made) is Permutation


def test_the_identity_fills_what_was_left_out() -> None:
    spec = nested_spec(2, 3, 4)
    p = Transform.of(spec, {"heads": torch.tensor([1, 0])})
    assert p["heads"].tolist() == [1, 0]
    assert p["value"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert p["model"].tolist() == [0, 1, 2, 3]


def test_only_keeps_some_elements() -> None:
    p = randomly(nested_spec(3, 4, 5), 1)
    some = p.only(["value", "model"])
    assert torch.equal(some["value"], p["value"])
    assert torch.equal(some["model"], p["model"])
    assert some["heads"].tolist() == [0, 1, 2]
    assert p.only([]).is_identity
    assert not p.is_identity


def test_flat_orders_hold_the_moves_of_the_ancestors() -> None:
    spec = nested_spec(2, 3, 1)
    p = Permutation(
        spec,
        {
            "heads": torch.tensor([1, 0]),
            "value": torch.tensor([[2, 0, 1], [0, 2, 1]]),
        },
    )
    # Place 0 is head 1 now, whose units begin at 3.
    assert p.flat("value").tolist() == [5, 3, 4, 0, 2, 1]
    assert p.flat("heads").tolist() == [1, 0]


@given(specs, seeds, seeds, seeds)
@settings(deadline=None, max_examples=40)
def test_flat_orders_multiply_like_plain_permutations(
    spec: PermutationSpec, s1: int, s2: int, s3: int
) -> None:
    p, q, r = randomly(spec, s1), randomly(spec, s2), randomly(spec, s3)
    left, right = p.compose(q).compose(r), p.compose(q.compose(r))
    for group in spec.groups:
        # new[i] = old[q[p[i]]]: the last one to act is looked up first.
        both = q.flat(group)[p.flat(group)]
        assert torch.equal(p.compose(q).flat(group), both)
        assert torch.equal(left.flat(group), r.flat(group)[both])
        assert torch.equal(right.flat(group), left.flat(group))
        undone = torch.argsort(p.flat(group))
        assert torch.equal(p.inverse().flat(group), undone)


def test_elements_are_private_and_cannot_be_exchanged() -> None:
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})
    given_order = torch.tensor([1, 2, 0])
    p = Transform.of(spec, {"h": given_order})
    given_order.copy_(torch.arange(3))
    assert p["h"].tolist() == [1, 2, 0]
    elements = cast("dict[str, Tensor]", p.elements)
    with pytest.raises(TypeError, match="does not support item assignment"):
        elements["h"] = torch.arange(3)


def test_a_kind_without_an_action_is_named() -> None:
    spec = nested_spec()
    groups = {**spec.groups, "model": Group("model", 5, kind="rotation")}
    mixed = replace(spec, groups=groups)
    with pytest.raises(TransformError, match="'model' is of the kind"):
        Transform.identity(mixed)
    with pytest.raises(PermutationError, match="use Transform for this spec"):
        Permutation.identity(mixed)


def test_an_alias_that_came_apart_is_moved_by_its_own_values() -> None:
    weight = torch.arange(3.0)
    spec = PermutationSpec.from_table(
        {"a": ("h",)}, {"a": weight, "b": weight}
    )
    assert spec.aliases == {"b": "a"}
    p = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
    apart = {"a": weight, "b": torch.tensor([5.0, 6.0, 7.0])}
    assert p.apply(apart)["b"].tolist() == [7.0, 5.0, 6.0]
    assert p.apply_to("b", apart["b"]).tolist() == [7.0, 5.0, 6.0]


def test_a_tensor_that_nothing_moves_is_still_a_copy() -> None:
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,), "v": (2,)})
    p = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
    old = torch.tensor([1.0, 2.0])
    new = p.apply_to("v", old)
    assert torch.equal(new, old)
    assert new.data_ptr() != old.data_ptr()


def test_a_file_of_a_permutation_loads_as_a_transform_too(
    tmp_path: Path,
) -> None:
    p = randomly(nested_spec(), 4)
    p.save(tmp_path / "p.pt")
    loaded = Transform.load(tmp_path / "p.pt")
    assert type(loaded) is Permutation
    assert loaded == p
    with pytest.raises(TransformError, match=r"transform .* another spec"):
        Transform.load(tmp_path / "p.pt", nested_spec(4))


def test_a_file_of_something_else_is_called_that(tmp_path: Path) -> None:
    torch.save({"format": "a recipe"}, tmp_path / "r.pt")
    with pytest.raises(TransformError, match=r"r\.pt is not a transform file"):
        Transform.load(tmp_path / "r.pt")
    with pytest.raises(PermutationError, match="is not a permutation file"):
        Permutation.load(tmp_path / "r.pt")


def test_transforms_are_equal_by_value_and_hashed_by_identity() -> None:
    spec = nested_spec()
    p, same_order = randomly(spec, 1), randomly(spec, 1)
    assert p == same_order
    assert len({p, same_order, p}) == 2
    assert p != randomly(spec, 2)
    assert p != randomly(
        PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})
    )
