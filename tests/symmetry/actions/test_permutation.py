"""The algebra of permutations: group laws, nesting, apply against plain loops, files good and bad."""

import itertools
import math

import pytest
import torch
from helpers.specs import blocks_spec, grouped_spec, nested_spec, random_state
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.errors import (
    OutputError,
    PermutationError,
    RebasinError,
    StateDictError,
)
from lightning_rebasin.symmetry import Group, Permutation, PermutationSpec

sizes = st.integers(1, 5)
specs = st.one_of(
    st.builds(nested_spec, sizes, sizes, sizes),
    st.builds(grouped_spec, sizes, sizes, sizes),
    st.builds(blocks_spec, sizes, sizes),
)
seeds = st.integers(0, 2**31)


def randomly(spec, seed=0):
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) for name in a
    )


@given(specs, seeds, seeds, seeds)
@settings(deadline=None, max_examples=60)
def test_group_laws(spec, s1, s2, s3):
    p, q, r = randomly(spec, s1), randomly(spec, s2), randomly(spec, s3)
    one = Permutation.identity(spec)
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    assert p.compose(one) == p == one.compose(p)
    assert (
        p.compose(p.inverse()).is_identity
        and p.inverse().compose(p).is_identity
    )
    assert p.compose(q).inverse() == q.inverse().compose(p.inverse())
    assert p.inverse().inverse() == p
    assert (
        Permutation.from_flat(spec, {g: p.flat(g) for g in spec.groups}) == p
    )


@given(specs, seeds, seeds)
@settings(deadline=None, max_examples=60)
def test_apply_is_an_action(spec, s1, s2):
    p, q, state = randomly(spec, s1), randomly(spec, s2), random_state(spec)
    assert same(p.compose(q).apply(state), p.apply(q.apply(state)))
    assert same(p.inverse().apply(p.apply(state)), state)
    assert same(Permutation.identity(spec).apply(state), state)
    for name, tensor in p.apply(state).items():  # nothing is lost or invented
        assert torch.equal(
            tensor.flatten().sort().values, state[name].flatten().sort().values
        )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=40)
def test_nested_groups_against_plain_loops(heads, inner, width, seed):
    spec = nested_spec(heads, inner, width)
    p, state = randomly(spec, seed), random_state(spec)
    new = p.apply(state)
    for h, i, c in itertools.product(range(heads), range(inner), range(width)):
        old_h = int(p["heads"][h])
        old_i, old_c = int(p["value"][h, i]), int(p["model"][c])
        assert (
            new["value.weight"][h * inner + i, c]
            == state["value.weight"][old_h * inner + old_i, old_c]
        )
        assert (
            new["out.weight"][c, h * inner + i]
            == state["out.weight"][old_c, old_h * inner + old_i]
        )
        assert new["scale"][h] == state["scale"][old_h]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=40)
def test_grouped_convolution_against_plain_loops(
    groups, inputs, outputs, seed
):
    spec = grouped_spec(groups, inputs, outputs)
    p, state = randomly(spec, seed), random_state(spec)
    new = p.apply(state)
    for g, o, i in itertools.product(
        range(groups), range(outputs), range(inputs)
    ):
        old = int(p["g"][g]) * outputs + int(p["out"][g, o])
        assert torch.equal(
            new["conv.weight"][g * outputs + o, i],
            state["conv.weight"][old, int(p["in"][g, i])],
        )
        assert new["conv.bias"][g * outputs + o] == state["conv.bias"][old]


def test_grouped_convolution_computes_the_same():
    spec = grouped_spec(3, 4, 2)
    p, state = randomly(spec, 1), random_state(spec)
    x = torch.randn(2, 4, 7, dtype=torch.float64)

    def run(s):
        hidden = torch.nn.functional.conv1d(x, s["before.weight"][:, :, None])
        out = torch.nn.functional.conv1d(
            hidden, s["conv.weight"], s["conv.bias"], groups=3
        )
        return out.sum(1)

    assert torch.allclose(run(state), run(p.apply(state)), atol=1e-12)
    half = Permutation(
        spec, {"in": p["in"]}
    )  # only the inputs inside each group
    assert torch.allclose(run(state), run(half.apply(state)), atol=1e-12)


def test_blocks_copies_and_pinned_positions():
    spec = blocks_spec(3, 2)
    p = Permutation(spec, {"c": torch.tensor([2, 0, 1])})
    state = {
        name: torch.arange(math.prod(i.shape)).reshape(i.shape)
        for name, i in spec.tensors.items()
    }
    new = p.apply(state)
    assert new["linear.weight"].tolist() == [
        [4, 5, 0, 1, 2, 3],
        [10, 11, 6, 7, 8, 9],
    ]
    assert new["crelu.weight"].tolist() == [2, 0, 1, 5, 3, 4]
    assert new["part.weight"].tolist() == [0, 3, 1, 2, 4]
    assert new["rest"].tolist() == [0, 1]


def test_apply_leaves_the_input_alone_and_returns_copies():
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
def test_apply_keeps_dtype(dtype):
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})
    new = Permutation(spec, {"h": torch.tensor([1, 2, 0])}).apply(
        {"w": torch.tensor([0, 1, 0]).to(dtype)}
    )
    assert (
        new["w"].dtype is dtype
        and new["w"].tolist() == torch.tensor([1, 0, 0]).to(dtype).tolist()
    )


