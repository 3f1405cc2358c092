"""Classifiers of different label sets in one network: their heads side by side.

The head is the layer whose output is the network's output.  In the merged network it has as many outputs as all heads
together, and everything in front of it is merged as ever.  Each model becomes one of that wide network: its own rows
of the head stand where its classes are, all other rows are zero.

The merge mixes the models with shares that sum to one, so that a row of one model would come out multiplied by that
model's share.  Its rows are divided by the share beforehand.  Then the mix of the rows is the model's own head, and
the mix of the outputs, to which the refit fits and by which ways to merge are judged, is ``[A(x), B(x), ...]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.checkpoints.head_layer import CONVOLUTIONS, find_head
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.errors import ConfigurationError

#: Under this key Lightning keeps the arguments that ``load_from_checkpoint`` makes the module with.
_ARGUMENTS = "hyper_parameters"
#: What people call the number of classes.
_COUNT = re.compile(r"class|label|output|target|(^|_)(out|nc)(_|$)", re.I)


@dataclass(frozen=True)
class Heads:
    """The heads of several models in one.

    Args:
        layer: Name of the head in the network.
        sizes: Number of outputs of each model.
        parameter: The hyper-parameter that says how many outputs there are; empty if none is known to.

    Example:
        >>> Heads("fc", (3, 2)).ranges
        ((0, 2), (3, 4))
    """

    layer: str
    sizes: tuple[int, ...]
    parameter: str = ""

    @property
    def total(self) -> int:
        """Number of outputs of the wide head."""
        return sum(self.sizes)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and last output of each model."""
        found = []
        first = 0
        for size in self.sizes:
            found.append((first, first + size - 1))
            first += size
        return tuple(found)

    @property
    def tensors(self) -> tuple[str, str]:
        """Names of what gets more rows."""
        front = f"{self.layer}." if self.layer else ""
        return f"{front}weight", f"{front}bias"

    def described(self, names: Sequence[str]) -> str:
        """Which outputs are whose classes, in a line."""
        parts = []
        for (first, last), name in zip(self.ranges, names, strict=True):
            numbers = f"{first}-{last}" if last > first else f"{first}"
            parts.append(f"{numbers}: {name}")
        return f"outputs {', '.join(parts)}"

    def widen(self, network: nn.Module) -> None:
        """Give a private copy of the network the wide head, whatever the size of its own."""
        head = network.get_submodule(self.layer)
        for name in ("weight", "bias"):
            old = getattr(head, name)
            if old is None:
                continue
            # Rows that are there already, so that the numbers are ordinary ones.
            rows = torch.arange(self.total, device=old.device) % len(old)
            wide = old.detach()[rows].clone()
            setattr(head, name, nn.Parameter(wide, old.requires_grad))
        convolution = isinstance(head, CONVOLUTIONS)
        size = "out_channels" if convolution else "out_features"
        setattr(head, size, self.total)

    def files(self, files: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
        """The models as models of the wide network; the first file says how many outputs that has."""
        found = []
        for i, file in enumerate(files):
            wide = self._extended(file.state_dict, i)
            found.append(replace(file, state_dict=wide))
        found[0] = replace(found[0], metadata=self._renewed(files[0].metadata))
        return tuple(found)

    def scaled(
        self, states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]
    ) -> list[Mapping[str, Tensor]]:
        """Wide models whose rows of the head come out as they were when the models are mixed."""
        found: list[Mapping[str, Tensor]] = []
        for state, share in zip(states, shares, strict=True):
            changed = dict(state)
            for name in self.tensors:
                if name in state:
                    changed[name] = state[name] / share
            found.append(changed)
        return found

    def trunks(
        self, states: Sequence[Mapping[str, Tensor]]
    ) -> list[Mapping[str, Tensor]]:
        """The models without their heads, which have nothing to do with one another."""
        return [
            {n: t for n, t in state.items() if n not in self.tensors}
            for state in states
        ]

    def checked(
        self, evaluate: Callable[[nn.Module], Mapping[str, float]]
    ) -> Callable[[nn.Module], Mapping[str, float]]:
        """The same evaluation, which says what to do if it cannot take so many outputs."""

        def evaluated(network: nn.Module) -> Mapping[str, float]:
            try:
                return evaluate(network)
            except Exception as error:
                raise ConfigurationError(
                    f"evaluating the network with {self.total} outputs failed ({type(error).__name__}: {error}): give "
                    f"a module that is made for {self.total} classes (--init-args), so that its metrics know them all, "
                    "and number the labels like the outputs"
                ) from error

        return evaluated

    def _extended(
        self, state: Mapping[str, Tensor], model: int
    ) -> dict[str, Tensor]:
        """One model's weights with zeros for the classes of the others."""
        wide = dict(state)
        first, last = self.ranges[model]
        for name in self.tensors:
            if name in state:
                own = state[name]
                rows = own.new_zeros((self.total, *own.shape[1:]))
                rows[first : last + 1] = own
                wide[name] = rows
        return wide

    def _renewed(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """The metadata of a file with the new number of outputs."""
        if not self.parameter:
            return metadata
        arguments = {**metadata[_ARGUMENTS], self.parameter: self.total}
        return {**metadata, _ARGUMENTS: arguments}


def join_heads(
    network: nn.Module,
    inputs: Sequence[Any],
    files: Sequence[Checkpoint],
    *,
    keeps_arguments: bool,
) -> Heads:
    """Find the head and how many outputs each model has.

    Args:
        network: The network.
        inputs: Arguments for one run; none if it has an ``example_input_array``.
        files: The models.
        keeps_arguments: Whether the output keeps the hyper-parameters of the first file.

    Returns:
        The heads; nothing was changed.

    Raises:
        ConfigurationError: No layer's output is the network's output, or its weight cannot get more rows.
    """
    layer = find_head(network, inputs)
    heads = Heads(layer, ())
    weight = heads.tensors[0]
    sizes = tuple(len(file.state_dict[weight]) for file in files)
    parameter = ""
    if keeps_arguments:
        parameter = _counting(files[0].metadata, sizes[0])
    return replace(heads, sizes=sizes, parameter=parameter)


def _counting(metadata: Mapping[str, Any], size: int) -> str:
    """The only hyper-parameter that is called and counts like the number of classes; empty if there is none."""
    arguments = metadata.get(_ARGUMENTS)
    if not isinstance(arguments, Mapping):
        return ""
    found = []
    for name, value in arguments.items():
        counts = type(value) is int and value == size
        if counts and isinstance(name, str) and _COUNT.search(name):
            found.append(name)
    return found[0] if len(found) == 1 else ""
