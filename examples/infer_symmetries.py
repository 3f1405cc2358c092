"""Find the symmetries of a network from one forward pass, prove one of them, and see what is pinned and why.

Run:  python examples/infer_symmetries.py

Expected output (shortened):

    group  size  inside   log10  acts on (tensor[dimension])
    ...
    a random symmetry changes every output by less than 1e-8 (relative): True
"""

import torch
from torch import nn

from lightning_rebasin import Permutation, check_equivalence, infer_spec

network = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(16 * 16, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

spec = infer_spec(network, images)
print(spec)
print(spec.explain("5.weight"))

permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
error = check_equivalence(network, permutation, images)
print(
    f"a random symmetry changes every output by less than 1e-8 (relative): {error < 1e-8}"
)
