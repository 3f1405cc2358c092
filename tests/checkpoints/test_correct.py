from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import Planted, X, batch_norm_files, loaded
from helpers.models import mlp, randomise
from torch import Tensor, nn

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.align import Aligned
from lightning_rebasin.checkpoints.correct import (
    Evaluate,
    correct,
    measure_models,
)
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.merging import average, repair, reset_batch_norm
from lightning_rebasin.symmetry import Permutation, infer_spec


def test_batch_norm_statistics(tmp_path: Path) -> None:
    net, data, paths = batch_norm_files(tmp_path)
    plain = merge_checkpoints(
        paths,
        tmp_path / "none.pt",
        module=net,
        example=data[0],
        statistics="none",
    )
    assert any(
        "2 batch norms kept averaged" in sentence for sentence in plain.advice
    )
    report = merge_checkpoints(
        paths,
        tmp_path / "reset.pt",
        module=net,
        data=data,
        method="weight",
        statistics="reset",
    )
    assert report.statistics == "reset"
    aligned = [
        loaded(paths[0]),
        report.matches[0].permutation.apply(loaded(paths[1])),
    ]
    net.load_state_dict(average(aligned))
    expected = reset_batch_norm(net, data).state_dict()
    got = loaded(tmp_path / "reset.pt")
    assert all(torch.equal(got[n], t) for n, t in expected.items())
    report = merge_checkpoints(
        paths,
        tmp_path / "repair.pt",
        module=net,
        data=data,
        method="weight",
        statistics="repair",
    )
    expected = repair(net, aligned, data).module.state_dict()
    got = loaded(tmp_path / "repair.pt")
    assert all(torch.equal(got[n], t) for n, t in expected.items())
    assert report.variances is not None
    before, after = report.variances
    assert before < after


def test_evaluation_rows_and_advice(tmp_path: Path, planted: Planted) -> None:
    net, _, _ = planted
    target = {n: t.clone() for n, t in net.state_dict().items()}

    def evaluate(network: nn.Module) -> dict[str, float]:
        state = network.state_dict()
        gaps = [float((t - target[n]).abs().sum()) for n, t in state.items()]
        return {"val_loss": sum(gaps)}

    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        module=net,
        example=X,
        evaluate=evaluate,
    )
    rows = report.evaluation
    assert list(rows) == ["a.pt", "b.pt", "naive average", "merged"]
    assert (
        rows["a.pt"]["val_loss"]
        == 0
        < rows["naive average"]["val_loss"]
        < rows["b.pt"]["val_loss"]
    )
    assert any(
        "best single model is a.pt" in sentence for sentence in report.advice
    )


State = dict[str, Tensor]
HALVES = (0.5, 0.5)
PLAIN = Aligned((None, None))


def linear(weight: float) -> State:
    return {"weight": torch.tensor([[weight]]), "bias": torch.zeros(1)}


def file(path: str, weight: float) -> Checkpoint:
    state = linear(weight)
    names = {name: name for name in state}
    return Checkpoint(state, {}, "torch", Path(path), None, names)


def square(network: nn.Module) -> dict[str, float]:
    """(w − 1)², of a network that is one number, through its outputs."""
    with torch.no_grad():
        return {"loss": float((network(torch.ones(1, 1)) - 1).square())}


def measured(
    evaluate: Evaluate | None,
    network: nn.Module | None,
    files: list[Checkpoint],
    shares: Sequence[float],
    merged: State,
) -> dict[str, dict[str, float]]:
    """Models that are mixed as they are in their files."""
    states = [file.state_dict for file in files]
    return measure_models(
        evaluate, network, files, states=states, shares=shares, merged=merged
    )


def test_where_nothing_can_run_nothing_is_corrected() -> None:
    norm, data = nn.BatchNorm1d(1), [torch.ones(4, 1)]
    # A network without batch norms has no statistics that could be reset.
    plain = nn.Linear(1, 1)
    cases: list[tuple[nn.Module | None, str, list[Tensor] | None]] = [
        (None, "reset", data),
        (norm, "reset", None),
        (norm, "none", data),
        (plain, "reset", data),
    ]
    for network, statistics, batches in cases:
        merged = linear(2.0) if network is plain else norm.state_dict()
        found, done, variances = correct(
            network,
            merged,
            [merged, merged],
            PLAIN,
            HALVES,
            statistics=statistics,
            data=batches,
        )
        assert found is merged
        assert (done, variances) == ("none", None)


def test_corrected_weights_have_the_precision_of_the_files() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2))
    merged = {name: t.half() for name, t in net.state_dict().items()}
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    found, done, _ = correct(
        net, merged, [merged], PLAIN, (1.0,), statistics="reset", data=[x]
    )
    assert done == "reset"
    assert list(found) == list(merged)
    assert found["0.running_mean"].tolist() == [2, 4]
    assert {t.dtype for t in found.values()} == {torch.half}


