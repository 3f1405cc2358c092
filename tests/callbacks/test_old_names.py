"""Old names of options go on working, with a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_rebasin import CheckpointSnapshot
from lightning_rebasin.errors import ConfigurationError


def test_the_old_names_mean_the_same() -> None:
    with pytest.warns(
        DeprecationWarning, match="folder= is now called dirpath="
    ):
        old = CheckpointSnapshot(folder="a")
    assert old.folder == CheckpointSnapshot("a").folder == Path("a")
    # A run that was begun under the old name resumes under the new one.
    assert old.state_key == CheckpointSnapshot(dirpath="a").state_key
    with pytest.warns(DeprecationWarning, match="every_n_train_steps="):
        CheckpointSnapshot("a", every_n_steps=3)


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="give only dirpath="):
        CheckpointSnapshot("a", folder="b")
