"""A pass that begins with what was kept gives what a pass in full gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit import fitting
from lightning_rebasin.merging.refit.batches import Batches
from lightning_rebasin.merging.refit.beginnings import Beginning, StaleError
from lightning_rebasin.merging.refit.captures import Capture, look
from lightning_rebasin.merging.refit.fitting import Ends, Fitter
from lightning_rebasin.merging.refit.places import Place, Watcher, watch
from lightning_rebasin.merging.refit.plan import make_plan
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import known_tensors, record


class Net(nn.Module):
    """Three layers with something between the first two, and a stream around them."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.c = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.a(x)
        return self.c(stream + self.b(self.between(self, stream)))


def added(net: Net, x: Tensor) -> Tensor:
    x = x * 2
    x += 1
    return x.relu_()


def cast_weight(net: Net, x: Tensor) -> Tensor:
    # computed before the layer runs to which the weight belongs
    net.early = net.c.weight.float() * 1.0
    return torch.tanh(x)


def chosen(net: Net, x: Tensor) -> Tensor:
    # a number that decides is there without the product that it came from
    return torch.tanh(x) if (x * 3).argmax() >= 0 else x


BETWEEN: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "plain": lambda net, x: torch.tanh(x),
    "written into": added,
    "views": lambda net, x: torch.tanh(x.t()).t(),
    "weights alone": cast_weight,
    "chosen by a number": chosen,
}


def fitted(net: Net, monkeypatch: pytest.MonkeyPatch, kept: int) -> Tensor:
    """Output of the network after all layers were fitted."""
    monkeypatch.setattr(fitting, "_KEPT_BYTES", kept)
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    ends = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        state = net.state_dict()
        ends.append(
            {
                k: torch.randn(v.shape, generator=generator)
                for k, v in state.items()
            }
        )
    merged = Net(net.between).eval()
    plan = make_plan(merged, record(merged, Example((x[:4],))), 4)
    work = Fitter(
        merged,
        Ends(Net(net.between).eval(), ends, [0.5, 0.5]),
        Batches(list(x.split(16))),
        plain=False,
    )
    with torch.no_grad():
        assert len(list(work.fit_all(plan.fitted))) >= 3
        found: Tensor = merged(x)
    return found


@pytest.mark.parametrize("name", BETWEEN)
def test_fits_are_those_of_full_passes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net(BETWEEN[name])
    kept = fitted(net, monkeypatch, 1 << 20)
    full = fitted(net, monkeypatch, -1000)
    assert torch.equal(kept, full)


def passes(
    net: nn.Module,
    x: Tensor,
    beginning: Beginning,
    until: Place,
    last: Place,
) -> Tensor:
    """What one operation returns in a pass that keeps and uses a beginning."""
    seen: list[Tensor] = []
    watcher: Watcher = lambda given, result: seen.append(result.clone())
    assert watch(
        net,
        x,
        {last: [watcher]},
        set(),
        plain=False,
        beginning=beginning,
        until=until,
    )
    return seen[0]


def test_what_was_kept_is_not_computed_again() -> None:
    """With the first layer broken, the second one still sees what the first had returned."""
    net = Net(BETWEEN["plain"]).eval()
    x = torch.randn(5, 4)
    beginning = Beginning(1 << 20, known_tensors(net).values())
    second, third = Place("aten.addmm", 1), Place("aten.addmm", 2)
    expected = passes(net, x, beginning, second, third)
    assert beginning.steps
    nn.init.constant_(net.a.weight, float("nan"))
    found = passes(net, x, beginning, second, third)
    assert torch.equal(found, expected)
    nn.init.zeros_(net.b.weight)
    changed = passes(net, x, beginning, second, third)
    assert bool(changed.isfinite().all())
    assert not torch.equal(changed, expected)


def test_no_more_is_kept_than_the_limit_allows() -> None:
    net = Net(BETWEEN["plain"]).eval()
    x = torch.randn(5, 4)
    # the stream and the second layer's input, of 5·4 numbers each
    for limit, kept in ((160, True), (159, False)):
        beginning = Beginning(limit, known_tensors(net).values())
        place = Place("aten.addmm", 1)
        passes(net, x, beginning, place, Place("aten.addmm", 2))
        assert bool(beginning.steps) == kept


def test_another_path_is_noticed_and_gone_in_full() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(torch.sin(x) if self.other else torch.cos(x))

    net = Switch().eval()
    x = torch.randn(5, 4)
    beginning = Beginning(1 << 20, known_tensors(net).values())
    place = Place("aten.addmm", 1)
    passes(net, x, beginning, place, place)
    net.other = True
    with pytest.raises(StaleError):
        passes(net, x, beginning, place, place)
    assert not beginning.steps
    net.other = False
    passes(net, x, beginning, place, place)
    net.other = True
    plan = make_plan(net, record(net, Example((x,))), 5)
    capture = Capture(plan.fitted[1], 0, 5, 9, inputs=True)
    look(net, x, [capture], plain=False, beginning=beginning, until=place)
    assert capture.inputs is not None
    with torch.no_grad():
        torch.testing.assert_close(capture.inputs[:, 0], net.a(x).sin())
