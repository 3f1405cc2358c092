"""Who is responsible for a network that computes something else: group, tensor, submodule."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from helpers.algebra import randomly
from helpers.models import mlp, randomise
from helpers.tables import CNN_TABLE, MLP_TABLE, Table, cnn, images, without
from hypothesis import given, settings
from torch import Tensor, nn

from lightning_rebasin.errors import EquivalenceError
from lightning_rebasin.symmetry import (
    Permutation,
    PermutationSpec,
    Transform,
    check_equivalence,
)
from lightning_rebasin.symmetry.proof import diagnose
from lightning_rebasin.symmetry.proof.compare import run_all
from lightning_rebasin.symmetry.proof.diagnose import explain_failure
from lightning_rebasin.symmetry.proof.sandbox import Sandbox
from lightning_rebasin.symmetry.run.examples import Example


@pytest.mark.parametrize(
    "name", ["bn1.running_mean", "bn1.running_var", "bn1.bias", "bn1.weight"]
)
def test_forgotten_tensor_is_named_with_group_and_submodule(name: str) -> None:
    module, p = cnn(without(name))
    with pytest.raises(EquivalenceError) as caught:
        check_equivalence(module, p, images())
    assert f"'{name}' must move" in str(caught.value)
    assert "group 'a' (8 units)" in str(
        caught.value
    ) and "submodule 'bn1' (BatchNorm2d)" in str(caught.value)


def test_forgotten_consumer_axis_is_named() -> None:
    module, p = cnn(CNN_TABLE | {"conv2.weight": ("b", None, None, None)})
    with pytest.raises(
        EquivalenceError,
        match=r"'conv2.weight' must move .* dimension 1.*submodule 'conv2'",
    ):
        check_equivalence(module, p, images())


def test_permuted_output_classes_are_refused() -> None:
    module, p = cnn(
        CNN_TABLE | {"fc.weight": ("classes", "b"), "fc.bias": ("classes",)}
    )
    with pytest.raises(EquivalenceError, match="group 'classes'"):
        check_equivalence(module, p, images())


def test_tensor_that_must_stay_is_named() -> None:
    module = randomise(mlp(4, 4, 4))
    table = MLP_TABLE | {"2.bias": ("h",)}
    p = randomly(PermutationSpec.from_table(table, module.state_dict()), 1)
    with pytest.raises(EquivalenceError, match=r"'2.bias' must not move"):
        check_equivalence(module, p, torch.randn(3, 4))


def explain(module: nn.Module, table: Table, x: Tensor) -> str:
    """The message for a transform that moves every unit of a table."""
    spec = PermutationSpec.from_table(table, module.state_dict())
    rolled = {
        name: torch.arange(group.size).roll(1)
        for name, group in spec.groups.items()
    }
    sandbox, examples = Sandbox(module), [Example((x,))]
    baseline = run_all(sandbox, examples)
    return explain_failure(
        sandbox,
        Permutation(spec, rolled),
        examples,
        baseline,
        error=0.5,
        limit=1e-8,
    )


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


def test_the_message_begins_with_what_was_measured_and_allowed() -> None:
    message = explain(randomise(mlp(4, 6, 2)), {"0.bias": ("h",)}, X)
    assert message.startswith(
        "the permuted network computes another function: "
        "relative output error 5.00e-01, allowed 1e-08; "
        "group 'h' (6 units) is wrong; "
    )


class Fork(nn.Module):
    """Hidden units that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.left = nn.Linear(6, 2)
        self.right = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).tanh()
        result: Tensor = self.left(hidden) * self.right(hidden)
        return result


def test_two_mistakes_at_once_are_not_blamed_on_one_tensor() -> None:
    table: Table = {"a.weight": ("h", None), "a.bias": ("h",)}
    net = randomise(Fork())
    message = explain(net, table, X)
    assert "'a.weight' is the first of the 2 that it moves" in message
    assert "no single one explains it" in message
    # The units only change place in `a`; their first reader is where it shows.
    assert "the runs part in submodule 'left' (Linear)" in message
    one = table | {"left.weight": (None, "h")}
    assert "'right.weight' must move with it along dimension 1" in explain(
        net, one, X
    )