def test_models_are_repaired_where_they_were_aligned() -> None:
    """The second model is the first in another order: once aligned there is nothing to repair."""
    net = mlp(6, 12, 3)
    randomise(net)
    state = {name: t.clone() for name, t in net.state_dict().items()}
    spec = infer_spec(net, X)
    hidden = Permutation.random(spec, torch.Generator().manual_seed(1))
    found, done, variances = correct(
        net,
        dict(state),
        [state, hidden.apply(state)],
        Aligned((None, hidden.inverse())),
        HALVES,
        statistics="repair",
        data=[torch.randn(64, 6, generator=torch.Generator().manual_seed(2))],
    )
    assert done == "repair"
    assert variances is not None
    assert variances[0] == pytest.approx(1)
    assert variances[1] == pytest.approx(1)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state[name], atol=1e-5, rtol=1e-4)


def test_every_model_the_average_and_the_merged_one_are_measured() -> None:
    """Weights 1 and 4 with shares 2 : 1: the naive average is 2, the merged network 3."""
    files = [file("a.pt", 1.0), file("b.pt", 4.0)]
    net = nn.Linear(1, 1)
    rows = measured(square, net, files, (2 / 3, 1 / 3), linear(3.0))
    expected = {"a.pt": 0, "b.pt": 9, "naive average": 1, "merged": 4}
    for name, loss in expected.items():
        assert rows[name]["loss"] == pytest.approx(loss, abs=1e-5)


def test_one_model_alone_has_no_average() -> None:
    rows = measured(
        square, nn.Linear(1, 1), [file("a.pt", 1.0)], (1.0,), linear(3.0)
    )
    assert list(rows) == ["a.pt", "merged"]


def test_files_of_one_name_have_rows_of_their_own() -> None:
    files = [file("x/a.pt", 1.0), file("y/a.pt", 4.0)]
    rows = measured(square, nn.Linear(1, 1), files, HALVES, linear(3))
    assert rows["x/a.pt"]["loss"] == 0
    assert rows["y/a.pt"]["loss"] == 9


def test_models_are_measured_as_they_would_be_used() -> None:
    modes = []

    def watch(network: nn.Module) -> dict[str, Any]:
        modes.append(network.training)
        return {"loss": torch.tensor(0.25)}

    net = nn.Linear(1, 1).train()
    rows = measured(watch, net, [file("a.pt", 1)], (1,), linear(1))
    assert not any(modes)
    kinds = {type(row["loss"]) for row in rows.values()}
    assert kinds == {float}


def test_without_a_network_or_a_metric_nothing_is_measured() -> None:
    files = [file("a.pt", 1.0)]
    assert measured(None, nn.Linear(1, 1), files, (1,), {}) == {}
    assert measured(square, None, files, (1,), {}) == {}


def test_what_is_mixed_may_differ_from_what_is_in_a_file() -> None:
    """Files of weight 1 are mixed as 2 and 4: only the average of them knows."""
    files = [file("a.pt", 1.0), file("b.pt", 1.0)]
    rows = measure_models(
        square,
        nn.Linear(1, 1),
        files,
        states=[linear(2.0), linear(4.0)],
        shares=HALVES,
        merged=linear(1.0),
    )
    assert rows["a.pt"]["loss"] == rows["b.pt"]["loss"] == 0
    assert rows["naive average"]["loss"] == pytest.approx(4)


def test_the_ensemble_is_the_mean_of_the_outputs() -> None:
    """Two networks |w x| with w = 1 and −5: together 3, where the average of the weights gives |−2| = 2."""

    class Absolute(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).abs()

    files = [file("a.pt", 1.0), file("b.pt", -5.0)]
    net = Absolute(1, 1)
    rows = measured(square, net, files, HALVES, linear(1.0))
    assert rows["naive average"]["loss"] == pytest.approx((2 - 1) ** 2)
    assert rows["ensemble"]["loss"] == pytest.approx((3 - 1) ** 2)
    # The network is its own again.
    assert "forward" not in vars(net)


def test_metrics_that_call_no_network_have_no_ensemble() -> None:
    def weights_only(network: nn.Module) -> dict[str, float]:
        return {"loss": float(network.state_dict()["weight"].sum())}

    files = [file("a.pt", 1.0), file("b.pt", 4.0)]
    net = nn.Linear(1, 1)
    rows = measured(weights_only, net, files, HALVES, linear(2.0))
    assert list(rows) == ["a.pt", "b.pt", "naive average", "merged"]
