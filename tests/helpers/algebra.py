"""Any spec and any permutation of it: what tests of the algebra draw from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from helpers.specs import blocks_spec, grouped_spec, nested_spec
from lightning_rebasin.symmetry import Permutation, PermutationSpec

sizes = st.integers(1, 5)
specs = st.one_of(
    st.builds(nested_spec, sizes, sizes, sizes),
    st.builds(grouped_spec, sizes, sizes, sizes),
    st.builds(blocks_spec, sizes, sizes),
)
seeds = st.integers(0, 2**31)


def randomly(spec: PermutationSpec, seed: int = 0) -> Permutation:
    """A random permutation of everything that a spec allows."""
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) for name in a
    )
