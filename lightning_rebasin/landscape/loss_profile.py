"""``loss_profile``: the loss along one direction, and the bumps on the way from initialisation to the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.directions import random_direction
from lightning_rebasin.landscape.measure import Loaders, evaluate_points
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.paths.span import Span
from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.profile_values import LossProfile
from lightning_rebasin.landscape.weights import check_states


def loss_profile(
    module: nn.Module,
    start: State,
    dataloader: Loaders,
    *,
    to: State | None = None,
    direction: Mapping[str, Tensor] | None = None,
    reach: tuple[float, float] | None = None,
    points: int | Sequence[float] = 50,
    seed: int = 0,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> LossProfile:
    """Measure a module's loss and metrics along one direction from a set of weights.

    With ``to`` the places are ``(1 − α)·start + α·to`` for α in [0, 1]: *monotone linear interpolation* if ``start`` is
    the initialisation and ``to`` what training made of it.  With ``direction`` they are ``start + α·direction`` for α
    in [−1, 1], along a random filter-normalised direction if neither is given.

    Args:
        module: As for :func:`~lightning_rebasin.measure_barrier`.
        start: Weights at α = 0.
        dataloader: Batches, or a list of loaders.
        to: Weights at α = 1.
        direction: A change of ``start`` by name, used as it is; tensors that it lacks do not move.
        reach: First and last α, instead of those above.
        points: Number of evenly spaced α (50 as usual), or the α themselves.
        seed: Seeds a random direction.
        loss: ``loss(module, batch)``, as for ``measure_barrier``.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every α.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.

    Returns:
        The profile, with its bumps.

    Raises:
        ConfigurationError: Both ``to`` and ``direction``, fewer than two places, or no ``loss`` for a plain module.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> import torch
        >>> module = nn.Linear(1, 1, bias=False)
        >>> start, end = {"weight": torch.tensor([[-1.0]])}, {"weight": torch.tensor([[1.0]])}
        >>> profile = loss_profile(module, start, [torch.ones(2, 1)], to=end, points=5, loss=lambda m, x: m(x).mean())
        >>> profile.alphas, profile.bump("loss")
        ((0.0, 0.25, 0.5, 0.75, 1.0), 2.0)

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization problems", ICLR 2015;
        Lucas et al., "Analyzing Monotonic Linear Interpolation in Neural Network Loss Landscapes", ICML 2021.
    """
    if to is not None and direction is not None:
        raise ConfigurationError("give to= or direction=, not both")
    where: Line | Span
    if to is not None:
        where = Line(*check_states(module, [start, to]))
    else:
        (origin,) = check_states(module, [start])
        if direction is None:
            direction = random_direction(module, origin, seed)
        where = Span(origin, (direction,))
    low, high = reach or ((-1.0, 1.0) if to is None else (0.0, 1.0))
    alphas = _places(points, low, high)
    measured = evaluate_points(
        module,
        [where.at(alpha) for alpha in alphas],
        dataloader,
        loss=loss,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label="profile",
    )
    return LossProfile(
        alphas,
        measured.columns(),
        measured.better(),
        measured.samples,
    )


def _places(
    points: int | Sequence[float], low: float, high: float
) -> tuple[float, ...]:
    """Ascending places along the line."""
    if not isinstance(points, int):
        places = sorted({float(p) for p in points})
    elif points < 2 or not low < high:
        places = []
    else:
        # The last place is exact, so that it is an anchor.
        width = high - low
        places = [low + width * (k / (points - 1)) for k in range(points - 1)]
        places.append(high)
    if len(places) < 2:
        raise ConfigurationError(
            f"points={points!r} from {low} to {high}: a profile needs two places or more"
        )
    return tuple(places)
