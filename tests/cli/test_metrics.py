"""What the commands measure a network by: what it logs, or accuracy and cross-entropy of a classifier."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.classifier import Classifier, blobs, val_loader
from helpers.models import randomise
from torch import nn

from lightning_rebasin.cli import metrics
from lightning_rebasin.cli.datasets import Data
from lightning_rebasin.errors import DataError


def by_hand(network: nn.Module) -> tuple[float, float]:
    """Loss and accuracy of all samples of ``val_loader()`` at once."""
    inputs, labels = blobs(50, 1).tensors
    with torch.no_grad():
        logits = network(inputs).double()
    right = logits.log_softmax(1)[torch.arange(50), labels]
    hits = (logits.argmax(1) == labels).double()
    return -float(right.mean()), float(hits.mean())


def test_equal_logits_cost_the_logarithm_of_the_classes() -> None:
    batch = (torch.randn(6, 4), torch.tensor([0, 0, 1, 2, 3, 4]))
    network = nn.Linear(4, 5)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        values = metrics.cross_entropy(network, batch)
    assert float(values["loss"]) == pytest.approx(math.log(5))
    # A tie goes to the first class, and two of the six labels are 0.
    assert float(values["accuracy"]) == pytest.approx(2 / 6)


def test_a_classifier_is_averaged_over_samples_not_batches() -> None:
    torch.manual_seed(0)
    network = nn.Linear(6, 3)
    # The last of the four batches has 2 samples, the others 16.
    evaluate = metrics.evaluator(network, Data(validate=val_loader()))
    assert evaluate is not None
    loss, accuracy = by_hand(network)
    assert evaluate(network) == pytest.approx(
        {"loss": loss, "accuracy": accuracy}, rel=1e-5
    )


def test_a_lightning_module_says_itself_what_is_measured() -> None:
    torch.manual_seed(0)
    network = Classifier()
    evaluate = metrics.evaluator(network, Data(validate=val_loader()))
    assert evaluate is not None
    measured = evaluate(network)
    loss, accuracy = by_hand(network)
    assert measured["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert measured["val_acc"] == pytest.approx(accuracy)
    assert measured["val_count"] == 50


def test_without_network_or_loader_nothing_is_evaluated() -> None:
    assert metrics.evaluator(None, Data(validate=val_loader())) is None
    assert metrics.evaluator(nn.Linear(6, 3), Data()) is None


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(4, 6, dtype=torch.long),
        (torch.zeros(4, 6),),
        (torch.zeros(4, 6), torch.zeros(4)),
        (torch.zeros(4, 6), torch.zeros(4, 2, dtype=torch.long)),
        (torch.zeros(4, 6), [0, 1, 2, 0]),
    ],
    ids=["bare", "alone", "real targets", "matrix targets", "list targets"],
)
def test_other_batches_are_no_classification(batch: object) -> None:
    assert metrics.evaluator(nn.ReLU(), Data(validate=[batch])) is None


@pytest.mark.parametrize("network", [nn.Linear(6, 3), Classifier()])
def test_data_that_cannot_evaluate_are_an_error(network: nn.Module) -> None:
    with pytest.raises(DataError, match="no batch to evaluate on"):
        metrics.evaluator(network, Data(validate=[]))
    with pytest.raises(DataError, match="only once"):
        metrics.evaluator(network, Data(validate=iter(val_loader())))


def test_the_loss_that_decides_is_what_validation_logs() -> None:
    module = Classifier(hidden=6)
    batch = next(iter(val_loader()))
    loss = metrics.held_out_loss(module, Data([batch]))
    assert loss is not None
    with torch.no_grad():
        logits = module.eval()(batch[0])
    expected = nn.functional.cross_entropy(logits, batch[1])
    assert loss(module, batch) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_is_that_of_the_network_it_is_given() -> None:
    """One copy of the module takes the weights of every network in turn, and changes none of them."""
    modules = [randomise(Classifier(hidden=6), seed) for seed in (1, 2)]
    batch = next(iter(val_loader()))
    loss = metrics.held_out_loss(modules[0], Data([batch]))
    assert loss is not None
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    found = [loss(module, batch) for module in modules]
    for module, value in zip(modules, found, strict=True):
        with torch.no_grad():
            expected = nn.functional.cross_entropy(
                module.eval()(batch[0]), batch[1]
            )
        assert value == pytest.approx(float(expected), rel=1e-5)
    for module, state in zip(modules, before, strict=True):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[name])


def test_a_plain_classifier_is_judged_by_its_cross_entropy() -> None:
    network = nn.Linear(6, 3)
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    loss = metrics.held_out_loss(network, Data([(x, y)]))
    assert loss is not None
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(x), y)
        assert loss(network, (x, y)) == pytest.approx(
            float(expected), rel=1e-6
        )


def test_without_labels_there_is_no_loss() -> None:
    assert (
        metrics.held_out_loss(nn.Linear(6, 3), Data([torch.ones(5, 6)]))
        is None
    )
    assert metrics.held_out_loss(None, Data()) is None


def test_data_of_another_network_are_named() -> None:
    """The network takes six numbers, the batches have five."""
    network = Classifier(hidden=6).net
    batches = [(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(DataError, match="belong together"):
        metrics.check_fits(network, batches, metrics.cross_entropy)
    metrics.check_fits(network, val_loader(), metrics.cross_entropy)
