"""A classifier with one straight boundary, and inputs of which it is known who is joined to whom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rebasin.inputs import BarrierDetector


class Islands(nn.Module):
    """Two classes on a line: class 1 is a lake around 0 and beyond |x| = 2, class 0 two islands around ±1.

    The logits are ``(0, 8·(x² − 1)² − 2)`` — high for class 1 at 0, low at ±1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        place = x[:, 0]
        second = self.height * (place.square() - 1).square() - 2
        return torch.stack([torch.zeros_like(place), second], 1)


def detector(**options: object) -> BarrierDetector:
    """References: 1 of class 0, and 0 of class 1.  An input at −1 is behind a barrier, one at 1.1 is not."""
    references = torch.tensor([[1.0], [0.0]])
    return BarrierDetector(references, torch.tensor([0, 1]), **options)
