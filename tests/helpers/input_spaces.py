"""Input spaces with known geometry: where the loss of a fixed network can be written down."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


class Quadratic(nn.Module):
    """``½ (x − c)ᵀ H (x − c)``, one number per input."""

    def __init__(self, hessian: Tensor, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("hessian", hessian)
        self.centre = nn.Parameter(centre)

    def forward(self, x: Tensor) -> Tensor:
        away = x.flatten(1) - self.centre
        return 0.5 * ((away @ self.hessian) * away).sum(1)


def itself(output: Tensor, _target: object) -> Tensor:
    """The output is the loss."""
    return output


class TwoMoons(nn.Module):
    """Logits ``−s·d_k²``: d_k is the distance to moon k, a half circle of radius 1.

    Moon 0 is the upper half around (0, 0), moon 1 the lower half around (1, 0.5), as scikit-learn draws them.
    """

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, x: Tensor) -> Tensor:
        upper = self._squared_distance(x, torch.tensor([0.0, 0.0]), 1.0)
        lower = self._squared_distance(x, torch.tensor([1.0, 0.5]), -1.0)
        return -self.sharpness * torch.stack([upper, lower], 1)

    @staticmethod
    def _squared_distance(x: Tensor, centre: Tensor, side: float) -> Tensor:
        across, up = (x - centre.to(x)).unbind(1)
        up = side * up
        radius = (across.square() + up.square() + 1e-12).sqrt()
        to_arc = (radius - 1).square()
        to_tips = (across.abs() - 1).square() + up.square()
        return torch.where(up >= 0, to_arc, to_tips)


def moon_distance(point: np.ndarray, moon: int) -> float:
    """Distance to a moon by brute force over its points."""
    angles = np.linspace(0, math.pi, 20001)
    if moon == 0:
        arc = np.stack([np.cos(angles), np.sin(angles)], 1)
    else:
        arc = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], 1)
    return float(np.linalg.norm(arc - point, axis=1).min())


def moon_loss(
    point: np.ndarray, target: int, sharpness: float = 20.0
) -> float:
    """The cross-entropy of :class:`TwoMoons` from the brute-force distances."""
    logits = [-sharpness * moon_distance(point, k) ** 2 for k in (0, 1)]
    return float(np.logaddexp(*logits) - logits[target])


class TokenClassifier(nn.Module):
    """Embeds tokens, adds positions, attends once, and classifies the mean."""

    def __init__(
        self, tokens: int = 11, width: int = 8, classes: int = 3
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(tokens, width)
        self.places = nn.Embedding(5, width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = x + self.places(torch.arange(tokens.shape[1]))
        return self.head((x + self.attend(x, x, x)[0]).mean(1))
