"""Bringing several models of one architecture into one frame, and proving that they compute what they computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching import (
    ManyMatchResult,
    MatchResult,
    match_many,
    match_weights,
)
from lightning_rebasin.matching.activation import (
    STATISTICS,
    Statistic,
    match_by_statistics,
)
from lightning_rebasin.matching.search.journal import Journal
from lightning_rebasin.merging.statistics import copied, moved_to
from lightning_rebasin.symmetry import PermutationSpec, Transform
from lightning_rebasin.symmetry.proof.gate import check_in_place
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.run.hollow import fill
from lightning_rebasin.symmetry.run.lightning import few
from lightning_rebasin.symmetry.trace.batch_example import batch_example

Method = Literal[
    "auto", "weight", "activation", "correlation", "average", "none"
]
Many = Literal["merge_many", "cycle_consistent"]


@dataclass(frozen=True)
class Aligned:
    """Models brought near the first one.

    Args:
        permutations: One per model, ``None`` where nothing moves.
        matches: One result per model but the first if they were matched to it one by one.
        many: The result if all were matched at once.
        errors: Relative output error of each permuted model; empty if there was no module.
    """

    permutations: tuple[Transform | None, ...]
    matches: tuple[MatchResult, ...] = ()
    many: ManyMatchResult | None = None
    errors: tuple[float, ...] = ()

    @property
    def objectives(self) -> list[tuple[float, float]]:
        """Matching objective before and after."""
        results = self.matches if self.many is None else (self.many,)
        return [
            (result.identity_objective, result.objective) for result in results
        ]


def align(
    spec: PermutationSpec,
    states: Sequence[Mapping[str, Tensor]],
    method: Method,
    many: Many,
    shares: Sequence[float],
    *,
    network: nn.Module | None,
    data: Iterable[Any] | None,
    seed: int,
    progress: bool,
    journal: Callable[[int], Journal] | None = None,
) -> Aligned:
    """Match every model to the first, or three and more by weights all to one another.

    Args:
        spec: What may be permuted.
        states: The models' weights.
        method: ``"weight"``; ``"activation"`` or ``"correlation"``; anything else leaves the models as they are.
        many: How three or more models are matched by weights.
        shares: Weight of each model.
        network: A copy of the network, for activation matching.
        data: Batches, for activation matching.
        seed: Seeds the matching.
        progress: Show progress bars.
        journal: Makes the journal of the matching of each model but the first, where they are matched one by one.

    Raises:
        ConfigurationError: Activation matching without network or data.
    """
    pure = all(group.kind == "permutation" for group in spec.groups.values())
    if method == "weight" and len(states) > 2 and pure:
        result = match_many(
            spec,
            states,
            method=many,
            weights=shares,
            seed=seed,
            progress=progress,
        )
        return Aligned((None, *result.permutations[1:]), many=result)
    if method in STATISTICS:
        return align_by_activations(
            spec, states, (method,), network=network, data=data
        )[method]
    if method != "weight":
        return Aligned((None,) * len(states))
    found = []
    for number, state in enumerate(states[1:], 1):
        found.append(
            match_weights(
                spec,
                states[0],
                state,
                seed=seed,
                progress=progress,
                journal=None if journal is None else journal(number),
            )
        )
    return _together(found)


def align_by_activations(
    spec: PermutationSpec,
    states: Sequence[Mapping[str, Tensor]],
    methods: Sequence[Method],
    *,
    network: nn.Module | None,
    data: Iterable[Any] | None,
) -> dict[Method, Aligned]:
    """:func:`align` for several statistics of the activations; the networks run once for all of them."""
    statistics = [STATISTICS[method] for method in methods]
    found = []
    for state in states[1:]:
        found.append(
            match_by_activations(
                spec,
                network,
                states[0],
                state,
                data,
                statistics=statistics,
            )
        )
    return {
        method: _together([matches[statistic] for matches in found])
        for method, statistic in zip(methods, statistics, strict=True)
    }


def _together(matches: Sequence[MatchResult]) -> Aligned:
    """All models that were matched to the first one by one."""
    permutations = [match.transform for match in matches]
    return Aligned((None, *permutations), tuple(matches))


def match_by_activations(
    spec: PermutationSpec,
    network: nn.Module | None,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    data: Iterable[Any] | None,
    *,
    statistics: Sequence[Statistic] = ("inner_product",),
) -> dict[Statistic, MatchResult]:
    """Activation matching of two sets of weights of one network, by one statistic or several.

    Raises:
        ConfigurationError: There is no network or no data.
    """
    if network is None or data is None:
        raise ConfigurationError(
            "activation matching runs the network on data: give --module and --data"
        )
    ends = []
    for state in (reference, source):
        end = copied(network)
        load(end, state)
        ends.append(end)
    batches = (
        moved_to(
            network, batch[0] if isinstance(batch, tuple | list) else batch
        )
        for batch in data
    )
    return match_by_statistics(spec, ends[0], ends[1], batches, statistics)


def prove(
    network: nn.Module | None,
    states: Sequence[Mapping[str, Tensor]],
    permutations: Sequence[Transform | None],
    data: Iterable[Any] | None,
    example: Any,
) -> tuple[float, ...]:
    """The gate: relative output error of every permuted model in float64; empty without a network.

    Args:
        network: A private copy of the network; its weights are overwritten.
        states: The models' weights.
        permutations: One per model, ``None`` where nothing moves.
        data: Batches, of which the first may serve as the example.
        example: Example input, see :func:`example_input`.

    Raises:
        EquivalenceError: A permuted model computes another function.
    """
    errors = []
    for state, permutation in zip(states, permutations, strict=True):
        if network is not None and permutation is not None:
            load(network, state)
            errors.append(
                check_in_place(
                    network,
                    permutation,
                    *example_input(network, example, data),
                )
            )
    return tuple(errors)


def load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write weights into a private copy, released or not."""
    fill(network)
    network.load_state_dict(state)
    for part in network.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()


