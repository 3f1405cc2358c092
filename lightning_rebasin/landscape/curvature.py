"""Derivatives of a loss along a direction of weight space, averaged over batches.

With ``φ(t) = L(θ + t·Δ)`` one backward pass gives the gradient g and the slope ``φ′(0) = g·Δ``; a second one, of the
slope, gives the Hessian–vector product ``H·Δ`` and the curvature ``φ″(0) = Δᵀ·H·Δ``.  No Hessian is ever formed: the
memory is that of a few copies of the weights and of one graph.

What units with a kink (rectifiers, max pooling) add to the curvature is concentrated in points where some unit switches
on or off.  It is in no Hessian–vector product; slopes see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.landscape.differentiable import (
    DifferentiableLoss,
    derivative,
    differentiating,
)
from lightning_rebasin.landscape.layers import Layers
from lightning_rebasin.landscape.points import State


@dataclass(frozen=True)
class Derivatives:
    """A loss and its derivatives along a direction at one place.

    Args:
        loss: φ.
        slope: φ′, the gradient times the direction.
        curvature: φ″, the direction times the Hessian times the direction.
        layer_slopes: The part of the slope that each layer has.
        layer_curvatures: ``Δ_lᵀ H_ll Δ_l``: the curvature with only layer l moving.  They do not add up to φ″, which
            has terms between layers too.
        squares: For every parameter whose gradient was wanted its squared length.
    """

    loss: float
    slope: float
    curvature: float
    layer_slopes: Mapping[str, float] = field(default_factory=dict)
    layer_curvatures: Mapping[str, float] = field(default_factory=dict)
    squares: Mapping[str, float] = field(default_factory=dict)


@final
class DerivativeAverages:
    """Derivatives of a loss along one direction at one place, batch by batch.

    Args:
        loss: The loss.
        direction: Δ by name, over the tensors that ``loss.variables`` knows; those that it lacks do not move.
        layers: Layers that are moved by themselves too.
        gradient: Tensors of the state whose mean gradient is wanted, by name.
    """

    def __init__(
        self,
        loss: DifferentiableLoss,
        direction: State,
        layers: Layers | None = None,
        gradient: State | None = None,
    ) -> None:
        self._loss = loss
        self._direction = direction
        self._layers = layers or {}
        self._wanted = gradient or {}
        #: Sums over samples.
        self._sums: dict[str, float] = {}
        self._gradients: dict[str, Tensor] = {}
        self.samples = 0
        # Every process has the same keys, also one without a batch.
        for layer in ("", *self._layers):
            self._sums[_key("slope", layer)] = 0.0
            self._sums[_key("curvature", layer)] = 0.0
        self._sums["loss"] = 0.0

    def update(self, state: State, batch: Any) -> None:
        """Add one batch.

        Args:
            state: Where the derivatives are taken: the same weights at every call.
            batch: What ``loss.ready`` returned.

        Raises:
            ConfigurationError: The loss cannot be differentiated twice.
        """
        size = batch_size(batch)
        with differentiating():
            variables = self._loss.variables(state)
            value = self._loss.at(variables, state, batch)
            slopes = derivative(value, list(variables.values()), graph=True)
            gradient = dict(zip(variables, slopes, strict=True))
            self._add("loss", value, size)
            self._add_curvature("", list(variables), variables, gradient, size)
            for layer, names in self._layers.items():
                own = [name for name in names if name in variables]
                self._add_curvature(layer, own, variables, gradient, size)
            for name in self._wanted:
                share = gradient[name].detach() * size
                known = self._gradients.get(name)
                self._gradients[name] = (
                    share if known is None else known + share
                )
        self.samples += size

    def mean(
        self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> Derivatives:
        """The averages over all batches.

        Args:
            total: Sums a tensor over processes that have batches of their own; collective.

        Raises:
            DataError: There was no batch.
        """
        keys = list(self._sums)
        # One tensor for all numbers, so that processes meet once.
        own = [self._sums[key] for key in keys] + [float(self.samples)]
        device = self._loss.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        sums = total(torch.tensor(own, dtype=wide, device=device)).tolist()
        samples = sums.pop()
        if not samples:
            raise DataError("no derivatives: there is no batch")
        found = {}
        for key, value in zip(keys, sums, strict=True):
            found[key] = value / samples
        squares = {}
        for name, like in self._wanted.items():
            # A process without a batch takes part all the same.
            own_sum = self._gradients.get(name)
            if own_sum is None:
                own_sum = torch.zeros_like(like, device=device)
            mean = total(own_sum) / samples
            squares[name] = float(mean.double().square().sum())
        return Derivatives(
            found["loss"],
            found[_key("slope", "")],
            found[_key("curvature", "")],
            {layer: found[_key("slope", layer)] for layer in self._layers},
            {layer: found[_key("curvature", layer)] for layer in self._layers},
            squares,
        )

    def _add_curvature(
        self,
        layer: str,
        names: Sequence[str],
        variables: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        size: int,
    ) -> None:
        """Slope and curvature with only the named tensors moving."""
        moving = [name for name in names if name in self._direction]
        slope = self._product(gradient, moving)
        leaves = [variables[name] for name in moving]
        # The same graph serves the next layer.
        turned = derivative(slope, leaves, keep=True) if leaves else ()
        curvature = self._product(
            dict(zip(moving, turned, strict=True)), moving
        )
        self._add(_key("slope", layer), slope, size)
        self._add(_key("curvature", layer), curvature, size)

    def _product(
        self, gradient: Mapping[str, Tensor], names: Sequence[str]
    ) -> Tensor:
        """The inner product with the direction."""
        total = torch.zeros((), device=self._loss.device)
        for name in names:
            own = self._direction[name].to(gradient[name])
            total = total + (gradient[name] * own).sum()
        return total

    def _add(self, key: str, value: Tensor, size: int) -> None:
        self._sums[key] += float(value.detach()) * size


def _key(what: str, layer: str) -> str:
    """One of a layer, or of the whole network."""
    return f"{what} {layer}"


def difference(a: State, b: State) -> dict[str, Tensor]:
    """The direction ``b − a`` over the floating-point tensors that differ.

    Args:
        a: Weights.
        b: Weights of the same names and shapes.

    Example:
        >>> a, b = ({"w": torch.tensor([x]), "n": torch.tensor(3)} for x in (1.0, 3.0))
        >>> difference(a, b)
        {'w': tensor([2.])}
    """
    found = {}
    for name, tensor in a.items():
        other = b[name].to(tensor.device)
        if tensor.is_floating_point() and not torch.equal(tensor, other):
            found[name] = other - tensor
    return found
