"""Where the weights at λ = 1 come from."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier

from lightning_rebasin.callbacks.reference import (
    FixedReference,
    FolderReference,
    InitialReference,
    PreviousReference,
    fitting,
    make_reference,
)
from lightning_rebasin.checkpoints import write_checkpoint
from lightning_rebasin.errors import (
    BarrierWarning,
    CheckpointError,
    ConfigurationError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.landscape.trajectory import Snapshot, write_index
from lightning_rebasin.landscape.weights import weights_of


class At:
    """A trainer of one process at one step."""

    is_global_zero = True

    def __init__(self, step, *callbacks):
        self.global_step = step
        self.callbacks = list(callbacks)


def plain(module):
    return {name: t.clone() for name, t in weights_of(module).items()}


def folder_with(tmp_path, module, steps):
    run = []
    for step in steps:
        path = tmp_path / f"step={step}.ckpt"
        state = {name: t + step for name, t in plain(module).items()}
        write_checkpoint(path, state)
        run.append(Snapshot(step, 0, path))
    write_index(tmp_path, run)
    return tmp_path


def test_the_argument_names_the_kind(tmp_path):
    assert isinstance(make_reference("init"), InitialReference)
    assert isinstance(make_reference("previous"), PreviousReference)
    assert isinstance(make_reference(tmp_path), FolderReference)
    assert isinstance(make_reference(tmp_path / "x.ckpt"), FixedReference)
    assert isinstance(make_reference({}), FixedReference)


def test_a_file_and_a_state_dict_are_the_same_reference(tmp_path):
    module = Classifier()
    write_checkpoint(tmp_path / "x.ckpt", plain(module))
    for source in (tmp_path / "x.ckpt", plain(module)):
        reference = make_reference(source)
        reference.check(At(0), module)
        found = reference.weights(At(5))
        for name, tensor in weights_of(module).items():
            assert torch.equal(found[name], tensor)


def test_initial_weights_outlive_a_resume(tmp_path):
    module = Classifier()
    began = plain(module)
    first = InitialReference()
    first.start(At(0), module, tmp_path / "logs" / "init.ckpt")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    resumed = InitialReference()
    resumed.load_state_dict(first.state_dict())
    resumed.start(At(3), module, tmp_path / "elsewhere.ckpt")
    for reference in (first, resumed):
        found = reference.weights(At(3))
        assert all(torch.equal(found[n], began[n]) for n in began)
    with pytest.raises(ConfigurationError, match="'init' is unknown"):
        InitialReference().start(At(3), module, tmp_path / "x.ckpt")


def test_another_run_is_met_at_the_same_step(tmp_path):
    module = Classifier()
    reference = make_reference(folder_with(tmp_path, module, (0, 4)))
    reference.check(At(0), module)
    found = reference.weights(At(4))
    assert torch.equal(found["net.fc1.bias"], module.net.fc1.bias + 4)
    with pytest.warns(BarrierWarning, match="no snapshot at step 5"):
        assert reference.weights(At(5)) is None


def test_an_empty_run_and_no_snapshots_are_refused(tmp_path):
    write_index(tmp_path, [])
    with pytest.raises(CheckpointError, match="holds no snapshots"):
        FolderReference(tmp_path).check(At(0), Classifier())
    with pytest.raises(ConfigurationError, match="add CheckpointSnapshot"):
        PreviousReference().check(At(0), Classifier())


def test_what_does_not_fit_is_named():
    module = Classifier()
    good = plain(module)
    # Persistent states of metrics may be there or not.
    assert set(fitting(module, module.state_dict(), "x")) == set(good)
    with pytest.raises(StateDictError, match="x has the unexpected 'more'"):
        fitting(module, {**good, "more": torch.zeros(1)}, "x")
    broken = {**good, "net.fc1.bias": torch.full((8,), float("nan"))}
    with pytest.raises(NonFiniteError, match=r"x: tensor 'net\.fc1\.bias'"):
        fitting(module, broken, "x")
