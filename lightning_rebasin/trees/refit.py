"""New leaves for given rules: the part of a soft tree ensemble that is linear, solved at once.

With its rules fixed an ensemble is linear in its leaves, ``f(x) = Σ_mℓ μ_mℓ(x) π_mℓ``.  After two ensembles have been
matched and averaged, the rules are a compromise and the leaves belong to neither; the leaves that bring the merged
ensemble nearest to the mean of what the two ensembles say are found by least squares, without labels:

    ``min_π  mean_x ‖ Σ μ(x) π − mean_k f_k(x) ‖² + ridge · ‖π − π₀‖²``

where π₀ are the averaged leaves, so that what the data do not tell stays.  Sums are float64; memory does not grow with
the number of batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.trees.ensemble import SoftTreeEnsemble


def refit_leaves(
    ensemble: SoftTreeEnsemble,
    states: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Tensor],
    *,
    ridge: float = 1e-4,
) -> Tensor:
    """Leaves with which an ensemble comes nearest to the mean of other ensembles on some inputs.

    Args:
        ensemble: The ensemble whose rules are kept, for example the average of the others; left alone.
        states: Weights of the ensembles to be near to, with the tensors of ``ensemble``.
        batches: Inputs ``(batch, F)``, read once; no labels.
        ridge: How strongly the leaves are held where they are, relative to the mean square of a share.

    Returns:
        New leaves ``(M, leaves, C)`` in the dtype of the old ones; ``ensemble.leaves.copy_`` them or put them into a
        state dict.

    Raises:
        ConfigurationError: There is no ensemble to be near to, or ``ridge`` is not positive.
        DataError: There is no batch.

    Example:
        >>> ensemble = SoftTreeEnsemble("oblivious", depth=1, trees=4, inputs=2, outputs=1)
        >>> state = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
        >>> with torch.no_grad():
        ...     _ = ensemble.leaves.zero_()
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> leaves = refit_leaves(ensemble, [state], [x], ridge=1e-9)
        >>> with torch.no_grad():
        ...     before = functional_call(ensemble, state, x)
        ...     after = functional_call(ensemble, {**state, "leaves": leaves}, x)
        >>> torch.allclose(before, after, atol=1e-3)
        True
    """
    if not states:
        raise ConfigurationError("there is no ensemble to be near to")
    if ridge <= 0:
        raise ConfigurationError(f"ridge must be positive, not {ridge}")
    old = ensemble.leaves.detach().flatten(0, 1).double()
    # Leaves move by what is missing, so that what is held is the change.
    gram = old.new_zeros(len(old), len(old))
    missing = torch.zeros_like(old)
    count = 0
    for x in batches:
        with torch.no_grad():
            target = _mean_output(ensemble, states, x)
            shares = ensemble.leaf_shares(x).flatten(0, 1).double()
        gram += shares @ shares.T
        missing += shares @ (target - shares.T @ old)
        count += len(x)
    if not count:
        raise DataError("no batches given to fit the leaves on")
    held = ridge * gram.diagonal().mean()
    gram.diagonal().add_(held)
    change = torch.linalg.solve(gram, missing)
    leaves: Tensor = (old + change).reshape(ensemble.leaves.shape)
    return leaves.to(ensemble.leaves.dtype)


def _mean_output(
    ensemble: SoftTreeEnsemble,
    states: Sequence[Mapping[str, Tensor]],
    x: Tensor,
) -> Tensor:
    """Float64 ``(batch, C)``."""
    outputs = []
    for state in states:
        outputs.append(functional_call(ensemble, dict(state), (x,)))
    return torch.stack(outputs).double().mean(0)
