import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import Planted, X, loaded, same
from helpers.reports import MOVED, SPEC, match
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.align import (
    Aligned,
    Many,
    align,
    example_input,
    load,
    match_by_activations,
    prove,
)
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.merging import average
from lightning_rebasin.symmetry import Example, Permutation
from lightning_rebasin.symmetry.run.hollow import release


def test_tied_weights_stay_tied(tmp_path: Path, planted: Planted) -> None:
    shared = [torch.randn(4, 4) for _ in "ab"]
    for name, tensor in zip("ab", shared, strict=True):
        torch.save(
            {"e": tensor, "h": tensor, "x": torch.ones(2)},
            tmp_path / f"{name}.pt",
        )
    merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        method="average",
    )
    got = loaded(tmp_path / "out.pt")
    assert got["e"].data_ptr() == got["h"].data_ptr()
    torch.testing.assert_close(got["e"], (shared[0] + shared[1]) / 2)


@pytest.mark.parametrize("many", ["merge_many", "cycle_consistent"])
def test_many_models_in_one_frame(
    tmp_path: Path, planted: Planted, many: Many
) -> None:
    net, spec, _ = planted
    orders = [
        Permutation.random(spec, torch.Generator().manual_seed(i))
        for i in range(4)
    ]
    noise = torch.Generator().manual_seed(7)
    for i, order in enumerate(orders):
        near = {
            n: t + 0.05 * torch.randn(t.shape, generator=noise)
            for n, t in net.state_dict().items()
        }
        torch.save(order.apply(near), tmp_path / f"{i}.pt")
    paths = [tmp_path / f"{i}.pt" for i in range(4)]
    report = merge_checkpoints(
        paths,
        tmp_path / "out.pt",
        module=net,
        example=X,
        many=many,
        shares=[4, 3, 2, 1],
        statistics="none",
    )
    for order, found in zip(orders[1:], report.permutations[1:], strict=True):
        assert found == orders[0].compose(order.inverse())
    assert max(report.errors) < 1e-12
    assert len(report.errors) == 3
    aligned = [
        orders[0].compose(o.inverse()).apply(loaded(p))
        for o, p in zip(orders, paths, strict=True)
    ]
    expected = average(aligned, [4, 3, 2, 1])
    # A sum of ten parts over ten often lies halfway between two numbers: which one it becomes is chance.
    torch.testing.assert_close(
        dict(loaded(tmp_path / "out.pt")), expected, atol=1e-7, rtol=1e-6
    )
    json.dumps(report.to_dict())


def test_activation_matching_from_files(
    tmp_path: Path, planted: Planted
) -> None:
    net, _, hidden = planted
    data = [torch.randn(100, 6, generator=torch.Generator().manual_seed(2))]
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", module=net, data=data, method="activation"
    )
    assert report.permutations[1] == hidden.inverse()


def test_a_constant_example_array_does_not_blind_the_gate(
    tmp_path: Path, planted: Planted
) -> None:
    net, _, _ = planted
    net.example_input_array = torch.zeros(2, 6)
    with torch.no_grad():
        net.get_parameter("0.bias").zero_()
        net.get_parameter("2.bias").zero_()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    torch.save(net.state_dict(), tmp_path / "b.pt")
    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "o.pt", module=net
    )
    assert report.errors == (0.0,)


