"""The straight-through estimator: learning a permutation by gradient descent.

A permutation cannot be differentiated, but it can be *steered*.  Free parameters Θ̃ of the network's own shape start
at the reference Θ_A.  Every step projects them onto the permutations of the source, ``π = argmax ⟨target(Θ̃),
π(Θ_B)⟩`` by warm-started weight matching, evaluates the loss at ``(1 − λ)Θ_A + λπ(Θ_B)``, and hands the gradient of
that loss to Θ̃ as if the projection were the identity:

    ``ste = stop(π(Θ_B)) + (Θ̃ − stop(Θ̃))``

The value of ``ste`` is exactly ``π(Θ_B)``, its derivative with respect to Θ̃ is exactly one.  What is learned is only
the *direction* in which weight matching looks; the result is always one of the source's own permutations, so it still
computes the source's function.

Two published variants differ in what Θ̃ stands for.  As the source's *endpoint* (the MNIST script) the loss is taken
at ``(1 − λ)Θ_A + λ·ste``.  As the *midpoint* (an option of the VGG script) it stands for ``½(Θ_A + π(Θ_B))`` itself.
Projecting the endpoint by inner product or by L2 distance is the same thing, because every ``π(Θ_B)`` has the same
norm; for the midpoint the two differ: L2 aims at ``2Θ̃ − Θ_A``, the inner product at ``Θ̃``.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 2 (arXiv 2209.04836).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor

from lightning_rebasin.matching.importance import weighted
from lightning_rebasin.matching.result import MatchResult
from lightning_rebasin.matching.search.weight import WeightMatcher
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: What the free parameters stand for: the permuted source, or the midpoint between it and the reference.
StandsFor = Literal["endpoint", "midpoint"]
#: How the free parameters are projected onto the permutations of the source.
Projection = Literal["inner_product", "l2"]


def straight_through(value: Tensor, free: Tensor) -> Tensor:
    """``stop(value) + (free − stop(free))``: exactly ``value`` going forward, exactly ``free`` going backward.

    Args:
        value: Any shape; no gradient flows into it.
        free: The same shape, finite; receives the gradient of the result unchanged.

    Returns:
        A tensor equal to ``value``.

    Example:
        >>> free = torch.tensor([0.3], requires_grad=True)
        >>> ste = straight_through(torch.tensor([2.0]), free)
        >>> (5 * ste**2).sum().backward()
        >>> ste.item(), free.grad.item()
        (2.0, 20.0)
    """
    return value.detach() + (free - free.detach())


def projection_target(
    free: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    stands_for: StandsFor,
    projection: Projection,
) -> dict[str, Tensor]:
    """The weights that weight matching brings the source near to: where Θ̃ says that ``π(Θ_B)`` should be.

    ``Θ̃`` itself, except for a midpoint projected by L2: ``‖½(Θ_A + π(Θ_B)) − Θ̃‖`` is smallest where
    ``⟨2Θ̃ − Θ_A, π(Θ_B)⟩`` is largest.

    Args:
        free: Θ̃; tensors left out are taken from ``reference``.
        reference: Θ_A, every tensor of the network.
        stands_for: What Θ̃ stands for.
        projection: How it is projected.

    Returns:
        Every tensor of the network, detached.

    Example:
        >>> a, free = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
        >>> projection_target(free, a, "midpoint", "l2")["w"].item()
        5.0
    """
    mirrored = stands_for == "midpoint" and projection == "l2"
    moved = {
        name: 2 * tensor.detach() - reference[name]
        if mirrored
        else tensor.detach()
        for name, tensor in free.items()
    }
    return {**reference, **moved}


def straight_through_point(
    free: Mapping[str, Tensor],
    projected: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    lam: float,
    stands_for: StandsFor = "endpoint",
) -> dict[str, Tensor]:
    """The weights at λ, with the straight-through gradient to Θ̃.

    Both variants have the value ``(1 − λ)Θ_A + λπ(Θ_B)``.  The derivative with respect to Θ̃ is λ when Θ̃ stands for the
    endpoint, and 2λ when it stands for the midpoint ``m``, for then ``π(Θ_B) = 2m − Θ_A``.

    Args:
        free: Θ̃ by name; only these tensors are returned.
        projected: ``π(Θ_B)``, at least the tensors of ``free``.
        reference: Θ_A, at least the tensors of ``free``.
        lam: Where on the segment; ½ is the midpoint.
        stands_for: What Θ̃ stands for.

    Returns:
        One tensor per free tensor, in its dtype.

    Example:
        >>> free = {"w": torch.tensor([0.0], requires_grad=True)}
        >>> point = straight_through_point(free, {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}, 0.5)
        >>> point["w"].sum().backward()
        >>> point["w"].item(), free["w"].grad.item()
        (2.0, 0.5)
    """
    point = {}
    for name, tensor in free.items():
        a, b = reference[name].detach(), projected[name].detach()
        if stands_for == "endpoint":
            point[name] = torch.lerp(a, straight_through(b, tensor), lam)
        else:
            middle = straight_through(torch.lerp(a, b, 0.5), tensor)
            point[name] = a + 2 * lam * (middle - a)
    return point


@final
class Projector:
    """Projects free parameters onto the permutations of a source, again and again, as they move.

    Each projection is a complete weight matching, warm-started from the last permutation and from the dual variables of
    the last assignments; the result is the one that a matching written from the paper would give.

    Args:
        spec: The symmetries of the network.
        reference: Θ_A, every tensor.
        source: Θ_B, every tensor.
        stands_for: What the free parameters stand for.
        projection: How they are projected.
        init: Where the first projection starts; ``None`` is the identity.
        seed: Together with the step, decides the order of the visits.
        device: Where the cost matrices are built; the assignments are solved on the CPU.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        reference: Mapping[str, Tensor],
        source: Mapping[str, Tensor],
        *,
        stands_for: StandsFor = "endpoint",
        projection: Projection = "inner_product",
        init: Permutation | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.permutation = init or Permutation.identity(spec)
        self._reference = reference
        self._stands_for: StandsFor = stands_for
        self._projection: Projection = projection
        self._seed = seed
        self._spec = spec
        self._matcher = WeightMatcher(
            spec, weighted(spec, source), device=device
        )

    def project(self, free: Mapping[str, Tensor], step: int) -> MatchResult:
        """Match the source to the free parameters, starting from the last permutation.

        Args:
            free: Θ̃ by name.
            step: Number of the optimizer step, so that a resumed run visits the groups in the same order.

        Returns:
            The matching; its permutation is also the start of the next one.
        """
        target = projection_target(
            free, self._reference, self._stands_for, self._projection
        )
        # The published algorithm visits the layers in a fresh random order every time.
        result = self._matcher.match(
            weighted(self._spec, target),
            self.permutation,
            seed=self._seed + step,
            order="random",
        )
        self.permutation = result.permutation
        return result
