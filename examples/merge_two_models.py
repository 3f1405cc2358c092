"""Merge two trainings in a dozen lines of plain PyTorch: infer, match, prove, average.

Run:  python examples/merge_two_models.py        (needs scikit-learn: pip install "lightning-rebasin[demo]")

Expected output (numbers differ a little between machines):

    test accuracy of the ends 98.05% and 97.77%
    naive midpoint            92.48%
    merged midpoint           97.49%
"""

import copy

import torch
from torch import Tensor, nn

from lightning_rebasin import (
    check_equivalence,
    infer_spec,
    interpolate,
    match_weights,
)
from lightning_rebasin.demo.data import digits

(images, labels), (test_images, test_labels) = (
    part.tensors for part in (digits().train, digits().test)
)


def train(seed: int) -> nn.Sequential:
    """A small perceptron, trained for 40 epochs."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(40):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                network(images[batch]), labels[batch]
            ).backward()
            optimizer.step()
    return network


def accuracy(state: dict[str, Tensor]) -> float:
    """Share of the test images that the network with these weights gets right."""
    probe.load_state_dict(state)
    with torch.no_grad():
        return float(
            (probe(test_images).argmax(1) == test_labels).float().mean()
        )


first, second = train(0), train(1)
probe = copy.deepcopy(first)
reference, source = first.state_dict(), second.state_dict()

spec = infer_spec(first, images[:2])
match = match_weights(spec, reference, source)
check_equivalence(first, match.permutation, images[:2])

print(
    f"test accuracy of the ends {accuracy(reference):.2%} and {accuracy(source):.2%}"
)
print(
    f"naive midpoint            {accuracy(interpolate(reference, source, 0.5)):.2%}"
)
print(
    f"merged midpoint           {accuracy(interpolate(reference, match.permutation.apply(source), 0.5)):.2%}"
)