def test_module_versions_are_kept():
    module = torch.nn.BatchNorm1d(3)
    spec = PermutationSpec.from_table({"weight": ("h",)}, module.state_dict())
    new = randomly(spec).apply(module.state_dict())
    assert (
        new._metadata == module.state_dict()._metadata
        and new._metadata[""]["version"] == 2
    )
    assert type(new).__mro__[1] is dict and not hasattr(
        randomly(spec).apply(dict(module.state_dict())), "_metadata"
    )


def test_tied_tensors_stay_tied():
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"embed": weight, "out": weight}
    spec = PermutationSpec.from_table({"embed": (None, "h")}, state)
    new = Permutation(spec, {"h": torch.tensor([2, 1, 0])}).apply(state)
    assert new["embed"] is new["out"] and new["embed"][0].tolist() == [2, 1, 0]
    loose = Permutation(spec, {"h": torch.tensor([2, 1, 0])}).apply(
        {"embed": weight, "out": weight.clone()}
    )
    assert loose["out"][0].tolist() == [2, 1, 0]


def test_random_is_seeded_and_uniform():
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})
    assert randomly(spec, 5) == randomly(spec, 5)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        tuple(Permutation.random(spec, generator)["h"].tolist())
        for _ in range(600)
    ]
    counts = [drawn.count(order) for order in itertools.permutations(range(3))]
    assert (
        min(counts) > 60 and sum(counts) == 600
    )  # 100 each, standard deviation 9


def test_moved_and_repr():
    spec = nested_spec(3, 4, 5)
    p = Permutation(spec, {"heads": torch.tensor([1, 0, 2])})
    assert p.moved == {"heads": 2 / 3, "value": 2 / 3, "model": 0.0}
    assert repr(p) == "Permutation(3 groups, 50.0% of 20 units moved)"
    assert not p.is_identity


def test_identity_knows_itself_and_compares():
    spec = nested_spec()
    assert Permutation.identity(spec).is_identity
    assert Permutation.identity(spec) != randomly(spec, 3)
    assert Permutation.identity(spec) != "identity"


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"nobody": torch.arange(3)}, "no group 'nobody'"),
        ({"heads": torch.tensor([0, 0, 1])}, "not a permutation"),
        ({"heads": torch.tensor([0, 1, 3])}, "not a permutation"),
        ({"heads": torch.arange(4)}, "shape"),
        ({"value": torch.arange(4)}, "shape"),
        ({"heads": torch.tensor([0.0, 1.0, 2.0])}, "LongTensor"),
        ({"heads": torch.tensor([True, False, True])}, "LongTensor"),
        ({"heads": [0, 1, 2]}, "LongTensor"),
    ],
)
def test_bad_orders_are_refused(orders, message):
    with pytest.raises(PermutationError, match=message):
        Permutation(nested_spec(3, 4, 5), orders)


def test_from_flat_refuses_broken_nesting():
    spec = nested_spec(2, 2, 2)
    with pytest.raises(
        PermutationError,
        match="'value' does not keep its parent's members together",
    ):
        Permutation.from_flat(spec, {"value": torch.tensor([0, 2, 1, 3])})
    swapped = {
        "heads": torch.tensor([1, 0]),
        "value": torch.tensor([0, 1, 2, 3]),
    }
    with pytest.raises(
        PermutationError, match="'value'"
    ):  # the units stay although their heads move
        Permutation.from_flat(spec, swapped)
    with pytest.raises(PermutationError, match="entries"):
        Permutation.from_flat(spec, {"heads": torch.arange(3)})
    with pytest.raises(PermutationError, match="no group"):
        Permutation.from_flat(spec, {"nobody": torch.arange(2)})


def test_compose_refuses_another_spec():
    with pytest.raises(PermutationError, match="different specs"):
        Permutation.identity(nested_spec(2)).compose(
            Permutation.identity(nested_spec(3))
        )
    assert (
        Permutation.identity(nested_spec(2))
        .compose(Permutation.identity(nested_spec(2)))
        .is_identity
    )


def test_apply_names_what_does_not_fit():
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
def test_save_and_load(tmp_path_factory, spec, seed):
    path = tmp_path_factory.mktemp("p") / "p.pt"
    p = randomly(spec, seed)
    p.save(path)
    assert (
        Permutation.load(path) == p
        and Permutation.load(path, spec).spec is spec
    )
    assert [file.name for file in path.parent.iterdir()] == ["p.pt"]


def test_load_refuses_another_spec(tmp_path):
    randomly(nested_spec(2)).save(tmp_path / "p.pt")
    with pytest.raises(PermutationError, match="another spec"):
        Permutation.load(tmp_path / "p.pt", nested_spec(3))


def test_save_into_a_missing_folder(tmp_path):
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
def test_foreign_files_are_refused(tmp_path, payload):
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
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_are_no_torch_files_or_hold_code_are_refused(
    tmp_path, capsys
):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"format": FORMAT, "spec": Evil()}, tmp_path / "evil.pt")
    for name in ("text.pt", "empty.pt", "evil.pt", "missing.pt"):
        with pytest.raises(RebasinError, match=name):
            Permutation.load(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_group_arithmetic():
    a = Group("a", 4)
    b = Group("b", 3, a)
    c = Group("c", 2, b)
    assert (c.shape, c.instances, c.members, c.root) == ((4, 3, 2), 12, 24, a)
    assert c.log10_symmetries == pytest.approx(12 * math.log10(2))
    assert b.log10_symmetries == pytest.approx(4 * math.log10(6))
