"""Pictures of a measurement in the loggers that take pictures: TensorBoard, Weights & Biases, MLflow.

Every logger takes a picture in its own way, and Lightning has no common one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import (
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from lightning_rebasin.callbacks.record import Measurement
from lightning_rebasin.plotting import plot_barriers

#: Sends one figure under a tag and a step.
Send = Callable[[Any, str, Any, int], None]


def log_figures(
    trainer: Trainer, measurement: Measurement, tag: str, metric: str
) -> None:
    """Send a picture of the curves to every logger that takes one; others, CSV for instance, get none.

    Args:
        trainer: Its loggers are asked.
        measurement: What is drawn.
        tag: The name of the picture, ``barrier/curve``.
        metric: Which metric is drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    for logger in trainer.loggers:
        send = _sender(logger)
        if send is not None:
            title = f"step {measurement.step}"
            figure = plot_barriers(measurement.curves, metric, title=title)
            send(logger, tag, figure, measurement.step)


def _sender(logger: Logger) -> Send | None:
    """How this logger takes a figure."""
    for kind, send in _SENDERS.items():
        if isinstance(logger, kind):
            return send
    return None


def _to_tensorboard(logger: Any, tag: str, figure: Any, step: int) -> None:
    logger.experiment.add_figure(tag, figure, global_step=step)


def _to_wandb(logger: Any, tag: str, figure: Any, step: int) -> None:
    logger.log_image(tag, [figure], step=step)


def _to_mlflow(logger: Any, tag: str, figure: Any, step: int) -> None:
    """MLflow keeps figures as files, which are listed by name: the number is padded so that they are in order."""
    file = f"{tag}/step-{step:08d}.png"
    logger.experiment.log_figure(logger.run_id, figure, file)


_SENDERS: Mapping[type[Logger], Send] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    MLFlowLogger: _to_mlflow,
}
