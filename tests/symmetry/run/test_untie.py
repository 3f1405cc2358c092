"""Untying a copy of a module, and the names that can be untied."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.run.untie import separable, separate, untie


class Tied(nn.Module):
    """An embedding whose table is the head; the embedding itself has a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.table = self.embed
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.config = SimpleNamespace(tie_word_embeddings=True)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.table(ids))
        return found


ALIASES = {"table.weight": "embed.weight", "head.weight": "embed.weight"}


def test_the_copy_has_a_tensor_for_each_use_and_the_same_function() -> None:
    net, ids = Tied(), torch.arange(5)
    free = untie(net, ["head.weight"])
    torch.testing.assert_close(free(ids), net(ids), rtol=0, atol=0)
    assert free.state_dict().keys() == net.state_dict().keys()
    before = net(ids)
    with torch.no_grad():
        free.head.weight.zero_()
    assert not free(ids).any()
    # The module that was given is as it was.
    assert net.head.weight is net.embed.weight
    torch.testing.assert_close(net(ids), before, rtol=0, atol=0)


def test_the_configuration_of_the_copy_says_so() -> None:
    net = Tied()
    free = untie(net, ["head.weight"])
    assert free.config.tie_word_embeddings is False
    assert net.config.tie_word_embeddings is True


def test_training_goes_on_as_it_was() -> None:
    net = nn.Sequential(
        nn.Dropout(), Tied(), torch.compile(nn.Linear(5, 5), backend="eager")
    )
    net[0].eval()
    net[1].requires_grad_(requires_grad=False)
    free = untie(net, ["1.head.weight"])
    assert [part.training for part in free] == [False, True, True]
    assert not free[1].head.weight.requires_grad


def test_two_names_of_one_module_stay_one_tensor() -> None:
    net = Tied()
    assert separable(net, ALIASES, ["embed.weight"]) == [("head.weight",)]
    assert separable(net, ALIASES, ["other.weight"]) == []
    # Seen from the head the other two names are one tensor.
    turned = {"embed.weight": "head.weight", "table.weight": "head.weight"}
    assert separable(net, turned, ["head.weight"]) == [tuple(turned)]
    # Whichever name comes first, the two uses are separated once.
    separate(net, ["embed.weight", "table.weight"])
    assert net.table.weight is net.embed.weight
    assert net.head.weight is not net.embed.weight


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("head.bias", "no such parameter"),
        ("nothing.weight", "no such parameter"),
        ("lonely.weight", "no other module"),
    ],
)
def test_what_is_not_tied_cannot_be_untied(name: str, why: str) -> None:
    net = Tied()
    net.lonely = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=f"{name}.*{why}"):
        untie(net, [name])
