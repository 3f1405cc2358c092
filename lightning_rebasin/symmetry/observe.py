"""Where the units of a group can be observed while the network runs.

Units are observed just before they are contracted away: at the input of the next matrix product or convolution, behind
the nonlinearity, and for attention heads at the operands of ``q kᵀ``.  An :class:`ActivationAddress` names such a
tensor by the number of the contraction; :func:`record_activations` hands the tensors over during an
ordinary forward pass.  A group that only orders blocks (heads) is seen through the groups inside it; a group whose
tensors are ordered by other groups as well (token mixing) has no site, for its samples would not correspond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import ActivationAddress
from lightning_rebasin.symmetry.trace.contractions import CONTRACTIONS
from lightning_rebasin.symmetry.trace.record import plain_kernels


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts contractions and reports the operands that a spec names."""

    def __init__(
        self,
        sites: Mapping[int, list[ActivationAddress]],
        callback: Callable[[ActivationAddress, Tensor], None],
    ):
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
def record_activations(
    spec: PermutationSpec, callback: Callable[[ActivationAddress, Tensor], None]
) -> Iterator[None]:
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
    sites: dict[int, list[ActivationAddress]] = {}
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
