"""The first linear layer of a network, evaluated at the anchors only.

A linear layer is affine in its weights: for one input ``x`` and coefficients that sum to 1,
``W(c)x + b(c) = Σ_i c_i (W_i x + b_i)``.  The first linear layer of a multilayer perceptron sees the data themselves,
which do not depend on the weights, so its outputs between the anchors are mixtures of outputs that are known already.
That saves nearly half of the arithmetic of an MNIST network.  An anchor that is not among the points, such as the bend
of a Bézier curve, is asked for its first layer alone.

Nothing is assumed: the input is compared, number by number, with the one at the first anchor, and a layer whose input
differs (there is something trainable before it) is computed as usual.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from lightning_rebasin.landscape.points import Point, State, combine_into


class FirstLayer:
    """Watches the first linear layer that a module runs.

    Args:
        module: The probe's copy; its linear layers get another ``forward``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._point: Point | None = None
        self._waiting = False
        self._input: tuple[nn.Linear, Tensor] | None = None
        #: Outputs at the anchors, with the anchors, which are told apart by identity.
        self._known: dict[int, tuple[State, Tensor]] = {}
        self._own: dict[nn.Linear, tuple[Tensor, ...]] = {}
        self._names: dict[nn.Linear, str] = {}
        self._versions: dict[nn.Linear, list[int]] = {}
        for name, layer in module.named_modules():
            if type(layer) is nn.Linear and _is_affine(layer):
                self._names[layer] = f"{name}." if name else ""
                self._own[layer] = tuple(layer.parameters())
                # Of this one layer; the class keeps its own.
                vars(layer)["forward"] = partial(self._forward, layer)

    def start(self, point: Point) -> None:
        """The next evaluation is at this point; the anchors must come before the points between them."""
        self._point, self._waiting = point, True
        for layer, own in self._own.items():
            self._versions[layer] = [parameter._version for parameter in own]

    def stop(self) -> None:
        """Evaluate as usual and forget: another batch, or other weights."""
        self._point, self._input = None, None
        self._known = {}

    def _forward(self, layer: nn.Linear, x: Tensor) -> Tensor:
        point = self._point if self._waiting else None
        self._waiting = False
        gradient = torch.is_grad_enabled() and x.requires_grad
        if point is None or gradient or not self._loaded(layer):
            return functional.linear(x, layer.weight, layer.bias)
        known = self._mixed(point, layer, x)
        if known is not None:
            return known
        output = functional.linear(x, layer.weight, layer.bias)
        # Looked at again: a hook may have changed the weights meanwhile.
        if self._loaded(layer):
            self._remember(point, layer, x, output)
        return output

    def _mixed(
        self, point: Point, layer: nn.Linear, x: Tensor
    ) -> Tensor | None:
        """The output between the anchors, if it can be known at all of them for this input."""
        if point.anchor is not None or not self._seen(layer, x):
            return None
        outputs = []
        for anchor, _ in point.parts:
            known = self._at_anchor(anchor, layer, x)
            if known is None:
                return None
            outputs.append(known)
        result = torch.empty_like(outputs[0])
        combine_into(
            result, outputs, [coefficient for _, coefficient in point.parts]
        )
        return result

    def _at_anchor(
        self, anchor: State, layer: nn.Linear, x: Tensor
    ) -> Tensor | None:
        """The output at an anchor: remembered, or made now if nobody asked for this anchor before."""
        known = self._known.get(id(anchor))
        if known is None:
            given = _parameters_at(anchor, layer, self._names[layer])
            if given is None:
                return None
            output = functional.linear(x, *given)
            if output.dtype != layer.weight.dtype:
                return None
            known = self._known[id(anchor)] = (anchor, output)
        return known[1]

    def _remember(
        self, point: Point, layer: nn.Linear, x: Tensor, output: Tensor
    ) -> None:
        """Keep what the layer gave at an anchor.  Clones: what follows may work in place."""
        anchor = point.anchor
        # Autocast gives another dtype, whose rounding would be mixed in.
        exact = (
            output.dtype
            == layer.weight.dtype
            in (torch.float32, torch.float64)
        )
        if anchor is None or not exact:
            return
        if self._input is None:
            self._input = (layer, x.clone())
        if self._seen(layer, x):
            self._known[id(anchor)] = (anchor, output.clone())

    def _loaded(self, layer: nn.Linear) -> bool:
        """Whether the layer still has the weights of the point: a step may replace them, or change them in place."""
        now, own = tuple(layer.parameters()), self._own[layer]
        if len(now) != len(own) or layer.weight is not own[0]:
            return False
        same = all(a is b for a, b in zip(now, own, strict=True))
        return same and [p._version for p in own] == self._versions[layer]

    def _seen(self, layer: nn.Linear, x: Tensor) -> bool:
        """Whether the first anchor had the same layer and the same input."""
        if self._input is None or self._input[0] is not layer:
            return False
        return torch.equal(self._input[1], x)


def _parameters_at(
    anchor: State, layer: nn.Linear, prefix: str
) -> list[Tensor] | None:
    """Weight and bias of a layer at an anchor, ``None`` if they are not there in the layer's own dtype and place."""
    found = []
    for name, own in layer.named_parameters():
        tensor = anchor.get(f"{prefix}{name}")
        if (
            tensor is None
            or tensor.dtype != own.dtype
            or tensor.device != own.device
        ):
            return None
        found.append(tensor)
    return found


def _is_affine(layer: nn.Linear) -> bool:
    """Whether the layer's own weights are mixed: those of parametrizations and weight_norm come from others."""
    return not is_parametrized(layer) and "weight" in layer._parameters