class Stepwise(LightningModule):
    """No forward: the network runs in validation_step only, on batches that are dicts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.log(
            "loss",
            (self.net(batch["x"]) - batch["y"][:, None]).square().mean(),
        )


def test_a_lightning_module_is_proved_through_its_validation_step(
    tmp_path: Path, planted: Planted
) -> None:
    net, _, hidden = planted
    module = Stepwise(net)
    for name in ("a.pt", "b.pt"):
        state = torch.load(tmp_path / name, weights_only=True)
        torch.save(
            {f"net.{key}": tensor for key, tensor in state.items()},
            tmp_path / name,
        )
    g = torch.Generator().manual_seed(4)
    data = [
        {
            "x": torch.randn(20, 6, generator=g),
            "y": torch.randn(20, generator=g),
        }
    ]
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", module=module, data=data
    )
    found = report.permutations[1]
    assert found is not None
    expected = hidden.inverse().orders["0"]
    assert found.orders["net.0"].tolist() == expected.tolist()
    assert report.errors[0] < 1e-12
    step = Example((data[0],), method="validation_step")
    assert (
        merge_checkpoints(
            paths, tmp_path / "2.pt", module=module, example=step
        ).errors[0]
        < 1e-12
    )


class Wide(nn.Module):
    """Float64, with an example array of one number, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 2).double()
        self.example_input_array: Any = torch.zeros(2, 6)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def test_what_was_given_comes_before_data_and_before_the_modules_own() -> None:
    module = Wide()
    data = [[torch.ones(20, 6), torch.zeros(20)]]
    (given,) = example_input(module, X, data)
    assert torch.equal(given, X.double()) and given.dtype == torch.float64
    several = example_input(module, (X, 3), data)
    assert torch.equal(several[0], X.double()) and several[1] == 3
    (sample,) = example_input(module, None, data)
    # A few samples are enough, in the precision of the module.
    assert torch.equal(sample.args[0], torch.ones(8, 6).double())


def test_a_constant_array_is_replaced_and_any_other_is_left_to_the_module() -> (
    None
):
    module = Wide()
    (own,) = example_input(module, None, None)
    assert own.shape == (2, 6) and own.dtype == torch.float64
    assert len(own.unique()) == 12
    assert torch.equal(own, example_input(module, None, None)[0])
    module.example_input_array = X
    assert example_input(module, None, None) == ()
    module.example_input_array = torch.zeros(2, 6, dtype=torch.long)
    assert example_input(module, None, None) == ()


def test_no_example_anywhere_is_said_with_what_could_help() -> None:
    nowhere: tuple[list[Tensor] | None, ...] = (None, [])
    for data in nowhere:
        with pytest.raises(
            ConfigurationError, match=r"Linear.*--input-shape.*--data"
        ):
            example_input(nn.Linear(2, 2), None, data)


def test_activation_matching_needs_a_network_and_data() -> None:
    net, x = nn.Linear(2, 2), [torch.ones(1, 2)]
    cases: list[tuple[Any, Any]] = [(None, x), (net, None)]
    for network, data in cases:
        with pytest.raises(ConfigurationError, match="--module and --data"):
            match_by_activations(SPEC, network, {}, {}, data)


def test_methods_that_match_nothing_leave_every_model_alone() -> None:
    states = [{"w": torch.ones(1)}] * 3
    found = align(
        SPEC,
        states,
        "average",
        "merge_many",
        (1, 1, 1),
        network=None,
        data=None,
        seed=0,
        progress=False,
    )
    assert found.permutations == (None, None, None)
    assert found.objectives == []


def test_every_objective_is_told_before_and_after() -> None:
    one_by_one = Aligned((None, MOVED, MOVED), (match(9.0), match(8.0)))
    assert one_by_one.objectives == [(0.0, 10.0), (0.0, 10.0)]


def test_only_what_moved_is_proved(planted: Planted) -> None:
    net, _, hidden = planted
    state = {name: t.clone() for name, t in net.state_dict().items()}
    states, orders = [state, hidden.apply(state)], [None, hidden.inverse()]
    assert prove(None, states, orders, None, X) == ()
    errors = prove(net, states, orders, None, X)
    assert len(errors) == 1 and errors[0] < 1e-12
    assert same(net.state_dict(), states[1])
    assert prove(net, states, [None, None], None, X) == ()


def test_released_weights_take_no_room_and_come_back() -> None:
    net = nn.Sequential(nn.LSTM(3, 5, 2), nn.Linear(5, 1))
    state = {name: t.clone() for name, t in net.state_dict().items()}
    release(net)
    for parameter in net.parameters():
        assert parameter.untyped_storage().nbytes() <= 4
    load(net, state)
    assert same(net.state_dict(), state)
    net.zero_grad()
    out, _ = net[0](torch.ones(4, 3))
    # The weights may be written to again, one by one.
    out.sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    after = {name: t + 1 for name, t in state.items()}
    assert same(net.state_dict(), after)
