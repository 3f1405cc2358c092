"""Batches in two parts, gone through again and again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.errors import DataError
from lightning_rebasin.merging.refit.batches import Batches, batch_size


def lists(batches: Batches) -> list[list[float]]:
    return [batch.tolist() for batch in batches]


def test_the_last_eighth_of_each_batch_is_held_out() -> None:
    batches = Batches(torch.arange(34.0).split(17))
    fitted, held_out = batches.part("fit"), batches.part("held out")
    # ⌈17/8⌉ = 3
    assert lists(fitted) == [list(range(14)), list(range(17, 31))]
    assert lists(held_out) == [[14, 15, 16], [31, 32, 33]]
    assert (batches.samples, fitted.samples, held_out.samples) == (34, 28, 6)


@pytest.mark.parametrize("size", [2, 3, 8, 9, 64])
def test_no_sample_is_lost_and_none_is_in_both_parts(size: int) -> None:
    batches = Batches([torch.arange(float(size))])
    parts = lists(batches.part("fit")) + lists(batches.part("held out"))
    assert sorted(chain.from_iterable(parts)) == list(range(size))


def test_of_batches_that_cannot_be_split_every_eighth_is_held_out() -> None:
    batches = Batches(torch.arange(20.0).split(1))
    held_out = lists(batches.part("held out"))
    assert held_out == [[7], [15]]
    assert len(lists(batches.part("fit"))) == 18


def test_tensors_of_different_lengths_stay_together() -> None:
    batch = (torch.zeros(8, 2), torch.zeros(3))
    batches = Batches([batch])
    (found,) = list(batches.part("fit"))
    assert found[0].shape == (8, 2)
    assert not list(batches.part("held out"))


def test_dicts_are_split_and_numbers_in_them_kept() -> None:
    batch = {"x": torch.arange(16), "scale": torch.tensor(2.0), "name": "n"}
    (found,) = list(Batches([batch]).part("held out"))
    assert found["x"].tolist() == [14, 15]
    assert found["scale"] == 2
    assert found["name"] == "n"


def test_an_iterator_is_kept_and_a_loader_is_asked_again() -> None:
    once = Batches(iter(torch.arange(6.0).split(3)))
    assert lists(once) == lists(once) == [[0, 1, 2], [3, 4, 5]]
    data = TensorDataset(torch.arange(6.0))
    loader = Batches(DataLoader(data, batch_size=3))
    first = [batch[0].tolist() for batch in loader]
    assert first == [batch[0].tolist() for batch in loader]


class Changing:
    """Gives other batches each time."""

    def __init__(self, passes: list[list[Tensor]]) -> None:
        self._passes = iter(passes)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(next(self._passes))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ([[1.0, 2.0], [4.0, 3.0]], "batch 1 of a second pass"),
        ([[1.0, 2.0]], "1 batches instead of 2"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "batch 2 of a second pass"),
    ],
)
def test_a_second_pass_that_differs_is_noticed(
    second: list[list[float]], words: str
) -> None:
    first = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    again = [torch.tensor(batch) for batch in second]
    # asked once whether it is an iterator, then for the first pass
    batches = Batches(Changing([first, first, again]))
    with pytest.raises(DataError, match=words):
        list(batches)


def test_a_batch_that_is_not_a_number_equals_itself() -> None:
    nan, inf = float("nan"), float("inf")
    batches = Batches([torch.tensor([nan, 1.0]), torch.tensor([inf, -inf])])
    assert len(list(batches)) == 2


def test_no_batch_is_an_error() -> None:
    with pytest.raises(DataError, match="no batches"):
        Batches([])


def test_the_first_samples_come_in_whole_batches() -> None:
    batches = Batches(torch.arange(12.0).split(4))
    assert [len(b) for b in batches.first(5)] == [4, 4]
    assert [len(b) for b in batches.first(4)] == [4]
    assert [len(b) for b in batches.first(99)] == [4, 4, 4]


def test_an_example_is_a_few_samples_of_the_first_batch() -> None:
    assert Batches([torch.arange(9.0)]).example().tolist() == [0, 1, 2, 3]
    odd = (torch.zeros(9), torch.zeros(2))
    assert Batches([odd]).example()[0].shape == (9,)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.tensor(1.0), torch.zeros(5)), 5),
        ({"a": {"b": torch.zeros(4)}}, 4),
        ("text", 0),
    ],
)
def test_the_first_tensor_with_a_length_gives_the_size(
    batch: Any, size: int
) -> None:
    assert batch_size(batch) == size
