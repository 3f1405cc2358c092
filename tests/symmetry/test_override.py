"""The module that moved: old imports work and say where it went."""

import pytest

from lightning_rebasin import symmetry
from lightning_rebasin.symmetry import override

NAMES = ("free_group", "pin_group", "pin_tensor", "tie_groups")


@pytest.mark.parametrize("name", NAMES)
def test_the_old_home_still_works_and_warns(name):
    with pytest.warns(DeprecationWarning, match=f"import {name} from") as seen:
        old = getattr(override, name)
    assert old is getattr(symmetry, name)
    assert name in symmetry.__all__
    # the warning points at the line that uses the old name
    assert seen[0].filename == __file__


def test_an_old_import_statement_warns():
    with pytest.warns(DeprecationWarning, match="has moved"):
        from lightning_rebasin.symmetry.override import pin_group
    assert pin_group is symmetry.pin_group


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'untie'"):
        override.untie  # noqa: B018
