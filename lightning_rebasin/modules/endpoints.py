"""The two ends of the segment that a MergeModule works on.

They are neither parameters nor buffers: they do not change, are not worth saving in every checkpoint, and as buffers
they would be broadcast between processes before every forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.merging.interpolate import check_alike, interpolate
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: Weights as a state dict or as the path of a checkpoint.
Weights = str | Path | Mapping[str, Any]


@final
class Endpoints:
    """Reference, source, and the source under the permutation in use.

    Args:
        model: The network; only names, shapes, dtypes and devices are taken from it.
        reference: Θ_A, a checkpoint's path or a state dict.
        source: Θ_B.

    Raises:
        StateDictError: The weights do not fit the network or each other.
        CheckpointError: A file cannot be read.
    """

    def __init__(
        self, model: nn.Module, reference: Weights, source: Weights
    ) -> None:
        #: Where the reference came from, if from a file.
        self.reference_path = (
            reference if isinstance(reference, str | Path) else None
        )
        self.reference: Mapping[str, Tensor] = read_weights(reference)
        self.source: Mapping[str, Tensor] = read_weights(source)
        check_alike(
            (weights_of(model), self.reference, self.source),
            ("the model", "the reference", "the source"),
        )
        #: Parameters, in the network's order; a tied one appears once.
        self.parameters = tuple(name for name, _ in model.named_parameters())
        self._tensors = frozenset(self.parameters) | {
            name for name, _ in model.named_buffers()
        }
        self._buffers = tuple(
            name
            for name in self.reference
            if name in self._tensors.difference(self.parameters)
        )
        self._aligned: tuple[Transform, dict[str, Tensor]] | None = None
        self.place(model)

    def place(self, model: nn.Module) -> None:
        """Move both ends to the devices and dtypes of the network."""
        like = weights_of(model)
        # A copy, so that nothing the user does to a state dict later reaches the merge.
        self.reference = {
            n: t.detach().to(like[n].device, like[n].dtype, copy=True)
            for n, t in self.reference.items()
        }
        self.source = {
            n: t.detach().to(like[n].device, like[n].dtype, copy=True)
            for n, t in self.source.items()
        }
        self._aligned = None

    def use_gauge(self, spec: PermutationSpec) -> None:
        """Put the reference into canonical gauge, the same function: the source's transforms bring it near to that.

        Args:
            spec: What may be changed; nothing happens if that is permutations only.
        """
        if any(group.kind != "permutation" for group in spec.groups.values()):
            self.reference = spec.canonicalise(self.reference)

    def align(self, permutation: Transform) -> dict[str, Tensor]:
        """The transformed source; the last one is kept, for a projection often changes nothing."""
        if self._aligned is None or self._aligned[0] is not permutation:
            self._aligned = (permutation, permutation.apply(self.source))
        return self._aligned[1]

    def midpoint(
        self, permutation: Transform, lam: float
    ) -> dict[str, Tensor]:
        """``(1 − λ)·reference + λ·permuted source``, every tensor of the state dict."""
        return interpolate(self.reference, permutation.apply(self.source), lam)

    def between(
        self, aligned: Mapping[str, Tensor], lam: float
    ) -> dict[str, Tensor]:
        """Parameters and fresh buffers of the point at λ; differentiable in the parameters.

        Args:
            aligned: The transformed source.
            lam: Where on the segment.
        """
        point = interpolate(
            {name: self.reference[name] for name in self._buffers},
            {name: aligned[name].detach() for name in self._buffers},
            lam,
        )
        for name in self.parameters:
            point[name] = torch.lerp(self.reference[name], aligned[name], lam)
        return point

    def buffers(self, permutation: Transform, lam: float) -> dict[str, Tensor]:
        """Fresh buffers of the point at λ; a forward pass may change them."""
        aligned = self.align(permutation)
        return interpolate(
            {name: self.reference[name] for name in self._buffers},
            {name: aligned[name] for name in self._buffers},
            lam,
        )

    def write_source(self, model: nn.Module) -> nn.Module:
        """Write the source's weights into a network and return it."""
        return _write(model, self.source)

    def write_reference(self, model: nn.Module) -> nn.Module:
        """Write the reference's weights into a network and return it."""
        return _write(model, self.reference)

    def callable_weights(
        self, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors that a functional call needs: tied ones once, metric states and the like left out."""
        return {
            name: tensor
            for name, tensor in weights.items()
            if name in self._tensors
        }


def read_weights(weights: Weights) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint or itself, with the names of the uncompiled network.

    Raises:
        CheckpointError: The file cannot be read.
    """
    state = (
        read_checkpoint(weights).state_dict
        if isinstance(weights, str | Path)
        else weights
    )
    return {
        name.replace("_orig_mod.", ""): tensor
        for name, tensor in state.items()
    }


def _write(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    for name, tensor in weights_of(model).items():
        tensor.copy_(weights[name])
    return model
