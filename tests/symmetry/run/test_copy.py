"""Private copies: the caller's model is left alone, wrappers and compiled code stay behind."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.run.copy import (
    private_copy,
    run_own_code,
    tensor_state,
    uncompiled,
    unwrap,
)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)

    def validation_step(self, batch, batch_idx):
        return self(batch).sum()


def test_wrappers_in_any_order_are_taken_off():
    net = nn.Linear(2, 2)
    wrapped = nn.DataParallel(torch.compile(net, backend="eager"))
    wrapped = torch.compile(wrapped, backend="eager")
    assert unwrap(wrapped) is net
    assert type(uncompiled(wrapped)) is nn.DataParallel
    assert unwrap(net) is net


def test_a_copy_is_independent_and_in_eval_mode():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).double()
    copy = private_copy(net)
    assert net.training
    assert not copy.training
    assert copy[0].weight.dtype == torch.float64
    with torch.no_grad():
        copy[0].weight.zero_()
    assert bool(net[0].weight.any())


def test_shared_parameters_use_the_memory_of_the_original():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(requires_grad=False)
    copy = private_copy(net, share=True)
    assert copy.weight.data_ptr() == net.weight.data_ptr()
    assert copy.weight is not net.weight
    assert [p.requires_grad for p in copy.parameters()] == [True, False]


def test_compiled_parts_run_the_weights_of_the_copy():
    net = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    copy = private_copy(net)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert type(copy[0]) is nn.Linear
    assert not bool(copy(torch.ones(1, 2)).any())


def test_steps_that_were_compiled_with_the_module_are_dropped():
    net = Net()
    net._compiler_ctx = {"compiler": "dynamo"}
    net.forward = lambda x: x - 100
    copy = private_copy(net)
    assert "forward" not in vars(copy)
    assert copy._compiler_ctx is None
    assert float(net(torch.zeros(1))) == -100, "the original keeps its own"
    run_own_code(copy, uncompiled)
    assert torch.equal(copy(torch.ones(2)), net.layer(torch.ones(2)))


def test_hook_style_weight_norm_can_be_copied():
    with pytest.warns(FutureWarning, match="weight_norm"):
        net = torch.nn.utils.weight_norm(nn.Linear(2, 2))
    x = torch.randn(3, 2)
    assert torch.equal(private_copy(net)(x), net(x))


def test_a_redirected_log_does_not_drag_its_owner_along():
    class Owner:
        def __deepcopy__(self, memo):
            raise AssertionError("dragged along")

        def log(self, *_args, **_kwargs):
            pass

    net = Net()
    net.log = Owner().log
    assert private_copy(net).layer is not net.layer


def test_what_cannot_be_copied_is_named():
    net = nn.Linear(2, 2)
    net.file = (i for i in range(3))
    with pytest.raises(TraceError, match="cannot copy Linear: TypeError"):
        private_copy(net)


def test_extra_state_is_not_a_tensor():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return "text"

        def set_extra_state(self, state):
            pass

    assert set(tensor_state(Extra(2, 2))) == {"weight", "bias"}
