"""What untying would allow is found by inference, and nothing else is offered."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin import (
    check_equivalence,
    infer_spec,
    match_weights,
    untie,
)
from lightning_rebasin.symmetry import Transform

WIDTH, WORDS = 8, 7
IDS = torch.tensor([[0, 3, 1, 5], [6, 2, 2, 4]])


class Model(nn.Module):
    """Embedding, one gated block behind a norm, a last norm and a head that may be tied."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] = nn.RMSNorm,
        *,
        tied: bool = True,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.first, self.last = norm(WIDTH), norm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.on_stream = activation or nn.Identity()
        if tied:
            self.head.weight = self.embed.weight
        for p in self.parameters():
            nn.init.normal_(p, 0.5 if p.dim() == 1 else 0.0, 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.on_stream(self.embed(ids))
        x = x + self.down(nn.functional.gelu(self.up(self.first(x))))
        found: Tensor = self.head(self.last(x))
        return found


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(nn.RMSNorm, "orthogonal"), (nn.LayerNorm, "orthogonal_mean")],
)
def test_untying_lets_the_stream_be_rotated(
    norm: Callable[[int], nn.Module], kind: str
) -> None:
    net = Model(norm).double()
    spec = infer_spec(net, IDS, kinds="all")
    assert spec.groups["embed"].kind == "permutation"
    assert "untying 'head.weight' would allow: rotations" in str(spec)
    assert spec.untied is not None
    assert spec.untied.groups["embed"].kind == kind
    canonical = spec.canonicalise(net.state_dict(), untie=True)
    assert canonical.names == ("head.weight",)
    free = untie(net, canonical.names)
    free.load_state_dict(canonical.state)
    torch.testing.assert_close(free(IDS), net(IDS), rtol=1e-9, atol=1e-9)
    # The spec is that of the untied module, and its elements hold there.
    assert canonical.spec == infer_spec(free, IDS, kinds="all")
    drawn = Transform.random(canonical.spec, torch.Generator().manual_seed(1))
    assert check_equivalence(free, drawn, IDS) < 1e-9


def test_a_planted_rotation_is_recovered_from_untied_weights() -> None:
    net = Model().double()
    spec = infer_spec(net, IDS, kinds="all")
    a = spec.canonicalise(net.state_dict(), untie=True)
    drawn = Transform.random(a.spec, torch.Generator().manual_seed(2))
    moved = drawn.apply(a.state)
    match = match_weights(a.spec, a.state, moved)
    back = match.transform.apply(moved)
    for name, tensor in a.state.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [Model(tied=False), Model(activation=nn.Tanh())],
    ids=["not tied", "tied, but a pointwise function limits it too"],
)
def test_where_nothing_is_gained_nothing_is_offered(net: nn.Module) -> None:
    spec = infer_spec(net.double(), IDS, kinds="all")
    assert spec.untied is None
    assert "untying" not in str(spec)
    assert spec.canonicalise(net.state_dict(), untie=True).names == ()


def test_permutations_alone_ask_for_no_untying() -> None:
    assert infer_spec(Model(), IDS).untied is None


def test_the_module_is_left_alone_and_warnings_come_once() -> None:
    net = Model()
    net.idle = nn.Linear(2, 2)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        infer_spec(net, IDS, kinds="all")
    assert len({str(w.message) for w in caught}) == len(caught) == 2
    assert net.head.weight is net.embed.weight
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


class TwoTables(Model):
    """A second table with the same weights is added to the first one's rows: three uses of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Embedding(WORDS, WIDTH)
        self.more.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.more(ids.flip(-1))
        x = x + self.down(nn.functional.gelu(self.up(self.first(x))))
        found: Tensor = self.head(self.last(x))
        return found


def test_no_more_is_untied_than_is_needed() -> None:
    """Both tables write the stream alike; only the head stands in the way."""
    spec = infer_spec(TwoTables().double(), IDS, kinds="all")
    assert spec.untied is not None
    assert dict(spec.aliases) == {
        "head.weight": "embed.weight",
        "more.weight": "embed.weight",
    }
    assert dict(spec.untied.aliases) == {"more.weight": "embed.weight"}
