"""Fusing sites loses no constraint: what was fixed before is fixed in the fused axis."""

import numpy as np
import pytest

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    fuse_sites,
)


@pytest.mark.parametrize("joint", [False, True])
def test_fused_positions_stay_fixed_element_by_element(joint):
    """Sites (step, unit), the steps pinned; the elements lie over both sites, or over the units alone."""
    store = Constraints()
    elements = store.fresh((3,) if joint else (2, 3))
    part = Part((1,) if joint else (0, 1), elements)
    fused = fuse_sites(
        Label(((0, 1),), (2, 3), (part,), frozenset({0})), 0, 2, store
    )
    assert (
        fused.sizes == (6,)
        and not fused.pinned
        and [p.sites for p in fused.parts] == [(0,)]
    )
    ids = fused.parts[0].elements.ids
    (table,) = [t for t in store.tables if t.kind == "position"]
    assert (
        np.array_equal(table.left, ids)
        and table.right.tolist() == [0, 0, 0, 1, 1, 1]
        and table.defines
    )


def test_a_fused_site_without_elements_stays_pinned():
    fused = fuse_sites(
        Label(((0, 1),), (2, 3), (), frozenset({0})), 0, 2, Constraints()
    )
    assert fused.pinned == {0}
