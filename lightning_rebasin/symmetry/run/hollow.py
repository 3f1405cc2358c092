"""Networks without the memory of their weights: every parameter has its shape, its dtype, and a single number.

Tracing a network, and asking which tensors it has, needs shapes; a billion weights that nobody looks at would fill
gigabytes.  A *hollow* parameter is one zero, expanded: it runs through every operation like any other tensor (the meta
device does not: it has no values to branch on), and takes no memory until real weights are loaded into it.  A spec that
was inferred from a hollow network does not say where units can be seen while it runs.

Example: ``torch.zeros(()).expand(3, 2)`` has six entries and strides ``(0, 0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def is_hollow(tensor: Tensor) -> bool:
    """Whether a tensor has a shape, but no memory behind it.

    Example:
        >>> is_hollow(torch.zeros(()).expand(3, 2)), is_hollow(torch.zeros(3, 2))
        (True, False)
    """
    return tensor.numel() > 1 and not any(tensor.stride())


def hollowed(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A hollow tensor of the same shape on the same device.

    Args:
        tensor: Only shape, device and dtype matter.
        dtype: Another dtype.
    """
    zero = torch.zeros(
        (), dtype=dtype or tensor.dtype, device=_real_device(tensor)
    )
    return zero.expand(tensor.shape)


def release(network: nn.Module) -> None:
    """Give up the memory of a private copy's parameters until weights are loaded."""
    for parameter in network.parameters():
        parameter.data = hollowed(parameter)


def fill(network: nn.Module) -> None:
    """Give hollow parameters memory, whose contents are not set."""
    for parameter in network.parameters():
        if is_hollow(parameter):
            parameter.data = torch.empty(
                parameter.shape, dtype=parameter.dtype, device=parameter.device
            )


def hollow_twins(network: nn.Module) -> dict[int, nn.Parameter]:
    """Copies of the hollow parameters by the ids of the originals, as ``copy.deepcopy`` takes them.

    ``deepcopy`` by itself would give each of them memory.
    """
    twins = {}
    for parameter in network.parameters():
        if is_hollow(parameter):
            twins[id(parameter)] = nn.Parameter(
                hollowed(parameter), parameter.requires_grad
            )
    return twins


def build_hollow(
    build: Callable[[], nn.Module], dtype: torch.dtype | None = None
) -> nn.Module:
    """Build a network whose floating parameters are hollow; buffers are what they are.

    Args:
        build: Makes the network.  Its random initial weights are not drawn.
        dtype: Precision of the parameters; by default that in which they are made.

    Example:
        >>> net = build_hollow(lambda: nn.Linear(10**4, 10**4))
        >>> net.weight.shape, net.weight.untyped_storage().nbytes()
        (torch.Size([10000, 10000]), 4)
    """
    with _parameters_on_meta():
        network = build()
    # Tied weights are one parameter under several names, and stay so.
    twins: dict[int, nn.Parameter] = {}
    for part in network.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            wanted = dtype if parameter.is_floating_point() else None
            if id(parameter) not in twins:
                twins[id(parameter)] = nn.Parameter(
                    hollowed(parameter, wanted), parameter.requires_grad
                )
            part._parameters[name] = twins[id(parameter)]
    return network


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters lose their memory when a module registers them, before they are initialised."""
    register = nn.Module.register_parameter

    def registered(
        self: nn.Module, name: str, param: nn.Parameter | None
    ) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _real_device(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device
