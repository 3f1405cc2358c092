"""Operations that are linear in a vector, against the matrices that really may stand between two maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.proofs import largest_error
from helpers.streams import (
    IDS,
    WIDTH,
    Stream,
    kind_of,
    proved,
    randomised,
)
from torch import Tensor, nn

from lightning_rebasin import infer_spec

ROWS = torch.randn(
    7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)


class Between(nn.Module):
    """Two maps with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def found(between: Callable[[Tensor], Tensor]) -> tuple[str, str]:
    """Kind of the units between the maps, and why it is no larger; the function is proved to stay."""
    torch.manual_seed(0)
    net = Between(between).double()
    spec = infer_spec(net, ROWS, kinds="all")
    assert largest_error(net, spec, ROWS) < 1e-9
    return spec.groups["a"].kind, spec.limits.get("a", "")


LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda h: 3 * h / 7,
    "summed with itself": lambda h: h + 2 * h,
    "scaled by row": lambda h: h * torch.arange(7.0)[:, None],
    "mixed over rows": lambda h: torch.ones(7, 7, dtype=h.dtype) @ h,
    "softmax over rows of scores": lambda h: (h @ h.T).softmax(-1) @ h,
    "split and joined": lambda h: torch.cat(h.split(3), 0),
    "turned": lambda h: h.T.reshape(4, 7).T,
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_in_the_units(name):
    kind, limit = found(LINEAR[name])
    # What meets itself is its own contragredient: a rotation.
    if name == "softmax over rows of scores":
        assert kind == "orthogonal"
        assert "with itself" in limit
    else:
        assert (kind, limit) == ("linear", "")


OTHER: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "a number added": (lambda h: h + 1, "orthogonal_mean", "adds a number"),
    "a table added": (
        lambda h: h + torch.arange(7.0, dtype=h.dtype)[:, None],
        "orthogonal_mean",
        "adds a number",
    ),
    "tanh": (torch.tanh, "permutation", "aten.tanh"),
    "divided by itself": (
        lambda h: h / (1 + h.square()),
        "permutation",
        "aten",
    ),
    "cube": (lambda h: h**3, "permutation", "aten.pow"),
    "product": (
        lambda h: h * h.flip(0),
        "permutation",
        "multiplies its units one by one",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_less_than_linear(name):
    between, kind, word = OTHER[name]
    assert found(between)[0] == kind
    assert word in found(between)[1]


def test_convolutions_pass_and_join():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)).double()
    images = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    spec = infer_spec(net, images, kinds="all")
    assert spec.groups["0"].kind == "linear"
    assert largest_error(net, spec, images) < 1e-9


def test_a_grouped_convolution_is_no_linear_map_of_all_channels():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1)
    ).double()
    images = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    spec = infer_spec(net, images, kinds="all")
    assert all(g.kind != "linear" or g.size == 1 for g in spec.groups.values())
    assert largest_error(net, spec, images) < 1e-9


class Experts(Stream):
    """Two experts write into zeros at the tokens that they were asked for, and a plain number of rows is added."""

    def __init__(self, *, start: float = 0.0, dim: int = 0) -> None:
        super().__init__(nn.RMSNorm)
        self.start, self.dim = start, dim

    def block(self, h: Tensor) -> Tensor:
        flat = h.flatten(0, 1)
        out = torch.zeros_like(flat)
        if self.start:
            out += self.start
        for rows in ([0, 2, 5], [1, 2, 7]):
            asked = torch.tensor(rows)
            written = self.down(nn.functional.gelu(self.up(flat[asked])))
            if self.dim:
                # Along the units instead: some are added to others.
                columns = torch.arange(WIDTH).roll(1)
                out = out.index_add(1, columns, flat)
            out.index_add_(0, asked, written)
        return out.unflatten(0, IDS.shape)


def test_experts_write_into_zeros():
    spec = proved(randomised(Experts()), IDS)
    assert kind_of(spec, "down.weight", 0) == "orthogonal"


@pytest.mark.parametrize(
    "trap", [Experts(start=0.3), Experts(dim=1)], ids=["no zeros", "units"]
)
def test_experts_that_write_into_something_else(trap):
    spec = proved(randomised(trap), IDS)
    assert not kind_of(spec, "down.weight", 0).startswith("orthogonal")
