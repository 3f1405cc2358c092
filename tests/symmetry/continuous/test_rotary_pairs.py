"""Pairs from origins: twice the same two units, and everything else is refused."""

from __future__ import annotations

import pytest
import torch

from lightning_rebasin.symmetry.continuous import rotary_pairs
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.rotary_pairs import (
    Meeting,
    find_pairs,
)
from lightning_rebasin.symmetry.continuous.turns import Origins, codes
from lightning_rebasin.symmetry.trace.tape import Node, Tape, Value

OP = "aten.scaled_dot_product_attention"


def meeting(queries: int, keys: int, units: int) -> Meeting:
    """An attention of these heads."""
    tape = Tape()
    for heads in (queries, keys):
        tape.new_value(Value((1, heads, 3, units), "operation"))
    return Meeting(tape, Node(OP, {}, [], "attention"), 0, 1)


def origins(low: list[list[int]], high: list[list[int]]) -> Origins:
    """Origins of heads × units."""
    first, last = (torch.tensor(t)[None, :, None] for t in (low, high))
    numbers = codes(int(last.max()) + 1)
    code = torch.where(
        first == last, numbers[first], numbers[first] + numbers[last]
    )
    return Origins(first, last, code, ())


def test_halves_of_two_heads():
    two = origins([[0, 1, 0, 1], [4, 5, 4, 5]], [[2, 3, 2, 3], [6, 7, 6, 7]])
    heads = find_pairs(meeting(2, 2, 4), two, two)
    assert heads is not None
    assert heads.keys.tolist() == [[0, 2, 1, 3], [4, 6, 5, 7]]
    assert heads.queries.tolist() == [[[0, 2, 1, 3]], [[4, 6, 5, 7]]]


def test_grouped_queries_stand_with_their_key_head():
    query = origins([[0, 0], [2, 2]], [[1, 1], [3, 3]])
    key = origins([[0, 0]], [[1, 1]])
    heads = find_pairs(meeting(2, 1, 2), query, key)
    assert heads is not None
    assert heads.keys.tolist() == [[0, 1]]
    assert heads.queries.tolist() == [[[0, 1], [2, 3]]]


def test_nothing_is_turned():
    plain = origins([[0, 1]], [[0, 1]])
    assert find_pairs(meeting(1, 1, 2), plain, plain) is None


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        # 0 with 1, 1 with 2, 2 with 0: a ring of three.
        ([[0, 1, 0]], [[1, 2, 2]], "odd width 3"),
        ([[0, 0, 0, 0]], [[1, 1, 2, 2]], "no pairs"),
    ],
)
def test_what_is_no_pair_is_refused(low, high, word):
    both = origins(low, high)
    with pytest.raises(Limit, match=word):
        find_pairs(meeting(1, 1, len(low[0])), both, both)


def test_three_units_in_one_coordinate_are_refused():
    both = origins([[0, 0]], [[2, 2]])
    more = Origins(both.low, both.high, both.code + codes(2)[1], ())
    with pytest.raises(Limit, match="more than two"):
        find_pairs(meeting(1, 1, 2), more, more)


def test_queries_that_are_not_turned_like_keys_are_refused():
    query = origins([[0, 1, 0, 1]], [[2, 3, 2, 3]])
    key = origins([[0, 0, 2, 2]], [[1, 1, 3, 3]])
    with pytest.raises(Limit, match="not turned alike"):
        find_pairs(meeting(1, 1, 4), query, key)


def test_only_attention_and_products_are_looked_at():
    node = Node("aten.relu", {}, [], "relu")
    assert rotary_pairs.queries_and_keys(node) is None
