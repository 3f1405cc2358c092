"""REPAIR: give the activations of a merged network back the spread that averaging took from them.

The channels of two aligned networks are correlated, but not equal; the average of two such signals varies less than
either.  Layer by layer the variance collapses, and the merged network answers with the mean.  REPAIR rescales and
shifts every channel of the merged network so that its mean and *standard deviation* are the mix of the ends' own:

    mean_λ = Σ_i w_i · mean_i        std_λ = Σ_i w_i · std_i

(the standard deviations are mixed, not the variances), and folds the correction into the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor, nn

from lightning_rebasin.merging.interpolate import (
    average,
    check_alike,
    normalised_weights,
)
from lightning_rebasin.merging.layers import (
    Layer,
    Moments,
    find_layers,
    measure,
    watching,
)
from lightning_rebasin.merging.processes import Total, alone
from lightning_rebasin.merging.statistics import (
    Module,
    averaging,
    batch_norms,
    copied,
    outputs,
    share_statistics,
)

#: A channel that varies less than this, relative to the layer's typical channel, is dead: it is shifted, not scaled.
_DEAD = 1e-6


@dataclass(frozen=True)
class LayerVariance:
    """How much of its variance one layer had.

    Args:
        layer: Name of the layer.
        before: Mean over channels of (variance in the plain merge) / (variance wanted); 1 is right.
        after: The same in the repaired network.
    """

    layer: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Repair(Generic[Module]):
    """A repaired network and what was wrong with it.

    Args:
        module: The merged network with the corrections folded in, in eval mode.
        variances: The variance ratio of every corrected layer, in the order of the forward pass.
    """

    module: Module
    variances: tuple[LayerVariance, ...]

    @property
    def variance_ratio(self) -> tuple[float, float]:
        """Mean variance ratio over the layers, before and after."""
        count = max(len(self.variances), 1)
        return sum(v.before for v in self.variances) / count, sum(
            v.after for v in self.variances
        ) / count


def repair(
    module: Module,
    states: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Any],
    *,
    weights: Sequence[float] | None = None,
    total: Total = alone,
) -> Repair[Module]:
    """Merge aligned networks and correct the statistics of the merged activations.

    The merged network runs once over the batches with every correctable layer's output brought to the wanted mean and
    standard deviation as it goes, so that each layer is measured behind corrected ones; then ``W ← s·W``,
    ``b ← s·b + t`` with ``s = std_λ / std``, ``t = mean_λ − s · mean``.  The merged network's batch norms need no
    measurement: behind new running statistics their output has mean β and standard deviation |γ|, so ``β ← mean_λ`` and
    ``|γ| ← std_λ`` are exact.  (The ends' own β and |γ| are not the targets, because their running statistics come from
    augmented images and changing weights.)  Layers without a bias are scaled only.

    Args:
        module: The architecture; its own weights do not matter, and it is left as it was.
        states: Aligned weights of the ends: ``[a, permutation.apply(b)]``.
        batches: Training inputs as for :func:`reset_batch_norm`; iterated ``len(states) + 4`` times.
        weights: Share of each end; equal if omitted.
        total: Sums a tensor over processes, if each of them has its own batches.

    Returns:
        The repaired network with the variance ratios.

    Raises:
        StateDictError: The states do not fit the module or each other.
        ConfigurationError: The weights cannot work.
        DataError: ``batches`` is empty.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), torch.linspace(-1, 1, 100)[:, None]
        >>> one = {k: torch.ones_like(v) for k, v in net.state_dict().items()}
        >>> minus = {**one, "0.weight": -one["0.weight"] / 2, "1.weight": -one["1.weight"] / 2}
        >>> result = repair(net, [one, minus], [x])
        >>> [round(ratio, 4) for ratio in result.variance_ratio]
        [0.0606, 1.0]

    References:
        Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023
        (arXiv 2211.08403), equations 1 and 2.
    """
    if not hasattr(batches, "__len__"):
        # they are gone through several times
        batches = list(batches)
    shares = normalised_weights(len(states), weights)
    network = copied(module)
    names = ("the module", *(f"model {i + 1}" for i in range(len(states))))
    check_alike((network.state_dict(), *states), names)
    layers = find_layers(network, batches)
    # Models without a share need not be run.
    given = [share for share in shares if share]
    ends = []
    for state, share in zip(states, shares, strict=True):
        if share:
            network.load_state_dict(state)
            ends.append(measure(network, layers, batches, total=total))
    network.load_state_dict(average(states, shares))
    before = measure(network, layers, batches, total=total)
    wanted = {}
    for layer in layers:
        wanted[layer.name] = _wanted(given, [end[layer.name] for end in ends])
    _set_batch_norms(layers, wanted)
    _correct(network, layers, wanted, batches, total)
    after = measure(network, layers, batches, total=total)
    return Repair(network, _variances(layers, wanted, before, after))


def _variances(
    layers: Sequence[Layer],
    wanted: Mapping[str, tuple[Tensor, Tensor]],
    before: Mapping[str, Moments],
    after: Mapping[str, Moments],
) -> tuple[LayerVariance, ...]:
    """How much of the wanted variance each layer had and has."""
    found = []
    for layer in layers:
        name, (_, spread) = layer.name, wanted[layer.name]
        ratios = [_ratio(moments[name], spread) for moments in (before, after)]
        found.append(LayerVariance(name, *ratios))
    return tuple(found)


def _wanted(
    shares: Sequence[float], ends: Sequence[Moments]
) -> tuple[Tensor, Tensor]:
    """Mixed mean and standard deviation."""
    mean = sum(
        (share * end.mean for share, end in zip(shares, ends, strict=True)),
        torch.zeros(()),
    )
    std = sum(
        (share * end.std for share, end in zip(shares, ends, strict=True)),
        torch.zeros(()),
    )
    return mean, std


def _set_batch_norms(
    layers: Iterable[Layer], wanted: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Behind its own batch statistics a batch norm returns mean β and deviation |γ|: β and γ are what is wanted."""
    for layer in layers:
        if layer.is_batch_norm:
            mean, std = wanted[layer.name]
            weight, bias = layer.module.weight, layer.module.bias
            assert isinstance(weight, Tensor)
            with torch.no_grad():
                weight.copy_(
                    torch.where(weight < 0, -1.0, 1.0) * std.to(weight)
                )
                if isinstance(bias, Tensor):
                    bias.copy_(mean)


