"""The stages of a merge that run the network: statistics of the merged weights, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.checkpoints.advice import MERGED, NAIVE
from lightning_rebasin.checkpoints.align import Aligned, load, permuted
from lightning_rebasin.checkpoints.options import Statistics
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.merging.interpolate import average
from lightning_rebasin.merging.repair import repair
from lightning_rebasin.merging.statistics import batch_norms, reset_batch_norm

#: Metrics of a network by name.
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def correct(
    network: nn.Module | None,
    merged: dict[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    aligned: Aligned,
    shares: Sequence[float],
    *,
    statistics: Statistics,
    data: Iterable[Any] | None,
) -> tuple[dict[str, Tensor], str, tuple[float, float] | None]:
    """Weights with corrected statistics, what was done, and the variance ratios."""
    if network is None or data is None or statistics == "none":
        return merged, "none", None
    load(network, merged)
    if statistics == "repair":
        ends = [
            {name: permuted(state, name, permutation) for name in state}
            for state, permutation in zip(
                states, aligned.permutations, strict=True
            )
        ]
        repaired = repair(network, ends, data, weights=shares)
        return (
            _weights(repaired.module, merged),
            "repair",
            repaired.variance_ratio,
        )
    if not batch_norms(network):
        return merged, "none", None
    return _weights(reset_batch_norm(network, data), merged), "reset", None


def _weights(
    module: nn.Module, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The module's weights in the precision of the files."""
    state = module.state_dict()
    return {
        name: state[name].to(tensor.dtype) for name, tensor in like.items()
    }


def measure_models(
    evaluate: Evaluate | None,
    network: nn.Module | None,
    files: Sequence[Checkpoint],
    shares: Sequence[float],
    merged: Mapping[str, Tensor],
) -> dict[str, dict[str, float]]:
    """Metrics of each model, the naive average and the merged network; empty without a network.

    Args:
        evaluate: Computes the metrics.
        network: A private copy, whose weights are overwritten.
        files: The models.
        shares: Share of each model.
        merged: The merged weights.
    """
    if evaluate is None or network is None:
        return {}
    short = len({file.path.name for file in files}) == len(files)
    rows: dict[str, Mapping[str, Tensor]] = {
        file.path.name if short else str(file.path): file.state_dict
        for file in files
    }
    if len(files) > 1:
        rows[NAIVE] = average([file.state_dict for file in files], shares)
    rows[MERGED] = merged
    result = {}
    for name, state in rows.items():
        load(network, state)
        result[name] = {
            metric: float(value)
            for metric, value in evaluate(network.eval()).items()
        }
    return result
