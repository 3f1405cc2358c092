"""One test per trap that was measured in Lightning: what goes wrong if a callback evaluates other weights carelessly.

The other traps of the list are held by ``test_untouched.py`` (logged values, generators, gradients in the middle of
accumulation), ``test_distributed.py`` (values per process, repeated samples), ``test_resume.py`` (state) and
``test_loss_barrier.py`` (averaged weights, nested modules).
"""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier, blobs, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from lightning_rebasin import LossBarrier, measure_barrier


def fit(tmp_path, *callbacks, module=None, loader=None, **kwargs):
    seed_everything(1, verbose=False)
    module = module or Classifier()
    trainer = trainer_in(tmp_path, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, train_loader(), loader or val_loader())
    return trainer, module


def shifted(module, seed=0):
    """Another set of weights for a module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in module.state_dict().items()
    }


def test_calling_the_module_again_would_pollute_its_own_logged_values(
    tmp_path,
):
    """Trap: a second validation_step of the module itself adds to the user's averages."""
    plain, _ = fit(tmp_path / "1")
    reference = {k: v * 5 for k, v in Classifier().state_dict().items()}
    measured, _ = fit(tmp_path / "2", LossBarrier(reference, "none", points=5))
    for name, value in plain.callback_metrics.items():
        assert float(measured.callback_metrics[name]) == float(value), name
    assert float(measured.callback_metrics["barrier/val_loss"]) > 0.1


def test_iterating_the_loader_would_stop_a_validation_with_persistent_workers(
    tmp_path,
):
    """Trap: with persistent workers the loader has one iterator, and a second loop over it ends the first one."""
    loader = DataLoader(
        blobs(50, 1), batch_size=16, num_workers=1, persistent_workers=True
    )
    barrier = LossBarrier("init", "none", points=3)
    trainer, _ = fit(tmp_path, barrier, loader=loader)
    assert float(trainer.callback_metrics["val_count"]) == 50
    assert [m.curves["naive"].samples for m in barrier.measurements] == [
        50,
        50,
    ]
    del loader


def test_nested_validation_would_call_every_hook_again(tmp_path):
    """Trap: trainer.validate breaks the fit, and the evaluation loop calls the hooks of every callback once more."""

    class Counter(Callback):
        def __init__(self):
            self.counts = {}

        def count(self, name):
            self.counts[name] = self.counts.get(name, 0) + 1

        def on_validation_start(self, *_):
            self.count("start")

        def on_validation_epoch_start(self, *_):
            self.count("epoch start")

        def on_validation_batch_start(self, *_):
            self.count("batch start")

        def on_validation_batch_end(self, *_):
            self.count("batch end")

        def on_validation_epoch_end(self, *_):
            self.count("epoch end")

        def on_validation_end(self, *_):
            self.count("end")

    class Hooked(Classifier):
        def __init__(self):
            super().__init__()
            self.calls = []

        def on_validation_batch_end(self, *_):
            self.calls.append("batch")

        def on_validation_epoch_end(self):
            self.calls.append("epoch")

    plain, measured = Counter(), Counter()
    _, one = fit(tmp_path / "1", plain, module=Hooked())
    _, two = fit(
        tmp_path / "2",
        measured,
        LossBarrier("init", "none", points=5),
        module=Hooked(),
    )
    assert plain.counts == measured.counts
    assert one.calls == two.calls


def test_tensors_made_during_validation_are_usable_afterwards(tmp_path):
    """Trap: what is cloned in inference mode is an inference tensor; training on would raise."""
    barrier = LossBarrier("init", "both", spec=Classifier().spec(), points=3)
    trainer, _ = fit(tmp_path, barrier)
    for order in barrier.state_dict()["alignment"]["orders"].values():
        assert not order.is_inference()
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=True)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_one_autocast_context_for_all_points_would_evaluate_old_weights(
    tmp_path, inference_mode
):
    """Trap: autocast caches the cast weights; both ends must be what validation says in the same precision.

    That every point gets its own context is held by tests/landscape/test_probe.py.
    """
    module = Classifier(hidden=64)
    reference = shifted(module)
    options = {"precision": "bf16-mixed", "inference_mode": inference_mode}
    barrier = LossBarrier(reference, "none", points=3)
    trainer_in(tmp_path / "1", callbacks=[barrier], **options).validate(
        module, val_loader(), verbose=False
    )
    curve = barrier.measurements[0].curves["naive"]
    ends = []
    for state in (module.state_dict(), reference):
        other = Classifier(hidden=64)
        other.load_state_dict(state)
        ends.append(
            trainer_in(tmp_path / "2", logger=False, **options).validate(
                other, val_loader(), verbose=False
            )[0]
        )
    for name in curve.values:
        assert curve.values[name][0] == pytest.approx(
            ends[0][name], rel=1e-6
        ), name
        assert curve.values[name][-1] == pytest.approx(
            ends[1][name], rel=1e-6
        ), name
    assert len(set(curve.values["val_loss"])) == 3