def _correct(
    network: nn.Module,
    layers: Sequence[Layer],
    wanted: Mapping[str, tuple[Tensor, Tensor]],
    batches: Iterable[Any],
    total: Total,
) -> None:
    """One pass with outputs corrected on the fly, batch norms re-estimated in the same pass, then fold."""
    norms = batch_norms(network).values()
    seen = {layer.name: Moments() for layer in layers}

    def adjust(layer: Layer, output: Tensor) -> Tensor | None:
        if layer.is_batch_norm:
            return None
        values = layer.channels(output)
        seen[layer.name].update(values)
        own = Moments()
        own.update(values)
        scale, shift = _correction(layer, own, *wanted[layer.name])
        return output * layer.along(scale, output) + layer.along(shift, output)

    with (
        watching(layers, adjust),
        averaging(norms),
        torch.no_grad(),
    ):
        count = sum(1 for _ in outputs(network, batches))
    share_statistics(norms, count, total)
    for layer in layers:
        if not layer.is_batch_norm:
            seen[layer.name].reduce(total)
            layer.fold(
                *_correction(layer, seen[layer.name], *wanted[layer.name])
            )


def _correction(
    layer: Layer, own: Moments, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift that turn the measured statistics into the wanted ones, as far as the layer can."""
    alive = own.std > _DEAD * own.std.mean()
    scale = torch.where(alive, std / torch.where(alive, own.std, 1.0), 1.0)
    shift = mean - scale * own.mean
    return scale, shift if layer.can_shift else torch.zeros_like(shift)


def _ratio(moments: Moments, std: Tensor) -> float:
    live = std > _DEAD * std.mean()
    return (
        float((moments.variance[live] / std[live].square()).mean())
        if bool(live.any())
        else 1.0
    )
