"""LightningModules whose computation is written in ``validation_step``: traced, proved, and left as they were."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torchmetrics
from helpers.models import mlp
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional

from lightning_rebasin.errors import EquivalenceError, TraceError
from lightning_rebasin.symmetry import (
    Example,
    Permutation,
    PermutationSpec,
    check_equivalence,
    infer_spec,
    infer_spec_many,
    measure_equivalence,
)
from lightning_rebasin.symmetry.run.lightning import few


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labelled(n=6, seed=0):
    return torch.randn(n, 5, generator=generator(seed)), torch.arange(n) % 3


class Classifier(LightningModule):
    """No forward at all: loss and metrics in ``validation_step``, which also asks for its trainer and plots."""

    def __init__(self, returns="loss"):
        super().__init__()
        self.encoder, self.head = mlp(5, 8, 6), nn.Linear(6, 3)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.returns = returns
        self.seen = []

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.head(self.encoder(x).relu())
        loss = functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("val_acc", self.accuracy, prog_bar=True)
        self.log_dict(
            {
                "val_loss": loss,
                "margin": logits.std(),
                "epoch": self.current_epoch,
            },
            on_epoch=True,
        )
        self.print("seen", len(self.seen))
        self.logger.experiment.add_histogram(
            "logits", logits, self.global_step
        )
        if self.trainer.sanity_checking:
            self.seen.append(batch_idx)
        return {
            "loss": loss,
            "logits": {"logits": logits, "loss": loss},
            None: None,
        }[self.returns]


STEP = Example((labelled(),), method="validation_step")


def randomly(spec, seed=0):
    return Permutation.random(spec, generator(seed))


@pytest.mark.parametrize("returns", ["loss", "logits", None])
def test_step_is_traced_and_proved(returns):
    module = Classifier(returns)
    spec = infer_spec(module, STEP)
    assert sorted(g.size for g in spec.groups.values()) == [6, 8]
    assert "head.bias" not in spec.maps, (
        "the classes of a batch with labels are no free units"
    )
    measured = measure_equivalence(module, randomly(spec), STEP)
    assert measured.error < 1e-12 and measured.control > 1e-4
    assert check_equivalence(module, randomly(spec), STEP) < 1e-12


@pytest.mark.parametrize("returns", ["loss", "logits", None])
def test_wrong_spec_is_refused_through_the_step(returns):
    """The control of the step itself: permuted classes change the loss of given labels, returned or logged."""
    module = Classifier(returns)
    table = {"head.weight": ("classes", None), "head.bias": ("classes",)}
    wrong = PermutationSpec.from_table(table, module.state_dict())
    p = Permutation(wrong, {"classes": torch.tensor([1, 2, 0])})
    with pytest.raises(EquivalenceError, match="another function"):
        check_equivalence(module, p, STEP)


def test_nothing_of_the_module_changes():
    module = Classifier().train()
    kept = copy.deepcopy(module.state_dict())
    random_state = torch.get_rng_state()
    x, y = STEP.args[0][0].clone(), STEP.args[0][1].clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_equivalence(module, randomly(infer_spec(module, STEP)), STEP)
    assert all(
        torch.equal(kept[name], tensor)
        for name, tensor in module.state_dict().items()
    )
    assert torch.equal(random_state, torch.get_rng_state())
    assert module.training and module._trainer is None and module.seen == []
    assert module.accuracy.update_count == 0 and type(module) is Classifier
    assert torch.equal(x, STEP.args[0][0]) and torch.equal(y, STEP.args[0][1])
    assert not module._forward_hooks and all(
        p.requires_grad and p.grad is None for p in module.parameters()
    )


def test_step_takes_indices_if_it_asks_for_them():
    class Loaders(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            assert batch_idx == dataloader_idx == 0
            return super().validation_step(batch, batch_idx)

    class Anything(Classifier):
        def validation_step(self, *args):
            return super().validation_step(*args)

    class Alone(Classifier):
        def validation_step(self, batch):
            return super().validation_step(batch, 0)

    for module in (Loaders(), Anything(), Alone()):
        assert len(infer_spec(module, STEP).groups) == 2
    explicit = Example((labelled(), 7), method="validation_step")
    assert len(infer_spec(Classifier(), explicit).groups) == 2


def test_metrics_that_add_up_do_not_leak_from_run_to_run():
    class Epoch(LightningModule):
        """Logs a state that grows with every batch."""

        def __init__(self):
            super().__init__()
            self.net = mlp(5, 7, 1)
            self.total = torchmetrics.SumMetric()

        def validation_step(self, batch):
            self.total.update(self.net(batch))
            self.log("total", self.total.compute())

    module = Epoch()
    step = Example((labelled()[0],), method="validation_step")
    assert (
        check_equivalence(module, randomly(infer_spec(module, step)), step)
        < 1e-12
    )
    assert float(module.total.sum_value) == 0.0


def test_step_and_forward_in_one_spec():
    class Both(Classifier):
        """The extra head is only used by forward."""

        def __init__(self):
            super().__init__()
            self.extra = mlp(5, 4, 2)

        def forward(self, x):
            return self.extra(x)

    module = Both()
    examples = [Example((labelled()[0],)), STEP]
    spec = infer_spec_many(module, examples)
    assert sorted(g.size for g in spec.groups.values()) == [4, 6, 8]
    assert check_equivalence(module, randomly(spec), examples=examples) < 1e-12


def test_missing_method_and_failing_step_are_named():
    with pytest.raises(TraceError, match="no method 'evaluation_step'"):
        infer_spec(
            Classifier(), Example((labelled(),), method="evaluation_step")
        )
    with pytest.raises(TraceError, match=r"validation_step\(\) expects"):
        infer_spec(
            Classifier(),
            Example((torch.zeros(2, 9),), method="validation_step"),
        )

    class Mute(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(2, 3, 1)

        def validation_step(self, batch):
            self.net(batch)

    with pytest.raises(TraceError, match="returned no tensor"):
        infer_spec(
            Mute(), Example((torch.zeros(1, 2),), method="validation_step")
        )


def test_few_cuts_what_belongs_to_the_batch():
    batch = {
        "x": torch.zeros(9, 2),
        "y": torch.zeros(9),
        "scale": torch.zeros(3),
        "name": "a",
    }
    cut = few(batch, 4)
    assert (
        cut["x"].shape == (4, 2)
        and cut["y"].shape == (4,)
        and cut["scale"].shape == (3,)
        and cut["name"] == "a"
    )


def test_compiled_module_is_traced_through_its_step():
    module = Classifier()
    spec = infer_spec(torch.compile(module, backend="eager"), STEP)
    assert len(spec.groups) == 2
    assert (
        check_equivalence(
            torch.compile(module, backend="eager"), randomly(spec), STEP
        )
        < 1e-12
    )
