"""Where the units of a group can be observed while the network runs.

Units are observed just before they are contracted away: at the input of the next matrix product or convolution, behind
the nonlinearity, and for attention heads at the operands of ``q kᵀ``.  An :class:`ActivationAddress` names such a
tensor by the number of the contraction; :func:`record_activations` hands the tensors over during an
ordinary forward pass.  A group that only orders blocks (heads) is seen through the groups inside it; a group whose
tensors are ordered by other groups as well (token mixing) has no address, for its samples would not correspond.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import ActivationAddress
from lightning_rebasin.symmetry.trace.contractions import (
    CONTRACTIONS,
    COUNTED_TOGETHER,
)
from lightning_rebasin.symmetry.trace.record import plain_kernels

#: Is given every operand that a spec names.
Callback = Callable[[ActivationAddress, Tensor], None]


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts contractions and reports the operands that a spec names."""

    def __init__(
        self, addresses: Iterable[ActivationAddress], callback: Callback
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._callback = callback
        self._per_op: dict[tuple[str, int], list[ActivationAddress]] = {}
        self._together: dict[int, list[ActivationAddress]] = {}
        for address in addresses:
            if address.numbering == "op":
                self._per_op.setdefault(
                    (address.op, address.ordinal), []
                ).append(address)
            else:
                self._together.setdefault(address.ordinal, []).append(address)
        self._runs: Counter[str] = Counter()
        self._all_runs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        name = f"{func.namespace}.{func._schema.name.split('::')[1]}"
        if name in CONTRACTIONS:
            for address in self._addresses_here(name):
                operand = CONTRACTIONS[name][address.argument]
                self._callback(address, _argument(func, operand, args, kwargs))
        return func(*args, **kwargs)

    def _addresses_here(self, name: str) -> list[ActivationAddress]:
        """What the spec wants to see of this run; counts it."""
        found = list(self._per_op.get((name, self._runs[name]), ()))
        self._runs[name] += 1
        if name in COUNTED_TOGETHER:
            for address in self._together.get(self._all_runs, ()):
                if address.op != name:
                    raise TraceError(
                        f"contraction {address.ordinal} of the forward pass is {name}, not {address.op}: the input "
                        "takes another path than the traced example"
                    )
                found.append(address)
            self._all_runs += 1
        return found

    def missing(self) -> str:
        """What the forward pass did not reach, in words; empty if it reached everything."""
        for op, ordinal in self._per_op:
            if self._runs[op] <= ordinal:
                return f"the forward pass has {self._runs[op]} contractions by {op}"
        if self._together and self._all_runs <= max(self._together):
            return f"the forward pass has {self._all_runs} contractions"
        return ""


def _argument(
    func: Any, name: str, args: Any, kwargs: Mapping[str, Any]
) -> Tensor:
    names = [a.name for a in func._schema.arguments]
    found: Tensor = kwargs[name] if name in kwargs else args[names.index(name)]
    return found


@contextmanager
def record_activations(
    spec: PermutationSpec, callback: Callback
) -> Iterator[None]:
    """Watch the units of a spec's groups while a network runs.

    Run exactly one forward pass, in eval mode, inside the context; fused kernels are switched off meanwhile.

    Args:
        spec: A spec made by :func:`~lightning_rebasin.infer_spec`; ``spec.activations`` says what will be reported.
        callback: Called as ``callback(address, tensor)`` with the operand as it is in memory: do not change it,
            copy what is to be kept.  ``address.units(tensor)`` arranges it as (members, copies, samples);
            ``address.component.group`` is the group.

    Raises:
        TraceError: The network takes another path than the traced example.

    Example:
        >>> import torch
        >>> from lightning_rebasin import infer_spec
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> spec = infer_spec(net, torch.zeros(1, 3))
        >>> seen = []
        >>> def look(address, tensor):
        ...     seen.append((address.component.group, tuple(address.units(tensor).shape)))
        >>> with torch.no_grad(), record_activations(spec, look):
        ...     _ = net(torch.randn(5, 3))
        >>> seen
        [('0', (4, 1, 5))]
    """
    addresses = [
        address for own in spec.activations.values() for address in own
    ]
    with plain_kernels(), _Observer(addresses, callback) as observer:
        yield
    if missing := observer.missing():
        raise TraceError(
            f"the input takes another path than the traced example: {missing}, the example had more; run one forward "
            "pass inside record_activations"
        )
