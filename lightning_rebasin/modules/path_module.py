"""What CurveModule and StarModule share: learning sets of weights by the loss at points that they take part in.

One training step draws points (seeded by step and batch, so that every process and a resumed run draw the same), makes
their weights out of fixed ends and learned anchors, and calls the network's own ``training_step`` there.

Batch norm: in training the statistics are those of the batch.  A point that is evaluated gets statistics of its own,
averaged over the last training batches: those of the ends fit no other point.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_rebasin.callbacks.trainer import object_gatherer
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    DataError,
)
from lightning_rebasin.landscape.batches import (
    batch_size,
    clone_batch,
    on_device,
)
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.modules.endpoints import Weights
from lightning_rebasin.modules.fixed_ends import FixedEnds
from lightning_rebasin.modules.inner import LossFunction
from lightning_rebasin.modules.outer import OuterModule
from lightning_rebasin.modules.path_checkpoint import load_path, save_path
from lightning_rebasin.modules.path_options import PathOptions
from lightning_rebasin.modules.path_scores import statistics_at, weights_at
from lightning_rebasin.modules.path_validation import PathValidation
from lightning_rebasin.modules.tensors import TensorNames, check_built
from lightning_rebasin.modules.trainable import trainable_point
from lightning_rebasin.symmetry.actions.permutation import Permutation

#: Arguments of every PathModule that are kept as hyper-parameters.
DRAWING = ("t", "beta", "val_points", "batch_norm_batches", "seed")
_UNSEEN = "no training batch was seen yet: batch-norm statistics are interpolated, which fits no network"


class PathModule(OuterModule):
    """Learns ``count`` sets of weights beside fixed ends.

    Args:
        model: The network.
        ends: Checkpoints or state dicts that stay as they are.
        count: Number of learned sets of weights.
        options: How points are drawn and evaluated.
        loss: Instead of the network's ``training_step``.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes a scheduler from it.
    """

    #: The word in the names of what is logged.
    word: str

    def __init__(
        self,
        model: nn.Module,
        ends: Sequence[Weights],
        count: int,
        options: PathOptions,
        *,
        loss: LossFunction | None,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        check_built(model)
        super().__init__(model, loss, optimizer, lr_scheduler)
        self.options = options
        self.ends = FixedEnds(self.inner.model, ends)
        self.names = TensorNames(model, self.inner.model)
        first = self.ends.states[0]
        self.free = nn.ModuleList(
            nn.ParameterList(first[n].clone() for n in self.names.trained)
            for _ in range(count)
        )
        self._recent: deque[Any] = deque(
            maxlen=options.batch_norm_batches if self.names.statistics else 0
        )
        self._validation: PathValidation | None = None
        self._stepping = False
        #: Whether the learned weights are where training starts, or beyond.
        self._begun = False
        self.anchors: list[dict[str, Tensor]] = []

    @property
    def permutations(self) -> tuple[Permutation | None, ...]:
        """Under which permutation each end is seen; ``None`` is as it was given."""
        return tuple(self.ends.permutations)

    @abstractmethod
    def begin(self) -> None:
        """Match the ends if asked to, and write the learned weights where training starts."""

    @abstractmethod
    def rest(self, number: int) -> dict[str, Tensor]:
        """What a learned set of weights has that is not learned: frozen parameters and buffers."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> list[Point]:
        """The points of one training step."""

    @abstractmethod
    def penalty(
        self, points: list[Point], weights: list[dict[str, Tensor]]
    ) -> Tensor:
        """The regulariser of one training step, asked for if its weight is not 0."""

    @abstractmethod
    def validation_points(self) -> list[tuple[str, Point]]:
        """Points with labels; of several with one label the worst is logged."""

    def write(self, number: int, weights: Mapping[str, Tensor]) -> None:
        """Overwrite a set of learned weights."""
        parameters: Any = self.free[number]
        with torch.no_grad():
            for name, parameter in zip(
                self.names.trained, parameters, strict=True
            ):
                parameter.copy_(weights[name])

    def place(self) -> None:
        """Put the ends where the network is, and make the anchors of all paths."""
        self.check_precision()
        self.ends.place(self.inner.model)
        self.anchors = []
        for number, parameters in enumerate(self.free):
            anchor = self.rest(number)
            learned: Any = parameters
            anchor |= dict(zip(self.names.trained, learned, strict=True))
            for alias, name in self.names.aliases.items():
                anchor[alias] = anchor[name]
            # Points go through tensors in the order of their first anchor.
            order = self.ends.states[0]
            self.anchors.append({name: anchor[name] for name in order})

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Start, unless a checkpoint is about to say where."""
        self.inner.attach(self.trainer, self._log_inner)
        if not self._begun and self.trainer.ckpt_path is None:
            self.begin()
        self._begun = True

    def on_fit_start(self) -> None:
        """Put the ends where the trainer put the network."""
        self.place()

    def on_fit_end(self) -> None:
        """Say so if there was nothing to learn from.

        Raises:
            DataError: The training loader is empty.
        """
        wanted = self.trainer.limit_train_batches != 0
        if wanted and self.trainer.num_training_batches == 0:
            raise DataError(
                "the training loader gave no batch, so nothing was learned"
            )

    def on_validation_start(self) -> None:
        """The same, for ``trainer.validate`` alone."""
        if self.trainer.state.fn != "fit":
            # Tensors made under the trainer's inference mode could not be trained with later.
            with torch.inference_mode(mode=False):
                self.place()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean loss at the points of this step, and the regulariser."""
        self._recent.append(batch)
        draw = self.options.generator(self.global_step, batch_idx)
        points = self.draw(draw)
        weights = [
            trainable_point(point, self.names.trained, self.anchors)
            for point in points
        ]
        losses = []
        self._stepping = True
        for number, (point, learned) in enumerate(
            zip(points, weights, strict=True)
        ):
            # A step may change its batch in place.
            own = batch if number == len(points) - 1 else clone_batch(batch)
            given = weights_at(point, self.names.fixed) | learned
            losses.append(self.inner.loss_at(given, own, batch_idx))
        self._stepping = False
        loss = torch.stack(losses).mean() if len(losses) > 1 else losses[0]
        self.log(
            f"{self.word}_loss",
            loss.detach(),
            prog_bar=True,
            batch_size=batch_size(batch),
        )
        if self.options.pull:
            loss = loss + self.options.pull * self.penalty(points, weights)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Re-estimate the statistics of every point."""
        unseen = self.names.statistics and not self._recent
        if unseen and not self.trainer.sanity_checking:
            warnings.warn(_UNSEEN, BarrierWarning, stacklevel=2)
        labelled = self.validation_points()
        statistics = []
        for _, point in labelled:
            own = self._statistics(point, self._recent)
            # Of the counts of batches, integers, any will do.
            for name, tensor in own.items():
                if tensor.is_floating_point():
                    own[name] = self.mean_over_processes(tensor)
            statistics.append(own)
        self._validation = PathValidation(
            self.inner, labelled, statistics, self.names.callable
        )

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add one held-out batch to the loss and the metrics of every point."""
        assert self._validation is not None
        loaders = len(self.trainer.num_val_batches)
        place = Place(batch_idx, dataloader_idx, loaders)
        self._validation.update(batch, place)

    def on_validation_epoch_end(self) -> None:
        """Log what was found; it is the same on every process already."""
        assert self._validation is not None
        found = self._validation.finish(
            self.sum_over_processes, object_gatherer(self.trainer)
        )
        self._validation = None
        for name, value in found.items():
            in_bar = name == "_loss"
            self.log(f"val_{self.word}{name}", value, prog_bar=in_bar)

    def state_at(
        self, point: Point, batches: Iterable[Any] | None
    ) -> dict[str, Tensor]:
        """The weights of a point on the CPU, with statistics of their own.

        Args:
            point: Where.
            batches: Training batches to estimate the statistics on; ``None`` takes the last ones of the training, and
                none at all leaves the statistics interpolated.

        Raises:
            ConfigurationError: There are no batches.
        """
        if batches is None:
            batches = self._recent
            needed = self.names.statistics and not self.ends.holds(point)
            if needed and not batches:
                raise ConfigurationError(
                    "this network has batch norms, whose statistics are estimated anew at every point: pass "
                    "batches=loader (training data), or batches=() to leave them interpolated"
                )
        device = next(iter(self.ends.states[0].values())).device
        here = [on_device(batch, device) for batch in batches]
        state = point.state() | self._statistics(point, here)
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def prepare_report(self, batch_norm: Iterable[Any] | None) -> None:
        """Before a measurement of everything.

        Args:
            batch_norm: Training batches for the statistics of every point.

        Raises:
            ConfigurationError: There are batch norms, and no batches.
        """
        self.place()
        if self.names.statistics and batch_norm is None:
            raise ConfigurationError(
                "this network has batch norms, whose statistics are estimated anew at every point: pass "
                "batch_norm=loader (training data)"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the names of what is learned and the permutations of the ends."""
        save_path(checkpoint, self.word, self.names.trained, self.ends)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See the ends under their permutations again.

        Raises:
            ConfigurationError: The file was written by another module, or for another network.
        """
        load_path(checkpoint, self.word, self.names.trained, self.ends)
        self._begun = True
        self.place()

    def _statistics(
        self, point: Point, batches: Iterable[Any]
    ) -> dict[str, Tensor]:
        """Batch-norm statistics of a point; empty at the ends, which have their own."""
        if self.ends.holds(point):
            return {}
        return statistics_at(self.inner, point, self.names.callable, batches)

    def _log_inner(
        self, name: str, value: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Where the network's own log calls go: what evaluates other points is not logged."""
        if self._stepping:
            self.log(f"{self.word}/{name}", value, *args, **kwargs)
