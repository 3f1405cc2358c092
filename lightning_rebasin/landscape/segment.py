"""The weights of a module, and points between two sets of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_rebasin.merging.interpolate import check_alike, interpolate

#: One segment: weights at λ = 0 and at λ = 1.
Segment = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
_COMPILED = "_orig_mod."


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module by the names that checkpoints use; the tensors share the module's storage.

    Compiled submodules add ``_orig_mod.`` to their names, which is taken out.  Persistent states of metrics are not
    weights and are left out.
    """
    metrics = tuple(
        f"{name}."
        for name, child in module.named_modules()
        if isinstance(child, (Metric, MetricCollection))
    )
    return {
        name.replace(_COMPILED, ""): tensor.detach()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not name.startswith(metrics)
    }


def write_interpolation(
    targets: Mapping[str, Tensor],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    lam: float,
) -> None:
    """Write ``(1 − λ)·a + λ·b`` into ``targets``, tensor by tensor, without a third copy of the weights."""
    with torch.no_grad():
        for name, target in targets.items():
            first, second = a[name], b[name]
            if lam in (0.0, 1.0):
                target.copy_(second if lam else first)
            elif target.dtype == first.dtype == second.dtype and target.dtype in (
                torch.float32,
                torch.float64,
            ):
                torch.lerp(first, second, lam, out=target)
            else:
                target.copy_(interpolate({name: first}, {name: second}, lam)[name])


def check_segment(
    module: nn.Module, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> None:
    """Raise :class:`~lightning_rebasin.StateDictError` unless both states fit the module."""
    check_alike((weights_of(module), a, b), ("the module", "a (λ = 0)", "b (λ = 1)"))


def without_compilation_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the uncompiled module has them."""
    return {name.replace(_COMPILED, ""): tensor for name, tensor in state.items()}
