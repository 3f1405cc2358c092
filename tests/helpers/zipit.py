"""Textbook ZipIt for a chain of layers: features of both networks are merged wherever they are alike, also within one.

Stoica et al., "ZipIt! Merging Models from Different Tasks without Training", ICLR 2024 (arXiv 2305.03053), without
partial zipping and with the published greedy matching (α = 1: any two of the 2n features may meet, and merged ones do
not meet again).  At every hidden layer the 2n features of both networks are paired by correlation over data, most alike
first; M, (n, 2n), averages every pair, and U, (2n, n), copies the average back to where the next layer expects it:

    ``W = M_out · blockdiag(W_A, W_B) · U_in``,    ``b = M_out · (b_A, b_B)``.

At the end the outputs are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def zip_networks(
    network: nn.Module, states: tuple[State, State], x: Tensor
) -> dict[str, Tensor]:
    """Weights of the merged network.

    Args:
        network: Its children are the layers (convolutions and linear layers with bias), in their order, each followed
            by a ReLU but for the last.
        states: Weights of both networks.
        x: Images on which features are compared.
    """
    layers = [name for name, _ in network.named_children()]
    features = [_features(network, state, layers[:-1], x) for state in states]
    merged: dict[str, Tensor] = {}
    unmerge: Tensor | None = None
    for name in layers:
        weights = [state[f"{name}.weight"] for state in states]
        biases = torch.cat([state[f"{name}.bias"] for state in states])
        if name == layers[-1]:
            size = len(biases) // 2
            merge = torch.cat([torch.eye(size), torch.eye(size)], 1) / 2
            back = torch.zeros(0)
        else:
            merge, back = _zip(features[0][name], features[1][name])
        merged[f"{name}.weight"] = _zipped(weights, merge, unmerge)
        merged[f"{name}.bias"] = merge @ biases
        unmerge = back
    return merged


def _features(
    network: nn.Module, state: State, names: Sequence[str], x: Tensor
) -> dict[str, Tensor]:
    """What every hidden layer gives behind its ReLU: units, by samples and places."""
    network.load_state_dict(dict(state))
    found: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def keep(
            _: nn.Module, __: object, out: Tensor, key: str = name
        ) -> None:
            found[key] = out.relu().transpose(0, 1).flatten(1)

        hooks.append(network.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def _zip(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """M and U of one layer."""
    both = torch.cat([a, b]).double()
    both = both - both.mean(1, keepdim=True)
    both = both / both.norm(dim=1, keepdim=True).clamp_min(1e-12)
    alike = both @ both.T
    alike.fill_diagonal_(-torch.inf)
    count = len(a)
    merge, back = torch.zeros(count, 2 * count), torch.zeros(2 * count, count)
    for number in range(count):
        first, second = divmod(int(alike.argmax()), 2 * count)
        for unit in (first, second):
            merge[number, unit] = 0.5
            back[unit, number] = 1.0
            alike[unit] = alike[:, unit] = -torch.inf
    return merge, back


def _zipped(
    weights: Sequence[Tensor], merge: Tensor, unmerge: Tensor | None
) -> Tensor:
    """``M · blockdiag(W_A, W_B) · U``, or without U for the first layer, which both networks read alike."""
    rows = [
        weight.flatten(2) if weight.ndim > 2 else weight[..., None]
        for weight in weights
    ]
    inputs = rows[0].shape[1]
    if unmerge is None:
        stacked = torch.cat(rows)
    else:
        # A flattened image has several places of each unit.
        copies = inputs // (len(unmerge) // 2)
        each = (
            unmerge if copies == 1 else torch.kron(unmerge, torch.eye(copies))
        )
        halves = each.split(inputs)
        read = [
            torch.einsum("oik,ij->ojk", row, half)
            for row, half in zip(rows, halves, strict=True)
        ]
        stacked = torch.cat(read)
    found = torch.einsum("mo,ojk->mjk", merge, stacked)
    shape = (len(merge), found.shape[1], *weights[0].shape[2:])
    return found.reshape(shape)
