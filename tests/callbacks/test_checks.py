"""Trainers and modules with which a LossBarrier could not measure."""

from __future__ import annotations

import pytest
from helpers.classifier import Classifier
from helpers.trainers import trainer_in

from lightning_rebasin.callbacks.checks import (
    check_prefixes,
    check_trainer,
    check_training_step,
)
from lightning_rebasin.errors import ConfigurationError


def test_activations_cannot_be_compared_without_training(tmp_path):
    trainer = trainer_in(tmp_path)
    check_trainer(trainer, "validate", "weight", needs_batches=False)
    with pytest.raises(ConfigurationError, match="there is no training"):
        check_trainer(trainer, "validate", "auto", needs_batches=True)


def test_two_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="log under 'b'"):
        check_prefixes(["a", "b", "b"])


def test_a_step_that_consumes_the_loader_is_refused():
    class Consuming(Classifier):
        def training_step(self, dataloader_iter):
            return super().training_step(next(dataloader_iter)[0], 0)

    check_training_step(Classifier(), "activation")
    with pytest.raises(ConfigurationError, match="consumes them unseen"):
        check_training_step(Consuming(), "activation")
