"""Trainings that are part of something larger, without what Lightning says at each of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.warnings import PossibleUserWarning

#: Advice for loaders that cannot go on where they stopped; a fork goes on in another order on purpose.
_MID_EPOCH = ".*resuming from a checkpoint that ended before the epoch.*"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice about devices, loggers and loaders to itself; its errors are seen."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", _MID_EPOCH)
        # Lightning 2.6 still asks torch for a pytree class that torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
