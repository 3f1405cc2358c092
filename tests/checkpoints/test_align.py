import json
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_files import Planted, X, loaded
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.align import Many
from lightning_rebasin.merging import average
from lightning_rebasin.symmetry import Example, Permutation


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
    assert all(
        torch.equal(t, expected[n])
        for n, t in loaded(tmp_path / "out.pt").items()
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
