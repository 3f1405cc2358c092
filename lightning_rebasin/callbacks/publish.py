"""Where the measurements of a LossBarrier go: the trainer's logs, a CSV file with its page, and pictures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_rebasin.callbacks.figures import log_figures
from lightning_rebasin.callbacks.live_page import write_live_page
from lightning_rebasin.callbacks.record import Measurement, append_csv
from lightning_rebasin.callbacks.trainer import log_value
from lightning_rebasin.errors import BarrierWarning, MissingExtraError
from lightning_rebasin.landscape.barrier import Convention


class Publisher:
    """Publishes measurements, and remembers the last one for the validations without any.

    Args:
        prefix: First part of the logged names and of the CSV's name.
        convention: What is subtracted from the worst point.
        figure: Send a figure of the curves to TensorBoard, W&B and MLflow.
    """

    def __init__(
        self, prefix: str, convention: Convention, *, figure: bool
    ) -> None:
        self.prefix = prefix
        self._convention: Convention = convention
        self._figure = figure
        self._folder: Path | None = None
        #: Optimizer step of the last measurement; −1 before the first.
        self.last_step = -1
        self._last_scalars: dict[str, float] = {}

    def find_folder(self, trainer: Trainer) -> Path:
        """The log folder; collective, so every process asks for it, whether it writes or not."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        return self._folder

    @property
    def file_stem(self) -> str:
        """First part of the names of all files."""
        return self.prefix.replace("/", "-")

    def publish(
        self,
        trainer: Trainer,
        module: LightningModule,
        measurement: Measurement,
    ) -> None:
        """Log a measurement and write it down."""
        self.last_step = measurement.step
        scalars = measurement.scalars(self.prefix, self._convention)
        self._last_scalars = dict(scalars)
        main = f"{self.prefix}/{measurement.main_metric}"
        shown = {main, f"{main}/matched"}
        for name, value in scalars.items():
            log_value(trainer, module, name, value, prog_bar=name in shown)
        if trainer.is_global_zero:
            self._write(trainer, measurement)

    def _write(self, trainer: Trainer, measurement: Measurement) -> None:
        """Add the curves to the CSV file and its page, and as a picture to the loggers that take one."""
        assert self._folder is not None
        stage = "" if trainer.state.fn == "fit" else "-validate"
        path = self._folder / f"{self.file_stem}{stage}.csv"
        main = measurement.main_metric
        try:
            append_csv(path, measurement)
            better: dict[str, bool] = {}
            for curve in measurement.curves.values():
                better |= curve.higher_is_better
            if main:
                write_live_page(path, self.prefix, better)
            if self._figure and main:
                tag = f"{self.prefix}/curve"
                log_figures(trainer, measurement, tag, main)
        except (OSError, MissingExtraError) as error:
            # Not worth losing a training over.
            warnings.warn(
                f"LossBarrier: {error}", BarrierWarning, stacklevel=2
            )

    def repeat(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep monitors working in validations without a measurement, in particular the first ones after a resume."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for name, value in self._last_scalars.items():
            if name not in trainer.callback_metrics:
                log_value(trainer, module, name, value, logger=False)

    def state_dict(self) -> dict[str, Any]:
        """The last measurement's step and numbers."""
        return {
            "last_step": self.last_step,
            "scalars": dict(self._last_scalars),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.last_step = int(state["last_step"])
        self._last_scalars = dict(state["scalars"])
