"""Pictures arrive in the real TensorBoard, Weights & Biases (offline) and MLflow (local)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from lightning_rebasin import LossBarrier
from lightning_rebasin.errors import ConfigurationError

#: Optimizer steps after which the barrier is measured in a training of two epochs.
STEPS = [4, 8]
PNG = b"\x89PNG"


def train(folder: Path, logger: Logger) -> None:
    """Two epochs with the callback; the loggers' own deprecated calls do not count."""
    seed_everything(1, verbose=False)
    barrier = LossBarrier("init", "none", points=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_in(folder, callbacks=[barrier], logger=logger)
        trainer.fit(Classifier(), train_loader(), val_loader())


def test_tensorboard(tmp_path: Path) -> None:
    event = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    logger = TensorBoardLogger(tmp_path, name="tb")
    train(tmp_path, logger)
    with warnings.catch_warnings():
        # TensorBoard's own use of deprecated NumPy and protobuf names.
        warnings.simplefilter("ignore")
        sizes = {"images": 0}
        accumulator = event.EventAccumulator(logger.log_dir, sizes)
        accumulator.Reload()
    assert [e.step for e in accumulator.Images("barrier/curve")] == STEPS
    assert "barrier/val_loss" in accumulator.Tags()["scalars"]


def test_wandb_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, name="run")
    train(tmp_path, logger)
    scalars: dict[str, Any] = dict(logger.experiment.summary)
    wandb.finish()
    assert "barrier/val_loss" in scalars
    pictures = sorted(tmp_path.rglob("media/images/barrier/*.png"))
    assert len(pictures) == len(STEPS)
    assert all(path.read_bytes().startswith(PNG) for path in pictures)


# MLflow uses what SQLAlchemy will remove.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_local(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    artifacts = tmp_path / "artifacts"
    logger = MLFlowLogger(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        artifact_location=artifacts.as_uri(),
    )
    train(tmp_path, logger)
    client, run = logger.experiment, logger.run_id
    history = client.get_metric_history(run, "barrier/val_loss")
    # Lightning logs under the number of the last step, which counts from 0.
    assert [entry.step + 1 for entry in history] == STEPS
    files = client.list_artifacts(run, "barrier/curve")
    names = [f"barrier/curve/step-{step:08d}.png" for step in STEPS]
    assert [file.path for file in files] == names
    pictures = list(artifacts.rglob("*.png"))
    assert len(pictures) == len(STEPS)
    assert all(path.read_bytes().startswith(PNG) for path in pictures)


def test_the_folder_of_mlflow_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    # Newer versions of MLflow refuse it themselves, less clearly, unless they are told not to.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    with pytest.raises(ConfigurationError, match="give the logger a database"):
        train(tmp_path, logger)


def test_loggers_without_pictures_get_none(tmp_path: Path) -> None:
    train(tmp_path, CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("*.png"))
