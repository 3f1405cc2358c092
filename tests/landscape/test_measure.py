"""measure_barrier against trainer.validate, direct evaluation and known functions."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, Classifier, blobs, val_loader
from helpers.models import BatchNormCNN, mlp
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    StateDictError,
)
from lightning_rebasin.landscape.measure import measure_barrier


def cross_entropy(module, batch):
    x, y = batch
    return nn.functional.cross_entropy(module(x), y)


def quiet_trainer(**kwargs) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **kwargs,
    )  # fmt: skip


def two_classifiers(**kwargs):
    torch.manual_seed(0)
    module = Classifier(**kwargs)
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = {
        k: v + torch.randn_like(v) if v.is_floating_point() else v + 3
        for k, v in a.items()
    }
    return module, a, b


def validated(module, state, loaders):
    other = copy.deepcopy(module)
    other.load_state_dict(state)
    rows = quiet_trainer().validate(other, loaders, verbose=False)
    return {k: v for row in rows for k, v in row.items()}


def test_every_point_equals_trainer_validate_with_those_weights():
    """Includes accuracy, AUROC, a metric collection, max and sum reductions, and a smaller last batch."""
    module, a, b = two_classifiers()
    module.trainer = quiet_trainer()
    curve = measure_barrier(module, a, b, val_loader(), points=5)
    assert curve.lambdas == (0.0, 0.25, 0.5, 0.75, 1.0)
    for i, lam in enumerate(curve.lambdas):
        mixed = {
            k: (1 - lam) * a[k] + lam * b[k]
            if a[k].is_floating_point()
            else a[k]
            for k in a
        }
        expected = validated(module, mixed, val_loader())
        assert {
            "val_loss",
            "val_acc",
            "val_auroc",
            "val_f1",
            "val_macro",
            "val_largest",
            "val_count",
        } == set(expected)
        for name, value in expected.items():
            assert curve.values[name][i] == pytest.approx(value, rel=1e-5), (
                name,
                lam,
            )
    assert curve.samples == 50
    assert curve.higher_is_better["val_auroc"]


def test_the_module_is_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True)
    module.trainer = quiet_trainer()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.train()
    batches, train = list(val_loader()), list(val_loader(seed=3))
    generator = torch.get_rng_state()
    measure_barrier(module, a, b, batches, points=3, batch_norm=train)
    measure_barrier(module, a, b, val_loader(), points=3)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(
        torch.equal(before[k], v) for k, v in module.state_dict().items()
    )
    assert torch.equal(generator, torch.get_rng_state())
    assert module.val_acc.update_count == 0


def test_average_is_weighted_by_samples():
    """Batches of 48 and 2: the unweighted mean of batch means would differ."""
    torch.manual_seed(1)
    net = mlp(FEATURES, 4, CLASSES)
    data = blobs(50, 5)
    state = net.state_dict()
    curve = measure_barrier(
        net,
        state,
        state,
        DataLoader(data, batch_size=48),
        points=2,
        loss=cross_entropy,
    )
    with torch.no_grad():
        expected = float(cross_entropy(net, data.tensors))
        unweighted = (
            sum(
                float(cross_entropy(net, batch))
                for batch in DataLoader(data, batch_size=48)
            )
            / 2
        )
    assert curve.values["loss"] == pytest.approx((expected,) * 3, rel=1e-6)
    assert abs(unweighted - expected) > 1e-3


def test_double_precision_modules_are_measured_in_double():
    torch.manual_seed(1)
    net = mlp(FEATURES, 4, CLASSES).double()
    x, y = blobs(30, 5).tensors
    loader = DataLoader(TensorDataset(x.double(), y), batch_size=7)
    a = {k: v.clone() for k, v in net.state_dict().items()}
    b = {k: v + torch.randn_like(v) for k, v in a.items()}
    curve = measure_barrier(
        net, a, b, loader, points=[0.3], loss=cross_entropy
    )
    mixed = {k: 0.7 * a[k] + 0.3 * b[k] for k in a}
    with torch.no_grad():
        expected = nn.functional.cross_entropy(
            torch.func.functional_call(net, mixed, x.double()), y
        )
    assert curve.values["loss"][1] == pytest.approx(float(expected), rel=1e-12)


def test_several_metrics_and_several_loaders():
    net = mlp(FEATURES, 4, CLASSES)
    state = net.state_dict()

    def both(module, batch):
        logits = module(batch[0])
        return {
            "loss": nn.functional.cross_entropy(logits, batch[1]),
            "acc": (logits.argmax(1) == batch[1]).float().mean(),
        }

    curve = measure_barrier(
        net,
        state,
        state,
        [val_loader(), val_loader(seed=2)],
        points=2,
        loss=both,
    )
    names = {
        f"{n}/dataloader_idx_{i}" for n in ("loss", "acc") for i in (0, 1)
    }
    assert set(curve.values) == names
    one = measure_barrier(
        net, state, state, val_loader(seed=2), points=2, loss=both
    )
    assert curve.values["loss/dataloader_idx_1"] == one.values["loss"]


def test_lightning_module_with_several_loaders_names_as_lightning_does():
    module, a, b = two_classifiers()
    loaders = [val_loader(), val_loader(seed=2)]
    module.trainer = quiet_trainer()
    module.trainer.validate_loop._max_batches = [4, 4]
    expected = validated(module, b, loaders)

    class TwoLoaders(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log(
                "val_loss",
                nn.functional.cross_entropy(self(batch[0]), batch[1]),
            )

    curve = measure_barrier(TwoLoaders(), a, b, loaders, points=2)
    for index in (0, 1):
        name = f"val_loss/dataloader_idx_{index}"
        assert curve.values[name][-1] == pytest.approx(
            expected[name], rel=1e-6
        )


def test_limit_batches():
    net = mlp(FEATURES, 4, CLASSES)
    state = net.state_dict()
    assert (
        measure_barrier(
            net,
            state,
            state,
            val_loader(),
            points=2,
            loss=cross_entropy,
            limit_batches=2,
        ).samples
        == 32
    )


def test_steps_that_draw_random_numbers_see_the_same_ones_at_every_point():
    module, a, _ = two_classifiers(noise=True)
    module.trainer = quiet_trainer()
    before = torch.get_rng_state()
    curve = measure_barrier(module, a, a, val_loader(), points=5)
    assert len(set(curve.values["val_loss"])) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_steps_may_change_their_batch_in_place():
    net = mlp(FEATURES, 4, CLASSES)
    state = net.state_dict()

    def destructive(module, batch):
        batch["x"].mul_(0.5)
        return nn.functional.cross_entropy(module(batch.pop("x")), batch["y"])

    batches = [{"x": x, "y": y} for x, y in val_loader()]
    curve = measure_barrier(
        net, state, state, batches, points=5, loss=destructive
    )
    assert len(set(curve.values["loss"])) == 1
    assert all("x" in batch for batch in batches)


def test_batch_norm_is_re_estimated_at_every_point():
    """Against the textbook: load the mixture, reset, average cumulatively over the training batches."""
    torch.manual_seed(3)
    net = BatchNormCNN()
    a = {k: v.clone() for k, v in net.state_dict().items()}
    b = {
        k: v + 0.3 * torch.randn_like(v) if v.is_floating_point() else v
        for k, v in a.items()
    }
    b = {k: v.abs() + 0.1 if "running_var" in k else v for k, v in b.items()}
    images = [torch.randn(6, 3, 8, 8) for _ in range(3)]
    test = [(torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4]))]

    def loss(module, batch):
        return cross_entropy(module, batch)

    train = [(x, torch.zeros(6, dtype=torch.long)) for x in images]
    curve = measure_barrier(
        net, a, b, test, points=3, loss=loss, batch_norm=train
    )
    for i, lam in enumerate(curve.lambdas):
        other = copy.deepcopy(net)
        other.load_state_dict(
            {
                k: torch.lerp(a[k], b[k], lam)
                if a[k].is_floating_point()
                else a[k]
                for k in a
            }
        )
        torch.optim.swa_utils.update_bn(images, other)
        other.eval()
        with torch.no_grad():
            assert curve.values["loss"][i] == pytest.approx(
                float(cross_entropy(other, test[0])), rel=1e-5
            )
    plain = measure_barrier(net, a, b, test, points=3, loss=loss)
    assert abs(plain.values["loss"][1] - curve.values["loss"][1]) > 1e-3


def test_published_counterexample_has_a_barrier_of_a_quarter_in_every_arrangement():
    """Git Re-Basin, appendix: no permutation of B removes the barrier, which is 0.25 in 0-1 error."""
    a = [[[-1, 0], [0, -1]], [1, 0], [[-1, 0], [0, 1]], [1, 0], [[-1, -1]]]
    b = [[[1, 0], [0, 1]], [0, 1], [[1, 0], [0, -1]], [0, 1], [[-1, -1]]]
    net = nn.Sequential(
        nn.Linear(2, 2),
        nn.ReLU(),
        nn.Linear(2, 2),
        nn.ReLU(),
        nn.Linear(2, 1, bias=False),
    )
    names = list(net.state_dict())
    state_a = {
        n: torch.tensor(v, dtype=torch.float)
        for n, v in zip(names, a, strict=True)
    }
    grid = torch.linspace(-1, 1, 41) + 1e-3
    points = torch.cartesian_prod(grid, grid)
    target = (points[:, 0] < 0) & (points[:, 1] > 0)

    def error(module, batch):
        return {
            "error": ((module(batch[0])[:, 0] >= 0) != batch[1]).float().mean()
        }

    for swap1 in (False, True):
        for swap2 in (False, True):
            w1, c1, w2, c2, w3 = (
                torch.tensor(v, dtype=torch.float) for v in b
            )
            if swap1:
                w1, c1, w2 = w1.flip(0), c1.flip(0), w2.flip(1)
            if swap2:
                w2, c2, w3 = w2.flip(0), c2.flip(0), w3.flip(1)
            state_b = dict(zip(names, (w1, c1, w2, c2, w3), strict=True))
            curve = measure_barrier(
                net,
                state_a,
                state_b,
                [(points, target)],
                points=25,
                loss=error,
            )
            assert curve.values["error"][0] == 0
            assert curve.values["error"][-1] == 0
            assert curve.height("error") == pytest.approx(0.25, abs=0.02)


def test_compiled_names_and_modules_are_accepted():
    module, a, b = two_classifiers()
    module.trainer = quiet_trainer()
    expected = measure_barrier(module, a, b, val_loader(), points=3)
    module.net = torch.compile(module.net, backend="eager")
    compiled = measure_barrier(
        module, module.state_dict(), b, val_loader(), points=3
    )
    assert compiled.values == expected.values


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_wrong_weights_are_named(change):
    net = mlp(FEATURES, 4, CLASSES)
    good = dict(net.state_dict())
    bad = dict(good)
    if change == "missing":
        del bad["0.bias"]
    elif change == "extra":
        bad["0.other"] = bad["0.bias"]
    else:
        bad["0.bias"] = torch.zeros(9)
    with pytest.raises(StateDictError, match=r"0\.(bias|other)"):
        measure_barrier(net, good, bad, val_loader(), loss=cross_entropy)


def test_a_plain_module_needs_a_loss():
    net = mlp(FEATURES, 4, CLASSES)
    with pytest.raises(ConfigurationError, match="loss="):
        measure_barrier(net, net.state_dict(), net.state_dict(), val_loader())


def test_no_batches_is_an_error():
    net = mlp(FEATURES, 4, CLASSES)
    with pytest.raises(DataError, match="no batch"):
        measure_barrier(
            net, net.state_dict(), net.state_dict(), [], loss=cross_entropy
        )


def test_what_cannot_be_copied_is_named():
    class Locked(LightningModule):
        def __init__(self):
            super().__init__()
            self.handle = (i for i in range(3))

        def validation_step(self, batch, batch_idx):
            pass

    with pytest.raises(ConfigurationError, match="Locked cannot be copied"):
        measure_barrier(Locked(), {}, {}, val_loader())
