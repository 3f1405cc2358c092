"""Attacks on a classifier of images in [0, 1], for ``inputs_study.py``: they make the adversarial ends of paths.

Plain versions, to measure a detector with and not to break networks with: no restarts, no line searches.  All take
images of shape ``(n, channels, height, width)`` and leave them alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

#: Loss per sample of perturbed images.
Objective = Callable[[Tensor], Tensor]


def gradient(objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients of an objective, sample by sample."""
    moved = images.detach().requires_grad_()
    values = objective(moved)
    (found,) = torch.autograd.grad(values.sum(), moved)
    return values.detach(), found


def losses(module: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy per sample."""
    return cross_entropy(module(images), target, reduction="none")


def fgsm(
    module: nn.Module, images: Tensor, labels: Tensor, radius: float
) -> Tensor:
    """One step of the gradient's sign away from the own class (Goodfellow et al. 2015)."""
    _, found = gradient(lambda x: losses(module, x, labels), images)
    return (images + radius * found.sign()).clamp(0, 1)


def pgd(
    objective: Objective, images: Tensor, radius: float, steps: int = 40
) -> Tensor:
    """Projected gradient descent in a cube around the images (Madry et al. 2018), step 2.5 · radius / steps."""
    moved = images.clone()
    for _ in range(steps):
        _, found = gradient(objective, moved)
        moved = moved - 2.5 * radius / steps * found.sign()
        moved = images + (moved - images).clamp(-radius, radius)
        moved = moved.clamp(0, 1)
    return moved


def adam_until(
    module: nn.Module,
    images: Tensor,
    target: Tensor,
    goals: Tensor,
    steps: int = 512,
) -> Tensor:
    """The published adversarial end: Adam .005 until the loss is below that of the other end (Vrabel et al. 2025)."""
    moved = images.clone().requires_grad_()
    optimiser = torch.optim.Adam([moved], lr=0.005)
    arrived = images.clone()
    waiting = torch.ones(len(images), dtype=torch.bool)
    for _ in range(steps + 1):
        # Those that arrived are kept aside, and cost nothing from then on.
        rows = waiting.nonzero().flatten()
        found = losses(module, moved[rows], target[rows])
        done = rows[found.detach() < goals[rows]]
        arrived[done] = moved.detach()[done]
        waiting[done] = False
        if not bool(waiting.any()):
            break
        optimiser.zero_grad()
        found.sum().backward()
        optimiser.step()
        with torch.no_grad():
            moved.clamp_(0, 1)
    arrived[waiting] = moved.detach()[waiting]
    return arrived


def carlini_wagner(
    module: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    steps: int = 100,
    weight: float = 1.0,
    margin: float = 2.0,
) -> Tensor:
    """The nearest image of the target class, in the way of Carlini and Wagner (2017) with one fixed weight.

    Minimises ``‖x' − x‖² + weight · max(0, margin + best other logit − target logit)`` over ``x' = (tanh w + 1) / 2``
    and keeps the nearest one that reached its class.
    """
    start = torch.atanh((2 * images - 1).clamp(-0.999, 0.999))
    free = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=0.05)
    best = images.clone()
    nearest = torch.full((len(images),), torch.inf)
    for _ in range(steps):
        moved = (free.tanh() + 1) / 2
        logits = module(moved)
        own = one_hot(target, logits.shape[1]).bool()
        others = logits.masked_fill(own, -torch.inf).amax(1)
        gap = others - logits[own]
        distance = (moved - images).square().flatten(1).sum(1)
        nearer = (gap < 0) & (distance < nearest)
        best[nearer] = moved.detach()[nearer]
        nearest[nearer] = distance.detach()[nearer]
        value = distance + weight * (gap + margin).clamp(min=0)
        optimiser.zero_grad()
        value.sum().backward()
        optimiser.step()
    return best


def knowing_the_detector(
    module: nn.Module,
    target: Tensor,
    references: Tensor,
    points: int,
) -> Objective:
    """What an attack minimises that knows the detector: the loss on the ways from its references, one at each step.

    Args:
        module: The network.
        target: The class of every image.
        references: Those of the target class of each image, shape ``(n, references, *image)``.
        points: How many evenly spaced λ the attack looks at on each way, the image itself included.
    """
    turns = itertools.cycle(range(references.shape[1]))
    lam = torch.arange(1, points + 1) / points
    weights = lam.reshape(1, -1, 1, 1, 1)
    repeated = target.repeat_interleave(points)

    def objective(images: Tensor) -> Tensor:
        start = references[:, next(turns)]
        ways = (1 - weights) * start[:, None] + weights * images[:, None]
        found = losses(module, ways.flatten(0, 1), repeated)
        return found.reshape(len(images), points).mean(1)

    return objective
