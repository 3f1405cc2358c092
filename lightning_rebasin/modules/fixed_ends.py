"""The trained models that a path joins: they stay as they are, but for the order of their units.

Like the ends of a MergeModule they are neither parameters nor buffers.  The network that computes the losses needs no
weights of its own, so its parameters share the memory of the first end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError, NonFiniteError
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.merging.interpolate import average, check_alike
from lightning_rebasin.modules.endpoints import Weights, read_weights
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@final
class FixedEnds:
    """Two or more sets of weights, and the permutations under which they are seen.

    Args:
        model: The network; names, shapes, dtypes and devices are taken from it.
        ends: Paths of checkpoints or state dicts.

    Raises:
        ConfigurationError: There are fewer than two ends.
        StateDictError: An end does not fit the network.
        NonFiniteError: A weight is NaN or infinite.
        CheckpointError: A file cannot be read.
    """

    def __init__(self, model: nn.Module, ends: Sequence[Weights]) -> None:
        # A single path or state dict is a sequence of something, too.
        alone = not isinstance(ends, list | tuple)
        if alone or len(ends) < 2:
            raise ConfigurationError(
                "ends must be a list of two sets of weights or more, each the path of a checkpoint or a state dict"
            )
        found = [read_weights(end) for end in ends]
        names = [f"end {number}" for number in range(len(found))]
        check_alike((weights_of(model), *found), ("the model", *names))
        # Copies, so that nothing the user does to a state dict later reaches the path.
        self.states: list[dict[str, Tensor]] = [
            {n: t.detach().clone() for n, t in state.items()}
            for state in found
        ]
        for name, state in zip(names, self.states, strict=True):
            _check_finite(name, state)
        self.permutations: list[Permutation | None] = [None] * len(found)
        self.place(model)

    def __len__(self) -> int:
        return len(self.states)

    def place(self, model: nn.Module) -> None:
        """Move all ends to the devices and dtypes of the network, whose parameters then share the first one's memory.

        Args:
            model: The private copy that computes the losses.
        """
        like = weights_of(model)
        for number, state in enumerate(self.states):
            self.states[number] = {
                name: tensor.to(like[name].device, like[name].dtype)
                for name, tensor in state.items()
            }
        for name, parameter in model.named_parameters():
            parameter.data = self.states[0][name]

    def holds(self, point: Point) -> bool:
        """Whether a point is one of the ends."""
        return any(point.anchor is state for state in self.states)

    def permute(self, number: int, permutation: Permutation) -> None:
        """See an end under a permutation of its original weights.

        Args:
            number: Which end.
            permutation: Applies to the weights as they were given.
        """
        state = self.original(number)
        self.states[number] = permutation.apply(state)
        self.permutations[number] = permutation

    def original(self, number: int) -> dict[str, Tensor]:
        """An end as it was given: permuting back moves numbers and changes none."""
        before = self.permutations[number]
        if before is None:
            return self.states[number]
        return dict(before.inverse().apply(self.states[number]))

    def average(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The mean of the named tensors over all ends."""
        names = list(names)
        return average([{n: end[n] for n in names} for end in self.states])

    def to_state(self) -> list[dict[str, Any] | None]:
        """The permutations as tensors, texts and numbers that load with ``weights_only=True``."""
        return [None if p is None else packed(p) for p in self.permutations]

    def load_state(self, state: Sequence[dict[str, Any] | None]) -> None:
        """Inverse of :meth:`to_state`.

        Raises:
            ConfigurationError: There are another number of ends.
        """
        if len(state) != len(self.states):
            raise ConfigurationError(
                f"the checkpoint belongs to a path through {len(state)} ends, not {len(self.states)}"
            )
        for number, kept in enumerate(state):
            if kept is not None:
                self.permute(number, unpacked(kept))


def packed(permutation: Permutation) -> dict[str, Any]:
    """A permutation with its spec as tensors, texts and numbers."""
    return {
        "spec": permutation.spec.to_dict(),
        "orders": dict(permutation.orders),
    }


def unpacked(state: Mapping[str, Any]) -> Permutation:
    """Inverse of :func:`packed`."""
    spec = PermutationSpec.from_dict(state["spec"])
    return Permutation(spec, state["orders"])


def _check_finite(name: str, state: dict[str, Tensor]) -> None:
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{name}: tensor {key!r} holds NaN or infinity"
            )
