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
        self._own: dict[nn.Linear, tuple[Tensor, ...]] = {}
        self._versions: dict[nn.Linear, list[int]] = {}
        for layer in module.modules():
            # Weights that are computed from others (parametrizations, weight_norm) are no affine function of λ.
            if (
                type(layer) is nn.Linear
                and not is_parametrized(layer)
                and "weight" in layer._parameters
            ):
                self._own[layer] = tuple(layer.parameters())
                layer.forward = partial(self._forward, layer)  # type: ignore[method-assign]

    def start(self, segment: Segment, lam: float) -> None:
        """The next evaluation is at this point; the ends must come before the points between them."""
        self._position, self._active, self._waiting = (segment, lam), True, True
        self._versions = {
            layer: [p._version for p in own] for layer, own in self._own.items()
        }

    def stop(self) -> None:
        """Evaluate as usual and forget: another batch, or other weights."""
        self._active, self._input, self._ends = False, None, {}

    def _forward(self, layer: nn.Linear, x: Tensor) -> Tensor:
        first, self._waiting = self._active and self._waiting, False
        gradient = torch.is_grad_enabled() and x.requires_grad
        known = (
            self._mixed(layer, x)
            if first and not gradient and self._loaded(layer)
            else None
        )
        if known is not None:
            return known
        output = functional.linear(x, layer.weight, layer.bias)
        if first and not gradient and self._loaded(layer):
            self._remember(layer, x, output)
        return output

    def _mixed(self, layer: nn.Linear, x: Tensor) -> Tensor | None:
        """The output between the ends, if both are known for this input."""
        segment, lam = self._position
        first, last = self._ends.get("a"), self._ends.get("b")
        if (
            segment is None
            or lam in (0.0, 1.0)
            or first is None
            or last is None
            or last[0] is not segment[1]
        ):
            return None
        return (
            torch.lerp(first[1], last[1], lam)
            if self._seen(segment, layer, x)
            else None
        )

    def _remember(self, layer: nn.Linear, x: Tensor, output: Tensor) -> None:
        """Keep what the layer gave at an end.  Clones: what follows may work in place."""
        segment, lam = self._position
        # Autocast gives another dtype, whose rounding would be mixed in.
        exact = output.dtype == layer.weight.dtype in (torch.float32, torch.float64)
        if segment is None or not exact:
            return
        if lam == 0.0:
            self._input = (segment[0], layer, x.clone())
            self._ends = {"a": (segment[0], output.clone())}
        elif lam == 1.0 and self._seen(segment, layer, x):
            self._ends["b"] = (segment[1], output.clone())

    def _loaded(self, layer: nn.Linear) -> bool:
        """Whether the layer still has the weights of the point: a step may replace them, or change them in place."""
        now, own = tuple(layer.parameters()), self._own[layer]
        same = len(now) == len(own) and all(
            a is b for a, b in zip(now, own, strict=True)
        )
        return (
            same
            and layer.weight is own[0]
            and [p._version for p in own] == self._versions[layer]
        )

    def _seen(self, segment: Segment, layer: nn.Linear, x: Tensor) -> bool:
        """Whether λ = 0 of this segment came first, with the same layer and the same input."""
        if (
            self._input is None
            or self._input[0] is not segment[0]
            or self._input[1] is not layer
        ):
            return False
        return torch.equal(self._input[2], x)