def test_the_search_for_a_tensor_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomise(mlp(4, 6, 6))
    forgotten: Table = {"0.weight": ("h", None), "0.bias": ("h",)}
    extra: Table = {**MLP_TABLE, "2.bias": ("h",)}
    assert "'2.weight' must move" in explain(net, forgotten, X)
    assert "'2.bias' must not move" in explain(net, extra, X)
    monkeypatch.setattr(diagnose, "TRIES", 0)
    assert "no single one explains it" in explain(net, forgotten, X)
    assert "no single one explains it" in explain(net, extra, X)


def test_a_network_that_is_not_deterministic_is_not_searched() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = mlp(4, 6, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            result: Tensor = self.net(x) * self.calls
            return result

    message = explain(randomise(Counting()), {"net.0.bias": ("h",)}, X)
    assert "the module is not deterministic" in message
    assert "already differ by 1.00e+00" in message
    assert "group" not in message


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n), st.sets(st.integers(0, n - 1), min_size=1)
        )
    ),
    st.data(),
)
@settings(deadline=None)
def test_bisection_ends_at_a_group_that_fails_by_itself(
    case: tuple[int, set[int]], data: st.DataObject
) -> None:
    count, culprits = case
    still = data.draw(st.sets(st.integers(0, count - 1))) - culprits
    shapes = {f"w{i}": (2,) for i in range(count)}
    table = {f"w{i}": (f"g{i}",) for i in range(count)}
    swaps = {
        f"g{i}": torch.tensor([1, 0]) for i in range(count) if i not in still
    }
    spec = PermutationSpec.from_table(table, shapes)
    tried = []

    def fails(part: Transform) -> bool:
        tried.append(part)
        return any(part.moved[f"g{i}"] > 0 for i in culprits)

    found = diagnose._failing_group(Permutation(spec, swaps), fails)
    assert int(found[1:]) in culprits
    # Halving the groups that move at all: never more steps than their binary length.
    assert len(tried) <= (len(swaps) - 1).bit_length()


def test_axes_of_partly_mapped_tensors_are_tried_first() -> None:
    shared = torch.zeros(3)
    state = {
        "free": torch.zeros(2, 3),
        "other": torch.zeros(4),
        "square": torch.zeros(3, 3),
        "full": torch.zeros(3),
        "first": shared,
        "alias": shared,
    }
    table = {"square": (None, "h"), "full": ("h",)}
    spec = PermutationSpec.from_table(table, state)
    assert list(diagnose._forgotten_axes(spec, "h")) == [
        ("square", 0),
        ("free", 1),
        ("first", 0),
    ]


values = st.lists(st.floats(-10, 10), min_size=2, max_size=20)


@given(values, st.integers(0, 2**31))
def test_moments_do_not_depend_on_the_order(
    entries: list[float], seed: int
) -> None:
    tensor = torch.tensor(entries, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    mixed = tensor[torch.randperm(len(tensor), generator=generator)]
    before, after = diagnose._moments(tensor), diagnose._moments(mixed)
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


def test_moments_tell_other_values_apart() -> None:
    tensor = torch.tensor([1.0, -2.0, 4.0])
    assert diagnose._moments(tensor).tolist() == pytest.approx(
        [-2.0, 4.0, 1.0, 7.0, 57 / 3]
    )
    # Same minimum, maximum, mean and square: only the cube differs.
    one = torch.tensor([-3.0, -1.0, -1.0, 2.0, 3.0])
    other = -one
    found = diagnose._moments(one) - diagnose._moments(other)
    assert found[4] != 0
    turned = torch.tensor([1.0 + 2.0j])
    assert diagnose._moments(turned)[:2].tolist() == [1.0, 2.0]
