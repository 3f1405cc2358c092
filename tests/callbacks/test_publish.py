"""Where measurements go, and what is remembered of the last one."""

from __future__ import annotations

import pytest
from helpers.classifier import Classifier
from helpers.trainers import trainer_in

from lightning_rebasin.callbacks.publish import Publisher
from lightning_rebasin.callbacks.record import Measurement
from lightning_rebasin.errors import BarrierWarning
from lightning_rebasin.landscape import BarrierCurve
from lightning_rebasin.landscape.geometry import Separation


@pytest.fixture
def logged(monkeypatch):
    """What would be logged, by name."""
    found = {}

    def log(trainer, module, name, value, **options):
        found[name] = value

    monkeypatch.setattr("lightning_rebasin.callbacks.publish.log_value", log)
    return found


def measurement():
    curve = BarrierCurve(
        (0.0, 0.5, 1.0), {"val_loss": (1.0, 3.0, 1.0)}, {"val_loss": False}, 8
    )
    return Measurement(5, 0, {"naive": curve}, {"naive": Separation(1.0, 0.5)})


def test_a_measurement_is_logged_and_written(tmp_path, logged):
    trainer = trainer_in(tmp_path)
    publisher = Publisher("barrier/own", "mean", figure=False)
    folder = publisher.find_folder(trainer)
    folder.mkdir(parents=True)
    publisher.publish(trainer, Classifier(), measurement())
    assert logged["barrier/own/val_loss"] == 2.0
    assert publisher.last_step == 5
    # Outside of fit the file has the stage in its name; a slash would be a folder.
    assert (folder / "barrier-own-validate.csv").exists()


def test_the_last_numbers_survive_a_resume(tmp_path, logged):
    trainer = trainer_in(tmp_path)
    first = Publisher("barrier", "mean", figure=False)
    first.find_folder(trainer).mkdir(parents=True)
    first.publish(trainer, Classifier(), measurement())
    resumed = Publisher("barrier", "mean", figure=False)
    resumed.load_state_dict(first.state_dict())
    logged.clear()
    trainer.state.fn = "fit"
    resumed.repeat(trainer, Classifier())
    assert logged["barrier/val_loss"] == 2.0
    assert resumed.last_step == 5


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, logged):
    trainer = trainer_in(tmp_path)
    publisher = Publisher("barrier", "mean", figure=False)
    publisher.find_folder(trainer)
    (tmp_path / "logs").write_text("in the way")
    with pytest.warns(BarrierWarning, match="LossBarrier"):
        publisher.publish(trainer, Classifier(), measurement())
