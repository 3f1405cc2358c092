"""``CurveModule``: learning a path of low loss between trained networks.

Two networks that no straight line joins without a rise of the loss are usually joined by a curve.  Its bends are
learned, the ends stay: the expected loss ``E_t L(φ(t))`` is minimised by the network's own training loss at a random t
per batch.

    Bézier, one bend     φ(t) = (1 − t)²·a + 2t(1 − t)·θ + t²·b
    polygon, one bend    φ(t) = (1 − 2t)·a + 2t·θ up to the bend at t = ½, then on to b

Source: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths import Bezier, Chain, Line, Polygon
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.probe import LossFunction as MeasuredLoss
from lightning_rebasin.merging.interpolate import interpolate
from lightning_rebasin.modules.alignment import Aligner
from lightning_rebasin.modules.curve_report import (
    CurveReport,
    Route,
    measure_curve,
)
from lightning_rebasin.modules.inner import LossFunction
from lightning_rebasin.modules.path_module import DRAWING, PathModule
from lightning_rebasin.modules.path_options import PathOptions, Sampling
from lightning_rebasin.modules.trainable import squared_norm
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

_CURVES: dict[str, type[Bezier | Polygon]] = {
    "bezier": Bezier,
    "polygon": Polygon,
}


class CurveModule(PathModule):
    """Learns the bends of a path through ``ends``, in their order, along which the network's loss is low.

    ``trainer.fit(curve, datamodule)`` with the data that the networks were trained on is all there is to write.
    Logged: ``curve_loss`` (training, at the random t), ``val_curve_loss`` (mean over ``val_points`` of the path, held
    out), ``val_curve_max``, ``val_curve/t=0.50`` and so on, and whatever the network's own ``training_step`` logs,
    under ``curve/``.  Parameters that the network does not train (``requires_grad=False``) stay on the segment.

    Args:
        model: The network; its ``training_step`` is the loss unless ``loss`` is given.  It is copied, not changed.
        ends: Two or more checkpoints' paths or state dicts; they stay as they are.
        curve: Smooth curves, or straight pieces; between every two ends there is one of them.
        bends: Bends between two ends.
        start: The bends start on the ``"segment"``, or on the ``"matched"`` one: every end but the first is first
            permuted to be near to the end before it (``permutations`` says how).
        spec: What may be permuted: a spec or its path; ``None`` infers it.
        loss: Takes the network and a batch and returns a scalar; ``None`` means ``model.training_step``.
        optimizer: Makes the optimizer of the bends; ``None`` is SGD, lr 0.01, momentum 0.9.  Its weight decay should
            be 0: that would pull on the bends and not on the networks.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer.
        t: ``"uniform"``, ``"beta"``, or one fixed number inside (0, 1).
        beta: Both parameters of the beta distribution.
        weight_decay: Adds ``½·weight_decay·‖φ(t)‖²`` over the trained parameters.
        val_points: Points of the path that are validated, evenly spaced, both ends among them.
        batch_norm_batches: Training batches kept for re-estimating batch-norm statistics; unused without batch norm.
        seed: Of t and of the matching.

    Raises:
        ConfigurationError: An option cannot work.
        StateDictError: The ends do not fit the network.
        CheckpointError: A file cannot be read.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(1, 1, bias=False)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return (self.net(batch) - 1).square().mean()
        >>> a, b = {"net.weight": torch.tensor([[0.0]])}, {"net.weight": torch.tensor([[4.0]])}
        >>> curve = CurveModule(Net(), [a, b])
        >>> curve
        CurveModule(Net, bezier through 2 ends with 1 bend each, t uniform)
        >>> curve.state_dict_at(0.25)["net.weight"].tolist()
        [[1.0]]

    References:
        Garipov et al., NeurIPS 2018 (arXiv 1802.10026).
    """

    word = "curve"

    def __init__(
        self,
        model: nn.Module,
        ends: Sequence[str | Path | Mapping[str, Any]],
        curve: Literal["bezier", "polygon"] = "bezier",
        bends: int = 1,
        *,
        start: Literal["segment", "matched"] = "segment",
        spec: PermutationSpec | str | Path | None = None,
        loss: LossFunction | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        t: Sampling = "uniform",
        beta: tuple[float, float] = (2.0, 2.0),
        weight_decay: float = 0.0,
        val_points: int = 5,
        batch_norm_batches: int = 20,
        seed: int = 0,
    ) -> None:
        _check(curve, bends, start)
        options = PathOptions(
            t, beta, weight_decay, val_points, batch_norm_batches, seed
        )
        count = bends * (len(ends) - 1)
        super().__init__(
            model,
            ends,
            count,
            options,
            loss=loss,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        # Weights, networks and factories stay out of the hyper-parameters: files must load with weights_only=True.
        self.save_hyperparameters(
            "curve", "bends", "start", "weight_decay", *DRAWING
        )
        self._curve = curve
        self._bends = bends
        self._matched = start == "matched"
        self._aligner = Aligner(self.inner.model, spec, seed)
        self._to_the_segment()
        self.place()

    def __repr__(self) -> str:
        name, bends = type(self.inner.model).__name__, self._bends
        many = "bend" if bends == 1 else "bends"
        through = f"{self._curve} through {len(self.ends)} ends"
        return f"CurveModule({name}, {through} with {bends} {many} each, t {self.options.t})"

    @property
    def path(self) -> Chain:
        """The path as it is now; its anchors are the tensors that are learned."""
        pieces: list[Bezier | Line | Polygon] = []
        for number, (a, b) in enumerate(pairwise(self.ends.states)):
            first = number * self._bends
            bends = self.anchors[first : first + self._bends]
            pieces.append(_CURVES[self._curve]((a, *bends, b)))
        return Chain(tuple(pieces))

    def state_dict_at(
        self, t: float, batches: Iterable[Any] | None = None
    ) -> dict[str, Tensor]:
        """The network's weights at t, with batch-norm statistics estimated there.

        Args:
            t: In [0, 1]; the ends come out as they are.
            batches: Training batches for the statistics; ``None`` takes the last ones of the training, ``()`` leaves
                the statistics interpolated.  Unused without batch norm.

        Returns:
            Every tensor of the user's network, on the CPU.

        Raises:
            ConfigurationError: t lies outside, matching is still to come, or there are no batches for the statistics.
        """
        if not 0 <= t <= 1:
            raise ConfigurationError(f"t={t} lies outside [0, 1]")
        self._check_begun()
        self.place()
        return self.state_at(self.path.at(t), batches)

    def bend_state_dict(
        self, number: int = 0, batches: Iterable[Any] | None = None
    ) -> dict[str, Tensor]:
        """A learned bend's weights on the CPU, with batch-norm statistics estimated there.

        Args:
            number: Which bend, counted from the first end.  The bend of a Bézier curve does not lie on the curve.
            batches: As for :meth:`state_dict_at`.

        Raises:
            ConfigurationError: There is no such bend, or there are no batches for the statistics.
        """
        if not 0 <= number < len(self.free):
            raise ConfigurationError(
                f"bend {number} does not exist: the curve has {len(self.free)}"
            )
        self.place()
        bend = Point((self.anchors[number],), (1.0,))
        return self.state_at(bend, batches)

    def report(
        self,
        dataloader: Iterable[Any],
        *,
        points: int | Sequence[float] = 61,
        loss: MeasuredLoss | None = None,
        batch_norm: Iterable[Any] | None = None,
        limit_batches: int | None = None,
        progress: bool = False,
    ) -> CurveReport:
        """The metrics along the curve, and beside it along the straight way from end to end.

        Measured is everything that the network's own ``validation_step`` logs; the loss that is learned by, in eval
        mode, if it has none.

        Args:
            dataloader: Held-out batches; iterated once for every path.
            points: Evenly spaced t, or the t themselves; 0, ½, 1 and corners are added.
            loss: ``loss(module, batch)``, measured instead: a mean over the batch, or several of them by name.
            batch_norm: Training batches for the statistics of every point; needed with batch norm.
            limit_batches: Use only the first so many batches.
            progress: Show progress bars.

        Returns:
            ``"naive"``, ``"matched"`` (if the ends were matched) and ``"curve"``.

        Raises:
            ConfigurationError: Batch norms without ``batch_norm``, or matching is still to come.
        """
        self._check_begun()
        self.prepare_report(batch_norm)
        ends = range(len(self.ends))
        routes: dict[str, Route] = {
            "naive": [self.ends.original(number) for number in ends]
        }
        if self._matched:
            routes["matched"] = self.ends.states
        routes["curve"] = self.path
        return measure_curve(
            self.inner,
            routes,
            dataloader,
            points=points,
            loss=loss,
            batch_norm=batch_norm,
            limit_batches=limit_batches,
            progress=progress,
        )

    def begin(self) -> None:
        """Match every end to the one before it if asked to, and put the bends on the segments."""
        if self._matched:
            for number in range(1, len(self.ends)):
                found = self._aligner.match(
                    self.trainer,
                    self.ends.states[number - 1],
                    self.ends.states[number],
                )
                self.ends.permute(number, found)
            self._to_the_segment()
            self.place()

    def rest(self, number: int) -> dict[str, Tensor]:
        """Frozen parameters and buffers of a bend: those of its place on the segment."""
        skipped = set(self.names.trained)
        names = [n for n in self.ends.states[0] if n not in skipped]
        return self._on_segment(number, names)

    def draw(self, generator: np.random.Generator) -> list[Point]:
        """One point at a random t."""
        return [self.path.at(self.options.draw_t(generator))]

    def penalty(
        self,
        points: list[Point],  # noqa: ARG002
        weights: list[dict[str, Tensor]],
    ) -> Tensor:
        """``½·‖φ(t)‖²``."""
        return squared_norm(weights[0].values()) / 2

    def validation_points(self) -> list[tuple[str, Point]]:
        """Evenly spaced points from end to end."""
        path = self.path
        return [(f"t={t:.2f}", path.at(t)) for t in self.options.val_grid]

    def _check_begun(self) -> None:
        if self._matched and not self._begun:
            raise ConfigurationError(
                "the ends are matched when training starts: call trainer.fit(curve_module, ...) first"
            )

    def _to_the_segment(self) -> None:
        for number in range(len(self.free)):
            start = self._on_segment(number, self.names.trained)
            self.write(number, start)

    def _on_segment(
        self, number: int, names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Where a bend lies if the path is straight: evenly spaced bends keep t proportional to the distance."""
        piece, inside = divmod(number, self._bends)
        share = (inside + 1) / (self._bends + 1)
        a, b = self.ends.states[piece], self.ends.states[piece + 1]
        names = list(names)
        return interpolate(
            {name: a[name] for name in names},
            {name: b[name] for name in names},
            share,
        )


def _check(curve: str, bends: int, start: str) -> None:
    if curve not in _CURVES:
        raise ConfigurationError(
            f"curve={curve!r} is unknown; choose one of {tuple(_CURVES)}"
        )
    if bends < 1:
        raise ConfigurationError(f"bends={bends} must be at least 1")
    if start not in ("segment", "matched"):
        raise ConfigurationError(
            f"start={start!r} is unknown; choose 'segment' or 'matched'"
        )
