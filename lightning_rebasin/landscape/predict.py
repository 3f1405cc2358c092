"""``predict_barrier``: what derivatives along the chord, and at its ends, say about the barrier.

The formulas are those of :mod:`~lightning_rebasin.landscape.prediction_values`, the derivatives those of
:mod:`~lightning_rebasin.landscape.curvature`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.curvature import (
    DerivativeAverages,
    Derivatives,
    difference,
)
from lightning_rebasin.landscape.differentiable import (
    DifferentiableLoss,
    differentiating,
)
from lightning_rebasin.landscape.layer_barriers import layer_barriers
from lightning_rebasin.landscape.layers import Layers, layers_of
from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.prediction_values import (
    BarrierPrediction,
    LayerPrediction,
)
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.quadrature import ChordGrid
from lightning_rebasin.landscape.weights import Moves, check_states

#: How far the differentiated loss may be from the measured one at the ends.
_SAME = 1e-2


def predict_barrier(
    module: nn.Module,
    a: State,
    b: State,
    dataloader: Iterable[Any],
    *,
    pieces: int = 4,
    nodes: int = 4,
    by_layer: bool = True,
    layers: Mapping[str, Sequence[str]] | None = None,
    permutation: Moves | None = None,
    loss: LossFunction | None = None,
    metric: str | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> BarrierPrediction:
    """Predict the barrier between two sets of weights from derivatives, and measure it.

    Everything is taken in eval mode, along ``θ(s) = (1 − s)·a + s·b``.  *Batch-norm statistics are interpolated like
    weights* and belong to the direction, as in ``measure_barrier`` without ``batch_norm=``: what is predicted is the
    barrier before any reset.  Derivatives are Hessian–vector products: memory is that of one graph and a few copies of
    the weights.  Each place costs as much as five to ten evaluations of the loss, each layer about two more at each
    end.

    Args:
        module: A LightningModule, whose ``validation_step`` logs the loss, or any module together with ``loss``; it is
            copied and left alone.
        a: Weights of the first end.
        b: Weights of the second end.
        dataloader: Batches of one loader, gone through a few times: an order that is shuffled anew is no harm.
        pieces: Equal pieces of the chord, an even number; the barrier is measured and integrated at their borders.
        nodes: Places in each piece, both ends included: the integrals are exact for polynomials of degree
            ``2·nodes − 3``.
        by_layer: Whether layers are moved by themselves too.
        layers: Layers by hand; see :func:`~lightning_rebasin.landscape.layers_of` for what a layer is otherwise.
        permutation: Applied to ``b`` first, for instance ``match_weights(spec, a, b).transform``.
        loss: ``loss(module, batch)`` returning the mean loss of the batch as a tensor with a graph, or a dict of such.
        metric: Which of several; the first loss if omitted.
        limit_batches: Use only the first so many batches.
        progress: Show progress bars.

    Returns:
        The predictions beside the measured curve.

    Raises:
        ConfigurationError: Options that cannot work, a random loss, or one that cannot be differentiated twice.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> import torch
        >>> module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
        >>> a, b = ({k: torch.full_like(v, s) for k, v in module.state_dict().items()} for s in (1.0, -1.0))
        >>> def loss(module, x):
        ...     return 0.5 * (module(x) - 1).square().mean()
        >>> found = predict_barrier(module, a, b, [torch.ones(1, 1, dtype=torch.float64)], loss=loss)
        >>> {name: round(value, 9) for name, value in found.barriers().items()}
        {'measured': 0.5, 'by slopes': 0.5, 'by curvatures': 0.5, 'quintic': 0.5, 'Taylor': 2.0, 'bound': 1.0}
        >>> found.layers[0].predicted, found.layers[0].measured
        ((0.5, 0.5), (0.5, 0.5))
    """
    first, second = check_states(module, [a, b])
    if permutation is not None:
        first, second = check_states(module, [a, permutation.apply(second)])
    _check_loader(dataloader)
    grid = ChordGrid(pieces, nodes)
    chosen = layers_of(module, layers) if by_layer or layers else {}
    function = DifferentiableLoss(module, loss, metric)
    states = [Line(first, second).at(s).state() for s in (0.0, 1.0)]
    # What is made in inference mode could not be saved for the backward pass.
    with isolated_rng(), differentiating():
        chord = _Chord(function, states, grid, chosen)
        batches = islice(dataloader, limit_batches)
        bar = tqdm(
            batches, desc="derivatives", disable=not progress, leave=False
        )
        for batch in bar:
            chord.update(function.ready(batch))
    results = chord.results()
    options: dict[str, Any] = {
        "loss": loss,
        "limit_batches": limit_batches,
        "progress": progress,
    }
    measured = measure_barrier(
        module, first, second, dataloader, points=grid.borders, **options
    )
    _check_same(function.metric, results, measured)
    found: tuple[LayerPrediction, ...] = ()
    if chosen:
        changes = _changes(
            module,
            states,
            dataloader,
            chosen,
            metric=function.metric,
            **options,
        )
        found = _layers(results, chord.direction, chosen, changes)
    return BarrierPrediction(
        function.metric,
        grid,
        tuple(r.loss for r in results),
        tuple(r.slope for r in results),
        tuple(r.curvature for r in results),
        _norm(chord.direction, list(chord.direction)),
        measured,
        found,
        chord.samples,
    )


class _Chord:
    """The derivatives at all places of a chord.

    Args:
        loss: The loss.
        ends: Weights at 0 and 1.
        grid: The places.
        layers: Layers that move by themselves at the ends.
    """

    def __init__(
        self,
        loss: DifferentiableLoss,
        ends: Sequence[State],
        grid: ChordGrid,
        layers: Layers,
    ) -> None:
        self._loss = loss
        self._line = Line(*ends)
        self._grid = grid
        whole = difference(*ends)
        # Tied weights move together, under their first names.
        self.direction = loss.untied(whole)
        self._averages = []
        for s in grid.at:
            own = layers if s in (0.0, 1.0) else {}
            self._averages.append(
                DerivativeAverages(loss, self.direction, own)
            )

    @property
    def samples(self) -> int:
        """How many samples there were."""
        return self._averages[0].samples

    def update(self, batch: Any) -> None:
        """Take the derivatives on a batch at every place."""
        if not self.samples:
            self._loss.check_repeats(self._line.a, batch)
        for s, average in zip(self._grid.at, self._averages, strict=True):
            average.update(self._line.at(s).state(), batch)

    def results(self) -> list[Derivatives]:
        """The averages.

        Raises:
            DataError: There was no batch.
        """
        if not self.samples:
            raise DataError("nothing to predict from: there is no batch")
        return [average.mean() for average in self._averages]


def _check_loader(dataloader: object) -> None:
    """Raise unless this is one loader."""
    several = isinstance(dataloader, list | tuple) and any(
        isinstance(item, DataLoader) for item in dataloader
    )
    if several:
        raise ConfigurationError(
            "predictions are made for one loader: pass one, and predict for each in turn"
        )


def _check_same(
    metric: str, results: Sequence[Derivatives], measured: BarrierCurve
) -> None:
    """Raise if what was differentiated is not what was measured."""
    row = measured.values.get(metric, ())
    for place, known in ((0, row[:1]), (-1, row[-1:])):
        own = results[place].loss
        value = known[0] if known else math.nan
        if abs(own - value) > _SAME * max(abs(own), abs(value)):
            raise ConfigurationError(
                f"{metric!r} is {value:.6g} at an end, but its mean over batches is {own:.6g}: a reduce_fx other than "
                "mean, or a loader that gives other batches each time? Predictions are of means over the same batches"
            )


def _changes(
    module: nn.Module,
    ends: Sequence[State],
    dataloader: Iterable[Any],
    layers: Layers,
    *,
    metric: str,
    **options: Any,
) -> dict[str, tuple[float, ...]]:
    """How much the loss of either end changes with one layer half way."""
    measured = layer_barriers(
        module,
        ends[0],
        ends[1],
        dataloader,
        layers=layers,
        points=[0.5],
        **options,
    )
    found = {}
    for k, base in enumerate(("a", "b")):
        # Both bases have the share of b in the middle: ½.
        own = [row[1] for row in measured.values[metric][base]]
        found[base] = tuple(v - measured.ends[metric][k] for v in own)
    return found


def _layers(
    results: Sequence[Derivatives],
    direction: State,
    layers: Layers,
    changes: Mapping[str, Sequence[float]],
) -> tuple[LayerPrediction, ...]:
    """What single layers do, from both ends."""
    first, last = results[0], results[-1]
    found = []
    for k, (layer, names) in enumerate(layers.items()):
        # From the second end the layer moves the other way.
        slopes = (first.layer_slopes[layer], -last.layer_slopes[layer])
        curvatures = (
            first.layer_curvatures[layer],
            last.layer_curvatures[layer],
        )
        measured = (changes["a"][k], changes["b"][k])
        distance = _norm(direction, names)
        found.append(
            LayerPrediction(layer, distance, slopes, curvatures, measured)
        )
    return tuple(found)


def _norm(direction: State, names: Sequence[str]) -> float:
    """Length of the part of a direction that lies in the named tensors."""
    total = 0.0
    for name in names:
        if name in direction:
            total += float(direction[name].double().square().sum())
    return math.sqrt(total)
