"""Ensembles of soft trees as one module: all trees at once, one product of matrices for all rules."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.trees.shapes import TreeKind, TreeShape, tree_shape
from lightning_rebasin.trees.symmetries import tree_symmetries


@final
class SoftTreeEnsemble(nn.Module):
    """A sum of soft decision trees.

    ``f(x) = Σ_m Σ_ℓ π_mℓ μ_mℓ(x)``, where ``μ_mℓ`` is the share of x that the rules of tree m send to its leaf ℓ: a
    rule sends ``σ(wᵀx + b)`` to its left and the rest to its right.

    The module declares its symmetries (:meth:`symmetry_spec`): the order of the trees, and inside each tree what its
    kind allows, so ``infer_spec(module, x, kinds="all")`` finds them in any network that contains it.

    Args:
        kind: ``"non_oblivious"`` (a rule at every inner node), ``"oblivious"`` (one rule for each level),
            ``"decision_list"`` or ``"modified_decision_list"`` (its last leaf is fixed to 0).
        depth: How many rules an example meets at most.
        trees: Number of trees M.
        inputs: Number of features F.
        outputs: Number of outputs C: classes, or 1 for a regression.
        device: Where the parameters are made.
        dtype: Of what dtype.

    Attributes:
        weight: Rules, ``(M, rules, F)``.
        bias: Their offsets, ``(M, rules)``.
        leaves: Values of the leaves, ``(M, leaves, C)``.

    Raises:
        ConfigurationError: The kind is unknown, or a number is not positive.

    Example:
        >>> ensemble = SoftTreeEnsemble("oblivious", depth=2, trees=256, inputs=44, outputs=2)
        >>> sum(p.numel() for p in ensemble.parameters())
        25088
        >>> ensemble(torch.zeros(5, 44)).shape
        torch.Size([5, 2])

    References:
        Kanoh and Sugiyama, "Linear Mode Connectivity in Differentiable Tree Ensembles", ICLR 2025.
    """

    def __init__(
        self,
        kind: TreeKind,
        depth: int,
        trees: int,
        inputs: int,
        outputs: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        numbers = {"trees": trees, "inputs": inputs, "outputs": outputs}
        for name, number in numbers.items():
            if number < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1, not {number}"
                )
        self.kind = kind
        self.shape: TreeShape = tree_shape(kind, depth)
        rules, leaves = self.shape.rules, self.shape.leaves
        self.weight = nn.Parameter(
            torch.empty(trees, rules, inputs, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(
            torch.empty(trees, rules, device=device, dtype=dtype)
        )
        self.leaves = nn.Parameter(
            torch.empty(trees, leaves, outputs, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: rules as a linear layer's, leaves so that the sum of all trees has unit variance."""
        trees, _, inputs = self.weight.shape
        bound = 1.0 / math.sqrt(inputs)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        nn.init.normal_(self.leaves, std=1.0 / math.sqrt(trees))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all trees.

        Args:
            x: ``(..., F)``, floating.

        Returns:
            ``(..., C)``.
        """
        outputs = self.tree_outputs(x.reshape(-1, x.shape[-1]))
        # A product with ones rather than a sum: contractions are where units are observed (activation matching).
        ones = outputs.new_ones(1, len(outputs))
        total = ones @ outputs.flatten(1)
        by_example = total.reshape(outputs.shape[1:]).T
        return by_example.reshape(*x.shape[:-1], -1)

    def tree_outputs(self, x: Tensor) -> Tensor:
        """What each tree says by itself.

        Args:
            x: ``(batch, F)``.

        Returns:
            ``(M, C, batch)``; its sum over the trees is the output of the ensemble.
        """
        shares = self.leaf_shares(x)
        return torch.bmm(self.leaves.transpose(1, 2).to(shares.dtype), shares)

    def leaf_shares(self, x: Tensor) -> Tensor:
        """How much of each example arrives at each leaf.

        Args:
            x: ``(batch, F)``.

        Returns:
            ``μ``, ``(M, leaves, batch)``; they sum to 1 over the leaves of a tree unless one of its leaves is fixed.
        """
        # The rules are the rows of the product, so that examples come last.
        logits = linear(self.weight, x) + self.bias[..., None]
        return self.shape.log_shares(logits).exp()

    def symmetry_spec(self) -> PermutationSpec:
        """The symmetries of this module, in its own names: see ``lightning_rebasin.symmetry.declared``."""
        return tree_symmetries(self, self.kind, self.shape)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        trees, _, inputs = self.weight.shape
        return (
            f"{self.kind!r}, depth={self.shape.depth}, trees={trees}, inputs={inputs}, "
            f"outputs={self.leaves.shape[-1]}"
        )
