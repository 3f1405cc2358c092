"""``landscape predict``: the numbers of predict_barrier, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.classifier import blobs
from helpers.commands import Files, one_line, run
from torch import Tensor, nn

from lightning_rebasin import predict_barrier
from lightning_rebasin.landscape import BarrierPrediction

Capture = pytest.CaptureFixture[str]
LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def ends() -> list[dict[str, Tensor]]:
    """Two linear classifiers, saved as p.pt and q.pt."""
    found = []
    for seed, name in enumerate("pq"):
        torch.manual_seed(seed)
        state = nn.Linear(6, 3).state_dict()
        torch.save(state, f"{name}.pt")
        found.append(state)
    return found


def test_the_numbers_are_those_of_the_function(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    a, b = ends()
    code = run(
        f"landscape predict p.pt q.pt {LINEAR} --data {files.loaders}.pair",
        "--pieces 2 --no-progress -o out",
    )
    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "predict.json",
        "predict.csv",
        "predict-layers.csv",
        "predict.png",
    }
    found = BarrierPrediction.from_json(tmp_path / "out/predict.json")
    batch = blobs(50, 1).tensors

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    expected = predict_barrier(
        nn.Linear(6, 3), a, b, [batch], pieces=2, loss=loss
    )
    for name, value in expected.barriers().items():
        assert found.barriers()[name] == pytest.approx(value, abs=1e-5)
    assert found.layers[0].curvatures == pytest.approx(
        expected.layers[0].curvatures, rel=1e-4
    )
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if "Taylor" in x)
    assert float(line.split()[1]) == pytest.approx(expected.taylor, abs=1e-4)


def test_a_matched_copy_has_no_barrier(files: Files, tmp_path: Path) -> None:
    plain = f"--module {files.loaders}.Plain --data {files.loaders}.pair"
    code = run(
        f"landscape predict a.ckpt b.ckpt {plain} --no-progress --match",
        "--no-layers --limit 1 -o out",
    )
    assert code == 0
    found = BarrierPrediction.from_json(tmp_path / "out/predict.json")
    assert found.metric == "val_loss"
    assert found.samples == 16
    assert found.layers == ()
    assert all(abs(v) < 1e-3 for v in found.barriers().values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("p.pt", "needs 2 checkpoints, got 1"),
        ("p.pt q.pt --pieces 3", "pieces=3"),
        ("p.pt q.pt --metric accuracy", "no gradient"),
        ("p.pt q.pt --layer x=1.weight", "'1.weight'"),
    ],
)
def test_what_cannot_work_is_one_line(
    files: Files,
    tmp_path: Path,
    arguments: str,
    message: str,
    capsys: Capture,
) -> None:
    ends()
    code = run(
        f"landscape predict {arguments} {LINEAR} --no-progress",
        f"--data {files.loaders}.pair -o out",
    )
    assert code == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()
