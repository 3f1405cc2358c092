"""The first linear layer of a network, evaluated at the two ends only.

A linear layer is affine in its weights: for one input ``x``, ``W(λ)x + b(λ) = (1 − λ)(W_a x + b_a) + λ(W_b x + b_b)``.
The first linear layer of a multilayer perceptron sees the data themselves, which do not depend on λ, so its outputs
between the ends are mixtures of two outputs that are known already.  That saves nearly half of the arithmetic of an
MNIST network.

Nothing is assumed: the input is compared, number by number, with the one at λ = 0, and a layer whose input differs
(there is something trainable before it) is computed as usual.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from lightning_rebasin.landscape.segment import Segment


class FirstLayer:
    """Watches the first linear layer that a module runs.

    Args:
        module: The probe's copy; its linear layers get another ``forward``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._active = False
        self._position: tuple[Segment | None, float] = (None, 0.0)
        self._waiting = False
        self._input: tuple[object, nn.Linear, Tensor] | None = None
        self._ends: dict[str, tuple[object, Tensor]] = {}
        for layer in module.modules():
            if type(layer) is nn.Linear and not is_parametrized(layer):
                layer.forward = partial(self._forward, layer)  # type: ignore[method-assign]

    def start(self, segment: Segment, lam: float) -> None:
        """The next evaluation is at this point; the ends must come before the points between them."""
        self._position, self._active, self._waiting = (segment, lam), True, True

    def stop(self) -> None:
        """Evaluate as usual and forget: another batch, or other weights."""
        self._active, self._input, self._ends = False, None, {}

    def _forward(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if not (self._active and self._waiting) or (torch.is_grad_enabled() and x.requires_grad):
            return functional.linear(x, layer.weight, layer.bias)
        self._waiting = False
        segment, lam = self._position
        assert segment is not None
        if lam == 0.0:
            output = functional.linear(x, layer.weight, layer.bias)
            # Clones: what follows may work in place.  Autocast gives another dtype, whose rounding would be mixed in.
            usable = output.dtype == layer.weight.dtype in (torch.float32, torch.float64)
            self._input = (segment[0], layer, x.clone()) if usable else None
            self._ends = {"a": (segment[0], output.clone())} if usable else {}
            return output
        if not self._seen(segment, layer, x):
            return functional.linear(x, layer.weight, layer.bias)
        if lam == 1.0:
            output = functional.linear(x, layer.weight, layer.bias)
            self._ends["b"] = (segment[1], output.clone())
            return output
        first, last = self._ends.get("a"), self._ends.get("b")
        if first is None or last is None or last[0] is not segment[1]:
            return functional.linear(x, layer.weight, layer.bias)
        return torch.lerp(first[1], last[1], lam)

    def _seen(self, segment: Segment, layer: nn.Linear, x: Tensor) -> bool:
        """Whether λ = 0 of this segment came first, with the same layer and the same input."""
        if self._input is None or self._input[0] is not segment[0] or self._input[1] is not layer:
            return False
        return torch.equal(self._input[2], x)
