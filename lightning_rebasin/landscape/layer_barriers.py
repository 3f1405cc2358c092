"""``layer_barriers``: which layers of two networks may be averaged, and which make the barrier.

For a base i in {a, b} and a set S of layers, the layers in S are mixed, ``(1 − α)·θ_a + α·θ_b``, and all others stay
those of the base.  The barrier is measured against the *full* models,

    max_α L_i,S(α) − ½ (L(θ_a) + L(θ_b)),

so that it differs between the two bases and may be negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.barrier import lambda_grid
from lightning_rebasin.landscape.layer_values import (
    BASES,
    LayerBarriers,
    Mode,
    Rows,
)
from lightning_rebasin.landscape.layers import (
    Layers,
    Order,
    layers_of,
    ordered,
)
from lightning_rebasin.landscape.measure import (
    Loaders,
    Measured,
    evaluate_points,
)
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.points import Point, State
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.weights import Moves, check_states

#: For each base and set of layers the numbers of the points along α.
_Places = dict[str, list[list[int]]]


def layer_barriers(
    module: nn.Module,
    a: State,
    b: State,
    dataloader: Loaders,
    *,
    mode: Mode = "single",
    order: Order = "forward",
    width: int = 3,
    layers: Mapping[str, Sequence[str]] | None = None,
    permutation: Moves | None = None,
    points: int | Sequence[float] = 5,
    seed: int = 0,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> LayerBarriers:
    """Measure barriers layer by layer, from both models.

    Args:
        module: As for :func:`~lightning_rebasin.measure_barrier`.
        a: Weights of the first model.
        b: Weights of the second model.
        dataloader: Batches, or a list of loaders.
        mode: ``"single"`` mixes each layer by itself, ``"cumulative"`` the first, the first two, … in ``order``,
            ``"window"`` every ``width`` layers in a row.
        order: ``"forward"`` (from the input), ``"backward"``, ``"random"``, or names of layers.
        width: Layers in a window.
        layers: Layers by hand; see :func:`~lightning_rebasin.landscape.layers_of` for what a layer is otherwise.
        permutation: Applied to ``b`` first, for instance ``match_weights(spec, a, b).transform``.
        points: Number of evenly spaced α, or the α themselves; 0, ½ and 1 are always added.
        seed: Seeds the random order.
        loss: ``loss(module, batch)``, as for ``measure_barrier``.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every mixture, and at the ends.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.

    Returns:
        The barriers; the last cumulative one is the barrier of the whole network.

    Raises:
        ConfigurationError: Unknown mode, order or layer, a window that does not fit, or no ``loss``.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> import torch
        >>> module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> a, b = ({"0.weight": torch.tensor([[s]]), "1.weight": torch.tensor([[s]])} for s in (1.0, -1.0))
        >>> def loss(module, x):
        ...     return 0.5 * (module(x) - 1).square().mean()
        >>> layer_barriers(module, a, b, [torch.ones(1, 1)], points=3, loss=loss).heights()
        {'a': (2.0, 2.0), 'b': (2.0, 2.0)}

    References:
        Adilova et al., "Layer-wise Linear Mode Connectivity", ICLR 2024.
    """
    first, second = check_states(module, [a, b])
    if permutation is not None:
        moved = permutation.apply(second)
        first, second = check_states(module, [first, moved])
    sets = layer_sets(
        ordered(layers_of(module, layers), order, seed), mode, width
    )
    lambdas = lambda_grid(points)
    where, places = _points(first, second, sets, lambdas)
    measured = evaluate_points(
        module,
        where,
        dataloader,
        loss=loss,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label="layers",
    )
    return LayerBarriers(
        tuple(sets),
        lambdas,
        *_values(measured, places),
        mode,
        measured.better(),
        measured.samples,
    )


def layer_sets(layers: Layers, mode: Mode, width: int = 3) -> Layers:
    """The sets of layers that a mode mixes, by label.

    Args:
        layers: In order.
        mode: ``"single"``, ``"cumulative"`` or ``"window"``.
        width: Layers in a window.

    Raises:
        ConfigurationError: The mode is unknown, or a window does not fit.

    Example:
        >>> layer_sets({"x": ("x.w",), "y": ("y.w",)}, "cumulative")
        {'x': ('x.w',), '+ y': ('x.w', 'y.w')}
    """
    names = list(layers)
    if mode == "single":
        return dict(layers)
    found: Layers = {}
    if mode == "cumulative":
        grown: tuple[str, ...] = ()
        for name in names:
            label = f"+ {name}" if grown else name
            grown += layers[name]
            found[label] = grown
        return found
    if mode != "window":
        raise ConfigurationError(
            f"mode={mode!r} is unknown; choose 'single', 'cumulative' or 'window'"
        )
    if not 1 <= width <= len(names):
        raise ConfigurationError(
            f"width={width}: a window holds 1 to {len(names)} layers here"
        )
    for start in range(len(names) - width + 1):
        window = names[start : start + width]
        label = f"{window[0]} … {window[-1]}"
        found[label] = tuple(n for name in window for n in layers[name])
    return found


def _points(
    a: State, b: State, sets: Layers, lambdas: Sequence[float]
) -> tuple[list[Point], _Places]:
    """The full models, the points between, and which of them are those of a base and a set of layers."""
    points = [Point((a,), (1.0,)), Point((b,), (1.0,))]
    places: _Places = {"a": [], "b": []}
    for base in BASES:
        for names in sets.values():
            own, other = (a, b) if base == "a" else (b, a)
            # Tensors are shared, not copied.
            swapped = dict(own) | {name: other[name] for name in names}
            line = Line(own, swapped) if base == "a" else Line(swapped, own)
            row = []
            for lam in lambdas:
                # One end of every line is the full model, which is there already.
                full = {("a", 0.0): 0, ("b", 1.0): 1}.get((base, lam))
                row.append(len(points) if full is None else full)
                if full is None:
                    points.append(line.at(lam))
            places[base].append(row)
    return points, places


def _values(
    measured: Measured, places: _Places
) -> tuple[dict[str, Rows], dict[str, tuple[float, float]]]:
    """The values by metric, base and set of layers, and those of the full models."""
    values: dict[str, Rows] = {}
    ends = {}
    for name, column in measured.columns().items():
        ends[name] = (column[0], column[1])
        rows: dict[str, tuple[tuple[float, ...], ...]] = {}
        for base, own in places.items():
            rows[base] = tuple(tuple(column[k] for k in row) for row in own)
        values[name] = rows
    return values, ends
