"""The head of a network: the layer whose output is the network's output.

It is found by looking at one run, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.run.examples import (
    output_tensors,
    resolve_examples,
)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: What a run showed of a layer: its name, its output, and how often that had been changed in place by then.
Seen = tuple[str, Tensor, int]


def find_head(network: nn.Module, inputs: Sequence[Any]) -> str:
    """The name of the linear layer, or convolution of kernel 1, whose output is the network's output.

    Args:
        network: The network.
        inputs: Arguments for one run; none if it has an ``example_input_array``.

    Raises:
        ConfigurationError: There is none, there are several, or its weight is not its own.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> find_head(net, [torch.zeros(1, 2)])
        '2'
    """
    seen, results = _run(network, inputs)
    found = set()
    for name, tensor, version in seen:
        # What was changed in place behind the layer is not its output any more.
        untouched = tensor._version == version
        if untouched and any(_same_numbers(tensor, r) for r in results):
            found.add(name)
    if len(found) != 1:
        raise ConfigurationError(_no_head(type(network).__name__, found))
    (layer,) = found
    _check_own(network, layer)
    return layer


def different_heads(
    states: Sequence[Mapping[str, Tensor]],
) -> str:
    """The one layer in which some models have another number of outputs; empty if that is not the difference."""
    layers = set()
    first = states[0]
    for state in states[1:]:
        for name in first.keys() & state.keys():
            a, b = first[name].shape, state[name].shape
            if a == b:
                continue
            layer, _, kind = name.rpartition(".")
            if kind not in ("weight", "bias") or a[1:] != b[1:]:
                return ""
            layers.add(layer)
    return layers.pop() if len(layers) == 1 else ""


def _run(
    network: nn.Module, inputs: Sequence[Any]
) -> tuple[list[Seen], list[Tensor]]:
    """What layers that may be heads return in one run of ``forward``, and what the network returns."""
    example = resolve_examples(network, tuple(inputs), {}, None)[0]
    seen: list[Seen] = []
    if example.method != "forward":
        return seen, []
    handles = []
    for name, part in network.named_modules():
        if _may_be_head(part):
            handles.append(part.register_forward_hook(_watch(seen, name)))
    try:
        with torch.no_grad():
            output = network(*example.args, **example.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen, list(output_tensors(output).values())


def _watch(
    seen: list[Seen], name: str
) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps what a layer returns, and how often it had been changed by then."""

    def hook(part: nn.Module, arguments: Any, output: Any) -> None:
        del part, arguments
        if isinstance(output, Tensor):
            seen.append((name, output, output._version))

    return hook


def _may_be_head(part: nn.Module) -> bool:
    """Whether a layer has one output per row of its weight, at every position by itself."""
    if isinstance(part, CONVOLUTIONS):
        alone = set(part.kernel_size) == {1} and part.groups == 1
        return alone and not any(part.padding)
    return isinstance(part, nn.Linear)


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether one is the other, or a view of all of it."""
    whole = a.numel() == b.numel() and a.dtype == b.dtype
    return whole and a.data_ptr() == b.data_ptr()


def _no_head(network: str, found: set[str]) -> str:
    """Why heads cannot be put side by side."""
    if found:
        names = ", ".join(sorted(found))
        return f"{network} returns the outputs of several layers ({names}): heads='concatenate' needs one head"
    return (
        f"heads='concatenate' needs a network whose output is that of a linear layer or of a convolution of kernel 1, "
        f"but {network} returns something else: take away what comes behind the head (a softmax, say), and give "
        "inputs that its forward takes"
    )


def _check_own(network: nn.Module, layer: str) -> None:
    """Refuse a head whose weight is computed, or is that of another layer too."""
    weight = getattr(network.get_submodule(layer), "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise ConfigurationError(
            f"the weight of the head {layer!r} is computed from others: remove the parametrization for the merge"
        )
    names = []
    for name, value in network.named_parameters(remove_duplicate=False):
        if value is weight:
            names.append(name)
    if len(names) > 1:
        raise ConfigurationError(
            f"the head {layer!r} shares its weight ({', '.join(names)}): it cannot get more outputs alone"
        )