@pytest.mark.parametrize(
    "compiled", [pytest.param("module", marks=pytest.mark.slow), "submodule"]
)
def test_a_copy_of_a_compiled_module_would_run_the_original(
    tmp_path, compiled
):
    """Trap: compiled methods stay bound to the original, and compiled submodules rename their weights."""
    plain = Classifier()
    reference = shifted(plain)
    expected = LossBarrier(reference, "both", spec=plain.spec(), points=3)
    trainer_in(tmp_path / "1", callbacks=[expected]).validate(
        plain, val_loader(), verbose=False
    )
    module = Classifier()
    module.load_state_dict(plain.state_dict())
    if compiled == "submodule":
        module.net = torch.compile(module.net, backend="eager")
        # A reference that was itself saved from a compiled module
        reference = {
            name.replace("net.", "net._orig_mod."): tensor
            for name, tensor in reference.items()
        }
    barrier = LossBarrier(reference, "both", spec=plain.spec(), points=3)
    trainer = trainer_in(tmp_path / "2", callbacks=[barrier])
    with torch._dynamo.config.patch(suppress_errors=True):
        runs = (
            torch.compile(module, backend="eager")
            if compiled == "module"
            else module
        )
        trainer.validate(runs, val_loader(), verbose=False)
    for label in ("naive", "matched"):
        assert (
            barrier.measurements[0].curves[label].values
            == expected.measurements[0].curves[label].values
        )
    assert (
        len(set(barrier.measurements[0].curves["naive"].values["val_loss"]))
        == 3
    )


def test_validation_in_the_middle_of_accumulation_keeps_the_gradients(
    tmp_path,
):
    """Trap: half of an accumulated gradient is waiting in .grad."""

    class Gradients(Callback):
        def __init__(self):
            self.seen = []

        def on_validation_start(self, trainer, module):
            self.before = [
                None if p.grad is None else p.grad.clone()
                for p in module.parameters()
            ]

        def on_validation_end(self, trainer, module):
            after = [p.grad for p in module.parameters()]
            equal = [
                (a is None and b is None) or torch.equal(a, b)
                for a, b in zip(self.before, after, strict=True)
            ]
            self.seen.append(
                (
                    all(equal),
                    any(b is not None and bool(b.any()) for b in after),
                )
            )

    watcher = Gradients()
    fit(
        tmp_path, watcher, LossBarrier("init", "both", spec=Classifier().spec(), points=3),
        accumulate_grad_batches=2, val_check_interval=1,
    )  # fmt: skip
    assert all(equal for equal, _ in watcher.seen)
    assert any(waiting for _, waiting in watcher.seen), (
        "no gradient was waiting, so the test shows nothing"
    )


def test_a_reference_with_averaged_weights_is_the_averaged_one(tmp_path):
    """Trap: under WeightAveraging the state_dict of a file holds the averaged weights, not the live ones."""
    trainer, _ = fit(tmp_path / "1", EMAWeightAveraging(decay=0.9))
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    averaged = torch.load(tmp_path / "ema.ckpt", weights_only=True)[
        "state_dict"
    ]
    barrier = LossBarrier(tmp_path / "ema.ckpt", "none", points=2)
    other = Classifier()
    validating = trainer_in(tmp_path / "2", callbacks=[barrier])
    validating.validate(other, val_loader(), verbose=False)
    other.trainer = validating
    expected = measure_barrier(
        other, other.state_dict(), averaged, val_loader(), points=2
    )
    assert barrier.measurements[0].curves["naive"].values[
        "val_loss"
    ] == pytest.approx(expected.values["val_loss"])


def test_callbacks_of_one_class_keep_separate_states(tmp_path):
    """Trap: two instances with one state_key overwrite each other's state, and an empty state is not saved at all."""
    one = LossBarrier("init", "none", points=2)
    two = LossBarrier(
        "init", "none", points=2, prefix="two", every_n_validations=2
    )
    trainer, _ = fit(tmp_path, one, two)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    assert (
        saved[one.state_key]["scalars"].keys()
        != saved[two.state_key]["scalars"].keys()
    )
    assert {one.state_key, two.state_key} <= set(saved)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_training_on_a_gpu_is_untouched(tmp_path, precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    losses = []
    for attach in (False, True):
        barriers = (
            [LossBarrier("init", "both", spec=Classifier().spec(), points=3)]
            if attach
            else []
        )
        options = {"accelerator": "gpu", "precision": precision}
        _, module = fit(
            tmp_path / str(attach), *barriers, module=None, **options
        )
        losses.append(
            (
                module.train_losses,
                [p.detach().cpu() for p in module.parameters()],
            )
        )
    assert losses[0][0] == losses[1][0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(losses[0][1], losses[1][1], strict=True)
    )
