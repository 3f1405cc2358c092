"""The stages of a merge that run the network: statistics of the merged weights, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_rebasin.checkpoints.advice import ENSEMBLE, MERGED, NAIVE
from lightning_rebasin.checkpoints.align import Aligned, load
from lightning_rebasin.checkpoints.average import permuted
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.checkpoints.report import shortest_names
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.merging.interpolate import average
from lightning_rebasin.merging.repair import repair
from lightning_rebasin.merging.statistics import (
    batch_norms,
    copied,
    reset_batch_norm,
)

#: Metrics of a network by name.
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def correct(
    network: nn.Module | None,
    merged: dict[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    aligned: Aligned,
    shares: Sequence[float],
    *,
    statistics: str,
    data: Iterable[Any] | None,
) -> tuple[dict[str, Tensor], str, tuple[float, float] | None]:
    """Weights with corrected statistics, what was done, and the variance ratios."""
    if network is None or data is None or statistics in ("none", "naive"):
        return merged, "none", None
    if statistics == "refit":
        raise ConfigurationError(
            f"a refit runs {type(network).__name__} on the batches, but its forward does not take them: give batches "
            "whose first item is the input, or dicts with the names of forward's arguments"
        )
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
            own_weights(repaired.module, merged),
            "repair",
            repaired.variance_ratio,
        )
    if not batch_norms(network):
        return merged, "none", None
    return own_weights(reset_batch_norm(network, data), merged), "reset", None


def own_weights(
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
    *,
    states: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    merged: Mapping[str, Tensor],
) -> dict[str, dict[str, float]]:
    """Metrics of each model, the naive average, the merged network and the ensemble; empty without a network.

    Args:
        evaluate: Computes the metrics.
        network: A private copy, whose weights are overwritten.
        files: The models.
        states: Their weights as they are mixed, which is not how they are alone where heads stand side by side.
        shares: Share of each model.
        merged: The merged weights.
    """
    if evaluate is None or network is None:
        return {}
    names = shortest_names([file.path for file in files])
    rows: dict[str, Mapping[str, Tensor]] = {}
    for name, file in zip(names, files, strict=True):
        rows[name] = file.state_dict
    if len(files) > 1:
        rows[NAIVE] = average(states, shares)
    rows[MERGED] = merged
    result = {}
    for name, state in rows.items():
        load(network, state)
        result[name] = _measured(evaluate, network)
    if len(files) > 1:
        together = _ensemble(evaluate, network, states, shares)
        if together is not None:
            result[ENSEMBLE] = together
    return result


def _measured(evaluate: Evaluate, network: nn.Module) -> dict[str, float]:
    metrics = evaluate(network.eval())
    return {name: float(value) for name, value in metrics.items()}


def _ensemble(
    evaluate: Evaluate,
    network: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
) -> dict[str, float] | None:
    """Metrics of the mean of the models' outputs; ``None`` if what is measured does not go through ``forward``.

    One network computes all outputs in turn, so that no more than one more model is in memory.
    """
    member = copied(network)
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        outputs = []
        for state in states:
            load(member, state)
            outputs.append(member(*args, **kwargs))
        return _mean(outputs, shares)

    # On the instance: calling a module looks its forward up there first.
    network.__dict__["forward"] = forward
    try:
        found = _measured(evaluate, network)
    finally:
        del network.__dict__["forward"]
    return found if calls else None


def _mean(outputs: Sequence[Any], shares: Sequence[float]) -> Any:
    """The mix of some outputs of one structure; what cannot be mixed is the first one's."""

    def mix(*parts: Any) -> Any:
        first = parts[0]
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return first
        mixed = zip(parts, shares, strict=True)
        return sum(part * share for part, share in mixed)

    return tree_map(mix, outputs[0], *outputs[1:])
