"""What matrices of any kind have in common: shapes, both sides of a product, distances."""

from __future__ import annotations

import pytest
import torch
from helpers.elements import (
    assert_group,
    assert_products_kept,
    inside,
    some_units,
)
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.matrices import MatrixAction
from lightning_rebasin.symmetry.spec.values import Group


class Shears(MatrixAction):
    """``[[1, t], [0, 1]]``: as small a group of matrices as can be that are not their own contragredients."""

    kind = "shear"

    def fault(self, matrices: Tensor) -> str:
        lower = matrices[:, 1, 0]
        return "" if not bool(lower.any()) else "not upper triangular"

    def contragredient(self, matrices: Tensor) -> Tensor:
        undone = matrices.clone()
        undone[..., 0, 1] *= -1
        return undone.mT

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        found = self.identity(group)
        found[..., 0, 1] = torch.randn(
            group.shape[:-1], generator=generator, dtype=torch.float64
        )
        return found


SHEARS = Shears()


@pytest.mark.parametrize("outer", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_kind_of_two_methods_is_a_group(outer: int, seed: int) -> None:
    group = inside("shear", 2, outer)
    assert_group(SHEARS, group, seed)
    assert_products_kept(SHEARS, group, seed)


def test_each_instance_has_its_own_matrix() -> None:
    group = inside("shear", 2, 2)
    element = torch.tensor(
        [[[1.0, 5.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
    )
    units = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    written = SHEARS.apply(group, element, units, 1)
    assert written.flatten().tolist() == [11, 2, 3, 4]
    read = SHEARS.apply(group, element, units, -1)
    assert read.flatten().tolist() == [1, -3, 3, 4]


def test_the_identity_of_every_instance_is_its_own_memory() -> None:
    one = SHEARS.identity(inside("shear", 2, 3))
    one[0, 0, 1] = 7
    assert one[1, 0, 1] == 0


def test_misuse_names_the_group_and_the_shape_or_the_fault() -> None:
    group = inside("shear", 2, 3)
    message = (
        r"group 'inner': .* floating-point tensor of the shape \(3, 2, 2\)"
    )
    for bad in (torch.eye(2), torch.ones(3, 2, 2).long(), None):
        with pytest.raises(TransformError, match=message):
            SHEARS.check(group, bad)  # type: ignore[arg-type]  # misuse is tested
    with pytest.raises(TransformError, match="'inner': not upper triangular"):
        SHEARS.check(group, torch.ones(3, 2, 2))


def test_distances_by_hand() -> None:
    group = inside("shear", 2, 2)
    element = SHEARS.identity(group)
    assert SHEARS.distance(group, element) == 0
    # One of two instances is ‖(0 1; 0 0)‖ / √4 away.
    element[0, 0, 1] = 1
    assert SHEARS.distance(group, element) == pytest.approx(0.25)
    element[0, 0, 1] = 1e9
    assert SHEARS.distance(group, element) == pytest.approx(0.5)
    # A half turn is √8 from the identity; a random rotation √(2·2) in the mean.
    assert SHEARS.distance(group, -SHEARS.identity(group)) == 1


def test_learned_elements_stay_in_their_precision_and_carry_gradients() -> (
    None
):
    group = inside("shear", 2)
    element = torch.eye(2, requires_grad=True)
    units = some_units(group, 0).float()
    changed = SHEARS.apply(group, element, units, 1)
    assert changed.dtype == torch.float32
    changed.sum().backward()
    assert element.grad is not None
    # d/dE_ij of the sum over all entries of E·u is the sum of row j of u.
    torch.testing.assert_close(
        element.grad, units[0].sum(-1).expand(2, 2), rtol=1e-6, atol=1e-6
    )
