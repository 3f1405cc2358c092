"""``StarModule``: learning a centre that straight lines of low loss join to every one of several networks.

Two trained networks are rarely joined by a line of low loss, but there often is a third one that is joined to both, and
to many more: the solutions are star-shaped.  The centre θ minimises

    (1/r) Σ_i E_t L((1 − t)·θ + t·θ_i) + λ‖θ − θ_i‖²

and the path from any network to any other leads over it.

Sources: Lin, Li, Wu (arXiv 2404.06391); Sonthalia et al., "Do deep neural network solutions form a star domain?",
ICLR 2025, where every network is matched to the centre anew in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths import Star
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.probe import LossFunction as MeasuredLoss
from lightning_rebasin.merging.interpolate import check_alike
from lightning_rebasin.modules.alignment import Aligner
from lightning_rebasin.modules.endpoints import read_weights
from lightning_rebasin.modules.inner import LossFunction
from lightning_rebasin.modules.path_module import DRAWING, PathModule
from lightning_rebasin.modules.path_options import PathOptions, Sampling
from lightning_rebasin.modules.star_options import Matching, StarOptions
from lightning_rebasin.modules.star_report import StarReport, measure_star
from lightning_rebasin.modules.trainable import mean_squared_distance
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


class StarModule(PathModule):
    """Learns a centre that is joined to every one of ``ends`` by a line of low loss.

    ``trainer.fit(star, datamodule)`` with the data that the networks were trained on is all there is to write.
    Logged: ``star_loss`` (training), ``val_star_loss`` (mean over all points of all rays, held out), ``val_star_max``,
    ``val_star/center``, ``val_star/end 0`` (worst point of that ray) and so on, and whatever the network's own
    ``training_step`` logs, under ``star/``.  Parameters that the network does not train, and buffers, are the average
    of the ends'.

    Args:
        model: The network; its ``training_step`` is the loss unless ``loss`` is given.  It is copied, not changed.
        ends: Two or more checkpoints' paths or state dicts; they stay as they are.
        center: Where the centre starts: at the ``"average"`` of the ends, at a checkpoint or a state dict.  The average
            of ends that mirror each other may be a saddle: start from a network then.
        match: ``"never"``; at the ``"start"`` to the first end, or to the centre if that is given; or at the start and
            to the centre anew before every ``"epoch"``, each from its last permutation.
        spec: What may be permuted: a spec or its path; ``None`` infers it.
        loss: Takes the network and a batch and returns a scalar; ``None`` means ``model.training_step``.
        optimizer: Makes the optimizer of the centre; ``None`` is Adam, lr 0.01.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer.
        t: ``"uniform"``, ``"beta"``, or one fixed number inside (0, 1); t = 0 is the centre.
        beta: Both parameters of the beta distribution.
        ends_per_step: Ends drawn for one step.
        ts_per_step: Points drawn on the ray to each of them.
        proximity: λ, the weight of ``‖θ − θ_i‖²``.
        val_points: Points of every ray that are validated, evenly spaced, both ends among them.
        batch_norm_batches: Training batches kept for re-estimating batch-norm statistics; unused without batch norm.
        seed: Of the ends and of t, and of the matching.

    Raises:
        ConfigurationError: An option cannot work.
        StateDictError: The weights do not fit the network.
        CheckpointError: A file cannot be read.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(1, 1, bias=False)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return (self.net(batch) - 1).square().mean()
        >>> ends = [{"net.weight": torch.tensor([[value]])} for value in (0.0, 2.0, 4.0)]
        >>> star = StarModule(Net(), ends)
        >>> star
        StarModule(Net, center of 3 ends, t uniform)
        >>> star.center_state_dict()["net.weight"].tolist()
        [[2.0]]
    """

    word = "star"

    def __init__(
        self,
        model: nn.Module,
        ends: Sequence[str | Path | Mapping[str, Any]],
        *,
        center: str | Path | Mapping[str, Any] = "average",
        match: Matching = "never",
        spec: PermutationSpec | str | Path | None = None,
        loss: LossFunction | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        t: Sampling = "uniform",
        beta: tuple[float, float] = (2.0, 2.0),
        ends_per_step: int = 1,
        ts_per_step: int = 3,
        proximity: float = 0.0,
        val_points: int = 5,
        batch_norm_batches: int = 20,
        seed: int = 0,
    ) -> None:
        options = PathOptions(
            t, beta, proximity, val_points, batch_norm_batches, seed
        )
        super().__init__(
            model,
            ends,
            1,
            options,
            loss=loss,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        # Weights, networks and factories stay out of the hyper-parameters: files must load with weights_only=True.
        self.save_hyperparameters(
            "match", "ends_per_step", "ts_per_step", "proximity", *DRAWING
        )
        self._rays = StarOptions(
            len(self.ends), match, ends_per_step, ts_per_step
        )
        self._averaged = isinstance(center, str) and center == "average"
        self._aligner = Aligner(self.inner.model, spec, seed)
        self.write(
            0,
            self.ends.average(self.names.trained)
            if self._averaged
            else self._read(center),
        )
        self.place()

    def __repr__(self) -> str:
        name, count = type(self.inner.model).__name__, len(self.ends)
        return (
            f"StarModule({name}, center of {count} ends, t {self.options.t})"
        )

    @property
    def star(self) -> Star:
        """The rays as they are now; the centre holds the tensors that are learned."""
        return Star(self.anchors[0], tuple(self.ends.states))

    def center_state_dict(
        self, batches: Iterable[Any] | None = None
    ) -> dict[str, Tensor]:
        """The centre's weights on the CPU, with batch-norm statistics estimated there.

        Args:
            batches: Training batches for the statistics; ``None`` takes the last ones of the training, ``()`` leaves
                the average of the ends' statistics.  Unused without batch norm.

        Raises:
            ConfigurationError: There are no batches for the statistics.
        """
        return self.state_dict_at(0.0, 0, batches)

    def state_dict_at(
        self, t: float, end: int, batches: Iterable[Any] | None = None
    ) -> dict[str, Tensor]:
        """The network's weights on the ray from the centre, t = 0, to an end, t = 1.

        Args:
            t: In [0, 1].
            end: The end's number.
            batches: As for :meth:`center_state_dict`.

        Raises:
            ConfigurationError: t lies outside, there is no such end, or there are no batches for the statistics.
        """
        if not 0 <= t <= 1:
            raise ConfigurationError(f"t={t} lies outside [0, 1]")
        self.place()
        return self.state_at(self.star.at(end, t), batches)

    def report(
        self,
        dataloader: Iterable[Any],
        *,
        points: int = 11,
        loss: MeasuredLoss | None = None,
        batch_norm: Iterable[Any] | None = None,
        limit_batches: int | None = None,
        progress: bool = False,
    ) -> StarReport:
        """Every barrier between the centre and an end, and beside it those between the ends.

        Measured is everything that the network's own ``validation_step`` logs; the loss that is learned by, in eval
        mode, if it has none.

        Args:
            dataloader: Held-out batches; iterated once for every line.
            points: Evenly spaced points of every line.
            loss: ``loss(module, batch)``, measured instead: a mean over the batch, or several of them by name.
            batch_norm: Training batches for the statistics of every point; needed with batch norm.
            limit_batches: Use only the first so many batches.
            progress: Show progress bars.

        Returns:
            Curves, barriers and geodesic lengths.

        Raises:
            ConfigurationError: Batch norms without ``batch_norm``.
        """
        self.prepare_report(batch_norm)
        return measure_star(
            self.inner,
            self.star,
            self.names.trained,
            dataloader,
            points=points,
            loss=loss,
            batch_norm=batch_norm,
            limit_batches=limit_batches,
            progress=progress,
        )

    def begin(self) -> None:
        """Match the ends if asked to, and put the centre where it starts."""
        if self._rays.match == "never":
            return
        first = 1 if self._averaged else 0
        self.place()
        reference = self.ends.states[0] if first else self._detached()
        for number in range(first, len(self.ends)):
            self._match_end(number, reference)
        if self._averaged:
            self.write(0, self.ends.average(self.names.trained))
        self.place()

    def on_train_epoch_start(self) -> None:
        """Match every end to the centre if asked to."""
        if self._rays.match != "epoch":
            return
        reference = self._detached()
        for number in range(len(self.ends)):
            self._match_end(number, reference)
        self.place()

    def rest(self, number: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Frozen parameters and buffers of the centre: the average of the ends'."""
        skipped = self.names.trained
        names = [n for n in self.ends.states[0] if n not in skipped]
        return self.ends.average(names)

    def default_optimizer(
        self, parameters: list[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Adam, lr 0.01, as published."""
        return torch.optim.Adam(parameters, lr=0.01)

    def draw(self, generator: np.random.Generator) -> list[Point]:
        """Points on the rays to some of the ends."""
        star = self.star
        return [
            star.at(end, self.options.draw_t(generator))
            for end in self._rays.rays(generator)
        ]

    def penalty(
        self,
        points: list[Point],
        weights: list[dict[str, Tensor]],  # noqa: ARG002
    ) -> Tensor:
        """The mean of ``‖θ − θ_i‖²`` over the ends of this step."""
        # One point of every ray: the distance is the same for all of them.
        rays = points[:: self._rays.ts_per_step]
        return mean_squared_distance(rays, self.names.trained)

    def validation_points(self) -> list[tuple[str, Point]]:
        """The centre, and evenly spaced points of every ray."""
        star = self.star
        found = [("center", star.at(0, 0.0))]
        for end in range(len(self.ends)):
            for t in self.options.val_grid[1:]:
                found.append((f"end {end}", star.at(end, t)))
        return found

    def _match_end(self, number: int, reference: Mapping[str, Tensor]) -> None:
        found = self._aligner.match(
            self.trainer,
            reference,
            self.ends.original(number),
            self.ends.permutations[number],
        )
        self.ends.permute(number, found)

    def _detached(self) -> dict[str, Tensor]:
        return {n: t.detach() for n, t in self.anchors[0].items()}

    def _read(self, center: str | Path | Mapping[str, Any]) -> dict[str, Any]:
        found = read_weights(center)
        check_alike((self.ends.states[0], found), ("the ends", "the center"))
        return dict(found)
