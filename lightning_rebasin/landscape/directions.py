"""Directions in weight space, scaled so that pictures of different networks can be compared.

A network with rectifiers computes the same function when one layer's weights are doubled and the next one's halved,
so that a step of a given length means nothing by itself.  *Filter normalisation* gives every filter of a direction the
length of the filter that it changes:

    d_{i,j}  ←  d_{i,j} / ‖d_{i,j}‖ · ‖θ_{i,j}‖      for filter j of layer i;

biases and the weights of normalisation layers, which have one axis only, are not moved.

Source: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4 (the released code has
``ignore='biasbn'``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.weights import first_names, parameter_names


def random_direction(
    module: nn.Module, weights: State, seed: int = 0
) -> dict[str, Tensor]:
    """A filter-normalised Gaussian direction over the parameters of a module.

    Args:
        module: Says which weights are parameters, and which are tied; buffers do not move.
        weights: Where the direction starts.
        seed: Seeds the direction; the global generators are left alone.

    Returns:
        One tensor per parameter of the shape, dtype and device it has in ``weights``.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> direction = random_direction(net, net.state_dict())
        >>> torch.allclose(direction["weight"].norm(dim=1), net.weight.norm(dim=1)), direction["bias"].any().item()
        (True, False)
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in parameter_names(module):
        own = weights[name]
        if own.is_floating_point():
            noise = torch.randn(own.shape, generator=generator)
            drawn[name] = noise.to(own)
    return tied(module, filter_normalised(drawn, weights))


def filter_normalised(
    direction: Mapping[str, Tensor], weights: State
) -> dict[str, Tensor]:
    """A direction whose filters are as long as those of the weights.

    A filter is what one output unit owns: one entry along the first axis.  Filters of the direction that are 0 stay 0.

    Args:
        direction: A change of ``weights`` by name; some names may be missing.
        weights: What it changes.

    Returns:
        A new direction; tensors of fewer than two axes are 0.

    Example:
        >>> weights = {"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "b": torch.ones(2)}
        >>> scaled = filter_normalised({"w": torch.tensor([[0.0, 2.0], [3.0, 0.0]]), "b": torch.ones(2)}, weights)
        >>> scaled["w"].tolist(), scaled["b"].tolist()
        ([[0.0, 5.0], [1.0, 0.0]], [0.0, 0.0])
    """
    found = {}
    for name, change in direction.items():
        if change.ndim < 2:
            found[name] = torch.zeros_like(change)
            continue
        flat = change.double().flatten(1)
        lengths = flat.norm(dim=1, keepdim=True)
        target = weights[name].to(flat).flatten(1).norm(dim=1, keepdim=True)
        # 0 / 1 for a filter that does not move.
        safe = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        scaled = flat / safe * target
        found[name] = scaled.reshape(change.shape).to(change.dtype)
    return found


def tied(
    module: nn.Module, direction: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A direction that moves tied weights together: further names get what the first one has."""
    found = dict(direction)
    for name, first in first_names(module).items():
        if first in direction:
            found[name] = direction[first]
    return found
