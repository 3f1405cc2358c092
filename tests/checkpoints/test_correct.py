from pathlib import Path

import torch
from helpers.checkpoint_files import Planted, X, batch_norm_files, loaded
from torch import nn

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.merging import average, repair, reset_batch_norm


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
