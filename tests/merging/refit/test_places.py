"""Places of a pass, the pass that stops early, and where moved elements came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.places import (
    Place,
    Trail,
    bound,
    number,
    operation_name,
    operation_names,
    replay_move,
    watch,
)
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record
from lightning_rebasin.symmetry.trace.tape import Node, Ref

aten = torch.ops.aten


class Stage(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), Stage()
    ).eval()


def test_places_count_runs_of_one_operation_and_skip_moves() -> None:
    tape = record(network(), Example((torch.zeros(2, 3),)))
    places = list(number(tape).values())
    assert places == [
        Place("aten.addmm", 0),
        Place("aten.relu", 0),
        Place("aten.addmm", 1),
    ]


def test_watch_shows_the_wanted_operation_and_ends_the_pass() -> None:
    net = network()
    x = torch.randn(5, 3)
    seen: list[tuple[Mapping[str, Any], Tensor]] = []

    def see(given: Mapping[str, Any], result: Tensor) -> None:
        seen.append((given, result))

    place = Place("aten.addmm", 1)
    assert watch(net, x, {place: [see]}, set(), plain=False)
    ((given, result),) = seen
    torch.testing.assert_close(given["mat1"], net[1](net[0](x)))
    torch.testing.assert_close(result, net[:3](x))
    # the pass ended behind the second product
    assert net[3].runs == 0


def test_watch_says_when_a_place_never_came() -> None:
    net = network()

    def never(given: Mapping[str, Any], result: Tensor) -> None:
        raise AssertionError

    place = Place("aten.addmm", 2)
    x = torch.zeros(2, 3)
    assert not watch(net, x, {place: [never]}, set(), plain=False)
    assert net[3].runs == 1


def test_watch_leaves_errors_of_the_network_alone() -> None:
    wanted = {Place("aten.relu", 7): [lambda given, result: None]}
    with pytest.raises(RuntimeError, match="shapes"):
        watch(network(), torch.zeros(2, 4), wanted, set(), plain=True)


def test_operation_names_are_those_of_the_tape() -> None:
    net, x = network(), torch.zeros(2, 3)
    names = operation_names(net, x, plain=True)
    tape = record(net, Example((x,)))
    # made while the batch is put into the precision of the network
    names.remove("aten.empty")
    assert names == [place.op for place in number(tape).values()]


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (aten.add_.Tensor, "aten.add"),
        (aten.relu.default, "aten.relu"),
        (aten.native_batch_norm.default, "aten.native_batch_norm"),
    ],
)
def test_in_place_operations_go_by_the_functional_name(
    func: Any, name: str
) -> None:
    assert operation_name(func) == name


def test_bound_fills_defaults_and_takes_names_in_any_form() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    given = bound(aten.add.Tensor, (x,), {"other": y})
    assert given["self"] is x
    assert given["other"] is y
    assert given["alpha"] == 1


def moved_back(
    start: Tensor, moves: list[tuple[Any, tuple[Any, ...]]]
) -> tuple[Tensor, Tensor]:
    """A value after some moves, and what the trail makes of it."""
    trail = Trail(start)
    value = start
    for func, rest in moves:
        after = func(value, *rest)
        trail.move(func, (value, *rest), {}, after)
        value = after
    return value, trail.back(value)


MOVES = {
    "none": [],
    "transposed": [(aten.transpose.int, (0, 2))],
    "viewed, permuted": [
        (aten.view.default, ((2, 12),)),
        (aten.view.default, ((2, 2, 6),)),
        (aten.permute.default, ((2, 0, 1),)),
        (aten.unsqueeze.default, (0,)),
    ],
}


@pytest.mark.parametrize("name", MOVES)
def test_a_trail_puts_elements_back(name: str) -> None:
    start = torch.arange(24.0).reshape(2, 3, 4)
    value, back = moved_back(start, MOVES[name])
    assert name == "none" or value.shape != start.shape
    assert torch.equal(back, start)


def test_a_trail_follows_a_view_that_only_the_real_strides_allow() -> None:
    """A product may return a transposed tensor, of which a view is allowed that a fresh tensor refuses."""
    start = torch.arange(6.0).reshape(3, 2).t()
    moves = [(aten.t.default, ()), (aten.view.default, ((6,),))]
    value, back = moved_back(start, moves)
    assert value.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(back, start)


def test_a_trail_takes_no_part_of_a_value_for_the_whole() -> None:
    start = torch.arange(6.0).reshape(2, 3)
    trail = Trail(start)
    half = start[0]
    trail.move(aten.select.int, (start, 0, 0), {}, half)
    # still at the start: later moves of the half are not followed
    trail.move(aten.view.default, (half, (3, 1)), {}, half.view(3, 1))
    assert torch.equal(trail.back(2 * start), 2 * start)


def test_a_trail_ignores_moves_of_other_values() -> None:
    start, other = torch.arange(4.0).reshape(2, 2), torch.zeros(2, 2)
    trail = Trail(start)
    trail.move(aten.t.default, (other,), {}, other.t())
    assert torch.equal(trail.back(start), start)


def test_a_trail_goes_on_behind_elementwise_operations() -> None:
    start = torch.arange(6.0).reshape(2, 3)
    trail = Trail(start)
    turned = start.t()
    trail.move(aten.t.default, (start,), {}, turned)
    doubled = 2 * turned
    trail.go_on(doubled)
    flat = doubled.reshape(-1)
    trail.move(aten.view.default, (doubled, (6,)), {}, flat)
    assert torch.equal(trail.back(flat), 2 * start)


@pytest.mark.parametrize(
    ("op", "rest", "output", "expected"),
    [
        ("t", {}, 0, [[0, 3], [1, 4], [2, 5]]),
        ("view", {"size": [3, 2]}, 0, [[0, 1], [2, 3], [4, 5]]),
        ("split", {"split_size": 1, "dim": 0}, 1, [[3, 4, 5]]),
        ("select", {"dim": 1, "index": 2}, 0, [2, 5]),
    ],
)
def test_a_recorded_move_is_repeated(
    op: str, rest: dict[str, Any], output: int, expected: list[Any]
) -> None:
    node = Node(f"aten.{op}", {"self": Ref(0), **rest}, [1, 2], "")
    moved = replay_move(node, torch.arange(6).reshape(2, 3), output)
    assert moved.tolist() == expected


def test_a_recorded_view_needs_no_strides() -> None:
    node = Node("aten.view", {"self": Ref(0), "size": [6]}, [1], "")
    moved = replay_move(node, torch.arange(6).reshape(2, 3).t())
    assert moved.tolist() == [0, 3, 1, 4, 2, 5]