def example_input(
    module: nn.Module, example: Any, data: Iterable[Any] | None
) -> tuple[Any, ...]:
    """Arguments for one run in the module's precision.

    What was given comes first, then a few samples of the data (through ``validation_step`` where ``forward`` does not
    take them), then the module's ``example_input_array``, with random numbers in the place of a constant array (people
    write ``torch.zeros``), on which a network may have nothing to say.

    Raises:
        ConfigurationError: There is none anywhere.
    """
    own = getattr(module, "example_input_array", None)
    if example is not None:
        several = isinstance(example, tuple | list)
        given = tuple(example) if several else (example,)
        return tuple(_own(module, argument) for argument in given)
    batch = next(iter(data), None) if data is not None else None
    first = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(first, Tensor) or (batch is not None and own is None):
        found = batch_example(module, _own(module, few(batch, 8)))
        return (_own(module, found),)
    if own is None:
        raise ConfigurationError(
            f"{type(module).__name__} has no example_input_array: set it, or give an example input (--input-shape), or "
            "data where the command takes them (--data)"
        )
    if _is_constant(own):
        generator = torch.Generator().manual_seed(0)
        return (_own(module, torch.randn(own.shape, generator=generator)),)
    return ()


def _is_constant(value: Any) -> bool:
    """Whether this is a tensor of one number, as in ``torch.zeros``: a network may have nothing to say on it."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return bool((value == value.flatten()[0]).all())


def _own(module: nn.Module, value: Any) -> Any:
    """All tensors of an argument, a batch or an example on the device and in the precision of the module."""
    if isinstance(value, Example):
        return replace(
            value,
            args=_own(module, value.args),
            kwargs=_own(module, dict(value.kwargs)),
        )
    return tree_map_only(
        Tensor, lambda tensor: moved_to(module, tensor), value
    )
