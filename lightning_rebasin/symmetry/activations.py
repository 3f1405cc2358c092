"""Where the units of a group can be observed while the network runs.

Units are observed just before they are contracted away: at the input of the next matrix product or convolution, behind
the nonlinearity, and for attention heads at the operands of ``q kᵀ``.  An :class:`ActivationSite` names such a tensor
by the number of the contraction within the forward pass; :func:`record_activations` hands the tensors over during an
ordinary forward pass.  A group that only orders blocks (heads) is seen through the groups inside it; a group whose
tensors are ordered by other groups as well (token mixing) has no site, for its samples would not correspond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_rebasin.errors import TraceError

if TYPE_CHECKING:
    from lightning_rebasin.symmetry.spec import Component, PermutationSpec

#: Operations that contract two operands, with the names of the operands.  They are counted to find them again.
CONTRACTIONS: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.mv": ("self", "vec"),
    "aten.dot": ("self", "tensor"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.addmv": ("mat", "vec"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.convolution": ("input", "weight"),
    "aten._scaled_dot_product_flash_attention_for_cpu": ("query", "key"),
    "aten._scaled_dot_product_flash_attention": ("query", "key"),
    "aten._scaled_dot_product_efficient_attention": ("query", "key"),
    "aten._scaled_dot_product_cudnn_attention": ("query", "key"),
}


@dataclass(frozen=True, eq=False)
class ActivationSite:
    """One operand of one contraction that carries the units of a group.

    Args:
        ordinal: Which contraction of the forward pass, counted from 0 over the operations in :data:`CONTRACTIONS`.
        op: Its name, for instance ``"aten.addmm"``.
        argument: Which operand, 0 or 1.
        sites: For each dimension of the operand its row-major factors; −1 where the size depends on the input.
        component: The group, the sites over which its units lie, and their flat positions ``(members, copies)``.
    """

    ordinal: int
    op: str
    argument: int
    sites: tuple[tuple[int, ...], ...]
    component: Component

    def units(self, tensor: Tensor) -> Tensor:
        """Arrange the operand by units.

        Args:
            tensor: The operand as it comes, any dtype and device.

        Returns:
            ``(members, copies, samples)``: member ``m`` of the group (all instances of a nested group, in the order of
            ``Permutation.flat``), its copies in the same order for every member (positions after a flatten, the two
            halves of ``[x, −x]``), and everything else (batch, time, places in the image) as samples.  The samples of
            two networks run on the same batch correspond.
        """
        shape: list[int] = []
        for size, factors in zip(tensor.shape, self.sites, strict=True):
            known = math.prod(f for f in factors if f >= 0)
            if size % known or (-1 not in factors and size != known):
                raise TraceError(f"an operand of {self.op} has shape {tuple(tensor.shape)}, expected {self.sites}")
            shape += [size // known if f < 0 else f for f in factors]
        own = self.component.sites
        front = tensor.reshape(shape).movedim(own, tuple(range(len(own))))
        flat = front.reshape(math.prod(shape[s] for s in own), -1)
        index = self.component.index.to(tensor.device)
        return flat.index_select(0, index.reshape(-1)).reshape(*index.shape, -1)


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts contractions and reports the operands that a spec names."""

    def __init__(self, sites: Mapping[int, list[ActivationSite]], callback: Callable[[ActivationSite, Tensor], None]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._sites = sites
        self._callback = callback

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        name = f"{func.namespace}.{func._schema.name.split('::')[1]}"
        operands = CONTRACTIONS.get(name)
        if operands is not None:
            for site in self._sites.get(self.count, ()):
                if site.op != name:
                    raise TraceError(
                        f"contraction {site.ordinal} of the forward pass is {name}, not {site.op}: the input takes "
                        "another path than the traced example"
                    )
                self._callback(site, _argument(func, operands[site.argument], args, kwargs))
            self.count += 1
        return func(*args, **kwargs)


def _argument(func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    names = [a.name for a in func._schema.arguments]
    found: Tensor = kwargs[name] if name in kwargs else args[names.index(name)]
    return found


@contextmanager
def record_activations(spec: PermutationSpec, callback: Callable[[ActivationSite, Tensor], None]) -> Iterator[None]:
    """Watch the units of a spec's groups while a network runs.

    Run exactly one forward pass, in eval mode, inside the context; fused kernels are switched off meanwhile.

    Args:
        spec: A spec made by :func:`~lightning_rebasin.infer_spec`; ``spec.activations`` says what will be reported.
        callback: Called as ``callback(site, tensor)`` with the operand as it is in memory: do not change it, copy what
            is to be kept.  ``site.units(tensor)`` arranges it as (members, copies, samples);
            ``site.component.group`` is the group.

    Raises:
        TraceError: The network takes another path than the traced example.

    Example:
        >>> import torch
        >>> from lightning_rebasin import infer_spec
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> spec = infer_spec(net, torch.zeros(1, 3))
        >>> seen = []
        >>> def look(site, tensor):
        ...     seen.append((site.component.group, tuple(site.units(tensor).shape)))
        >>> with torch.no_grad(), record_activations(spec, look):
        ...     _ = net(torch.randn(5, 3))
        >>> seen
        [('0', (4, 1, 5))]
    """
    from lightning_rebasin.symmetry.trace import plain_kernels

    sites: dict[int, list[ActivationSite]] = {}
    for own in spec.activations.values():
        for site in own:
            sites.setdefault(site.ordinal, []).append(site)
    with plain_kernels(), _Observer(sites, callback) as observer:
        yield
    if sites and observer.count <= max(sites):
        raise TraceError(
            f"the forward pass has {observer.count} contractions, the traced example had more: run one forward pass "
            "inside record_activations, along the path of the traced example"
        )
