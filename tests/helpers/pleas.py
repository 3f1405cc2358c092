"""PLeaS as its paper describes it: every convolution and linear layer fitted apart, by Adam.

For a layer with aligned ends ``W_i`` that see ``x_i`` the merged weight minimises

    ‖W · mean_i(x_i) − mean_i(W_i · x_i)‖²

on batches of 16; the input is the mean of the *ends'* features, so that no layer knows what the merged network makes
of the earlier ones.  Biases are fitted too; everything else is averaged, and batch norms are reset at the end.

Nasery et al., "PLeaS: Merging Models with Permutations and Least Squares", CVPR 2025 (arXiv 2407.02447).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_rebasin import average, reset_batch_norm

#: What a layer saw and returned.
Features = tuple[Tensor, Tensor]


def pleas(
    module: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    images: Tensor,
    *,
    steps: int = 400,
    batch: int = 16,
    rate: float = 5e-4,
    seed: int = 0,
) -> nn.Module:
    """Merge aligned networks; all layers take their steps on the same batches, none knows of another."""
    merged = copy.deepcopy(module).eval()
    merged.load_state_dict(average(states))
    ends = []
    for state in states:
        end = copy.deepcopy(module).eval()
        end.load_state_dict(state)
        ends.append(end)
    layers = solved_layers(merged)
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    adam = torch.optim.Adam(parameters, lr=rate)
    for x in _drawn(images, steps, batch, seed):
        found = mean_features(ends, x)
        adam.zero_grad()
        errors = []
        for name, layer in layers.items():
            seen, wanted = found[name]
            errors.append((layer(seen) - wanted).square().mean())
        # No layer's error depends on another's weights.
        torch.stack(errors).sum().backward()
        adam.step()
    for parameter in parameters:
        parameter.grad = None
    return reset_batch_norm(merged, images.split(250))


def solved_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _ConvNd | nn.Linear)
    }


def mean_features(ends: Sequence[nn.Module], x: Tensor) -> dict[str, Features]:
    """For each layer the mean over the ends of what it sees and of what it returns."""
    total: dict[str, Features] = {}
    for end in ends:
        for name, (seen, returned) in features(end, x).items():
            before = total.get(name)
            if before is not None:
                seen, returned = seen + before[0], returned + before[1]
            total[name] = (seen, returned)
    count = len(ends)
    return {n: (a / count, b / count) for n, (a, b) in total.items()}


def features(end: nn.Module, x: Tensor) -> dict[str, Features]:
    """What the layers of one network see and return."""
    found: dict[str, Features] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, layer in solved_layers(end).items():

            def note(
                _: nn.Module,
                inputs: tuple[Tensor, ...],
                output: Tensor,
                name: str = name,
            ) -> None:
                found[name] = (inputs[0], output)

            stack.callback(layer.register_forward_hook(note).remove)
        end(x)
    return found


def _drawn(
    images: Tensor, steps: int, batch: int, seed: int
) -> Iterator[Tensor]:
    """Batches of shuffled images, one epoch after the other."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:batch], order[batch:]
        yield images[chosen]
