"""Quiet trainings: advice is swallowed, the rest is not, and everything is as before afterwards."""

from __future__ import annotations

import logging
import warnings

import pytest
from lightning.fabric.utilities.warnings import PossibleUserWarning

from lightning_rebasin.landscape.quiet import quiet_lightning


def test_advice_is_swallowed_and_nothing_else() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with quiet_lightning():
        warnings.warn("use more workers", PossibleUserWarning, stacklevel=1)
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.ERROR)
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", UserWarning, stacklevel=1)
    assert logger.level == level
    with pytest.warns(PossibleUserWarning):
        warnings.warn("use more workers", PossibleUserWarning, stacklevel=1)
