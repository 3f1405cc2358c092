"""A measurement under way: which points, which copies, what comes out."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier, val_loader
from helpers.trainers import trainer_in

from lightning_rebasin import measure_barrier
from lightning_rebasin.callbacks.alignment import Aligner
from lightning_rebasin.callbacks.running import begin, lay_out
from lightning_rebasin.landscape.geometry import separation
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.landscape.weights import weights_of

GRID = (0.0, 0.5, 1.0)


def two_models():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(Classifier())
    return models


def run(tmp_path, **options):
    module, other = two_models()
    trainer = trainer_in(tmp_path)
    loader = val_loader()
    trainer.validate(module, loader, verbose=False)
    reference = {k: v.clone() for k, v in weights_of(other).items()}
    options = {"aligner": None, "naive": True, **options}
    running = begin(trainer, module, reference, GRID, **options)
    for index, batch in enumerate(loader):
        with torch.no_grad():
            running.hold(batch, index, 0)
            batch[0].zero_()
            running.evaluate(Place(index))
            # Nothing is held any more, so nothing is counted twice.
            running.evaluate(Place(index))
    return module, reference, running.finish()


def test_the_curve_is_that_of_measure_barrier(tmp_path):
    module, reference, found = run(tmp_path)
    expected = measure_barrier(
        module, weights_of(module), reference, val_loader(), points=GRID
    )
    assert list(found.curves) == ["naive"]
    for name, row in expected.values.items():
        assert found.curves["naive"].values[name] == pytest.approx(
            row, rel=1e-6
        )
    assert found.curves["naive"].samples == expected.samples
    assert found.moved is None
    parameters = [name for name, _ in module.named_parameters()]
    assert found.separations == {
        "naive": separation(weights_of(module), reference, parameters)
    }


def test_the_matched_curve_leads_to_a_nearer_end(tmp_path):
    aligner = Aligner(Classifier().spec(), 0)
    aligner.check(two_models()[0])
    _, _, found = run(tmp_path, aligner=aligner, naive=False)
    assert list(found.curves) == ["matched"]
    near, far = found.separations["matched"], found.separations["naive"]
    assert near.distance < far.distance
    assert 0.0 < found.moved <= 1.0


def test_lambda_zero_is_evaluated_once_for_both_curves():
    a, b, c = ({"w": torch.full((1,), float(i))} for i in range(3))
    points, lines = lay_out({"naive": (a, b), "matched": (a, c)}, GRID)
    assert lines == {"naive": [0, 1, 2], "matched": [0, 3, 4]}
    assert [float(p.state()["w"]) for p in points] == [0.0, 0.5, 1.0, 1.0, 2.0]
