"""Tracing leaves the model as it was, sees through wrappers, and names what went wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


class Nosy(nn.Module):
    """Dropout, batch norm, a counter that is written, random numbers, an input that is written."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = (
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
        )
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x):
        x.mul_(2)
        self.calls.add_(1)
        self.calls[1] = 7
        return self.b(
            F.dropout(self.n(self.a(x)), training=self.training)
        ) + 0 * torch.rand(1)


def test_nothing_of_the_model_changes():
    module = Nosy().train()
    module.a.eval()
    module.b.weight.requires_grad_(requires_grad=False)
    fired = []
    module.a.register_forward_hook(lambda *_: fired.append(1))
    state = {
        name: tensor.clone() for name, tensor in module.state_dict().items()
    }
    modes = {name: sub.training for name, sub in module.named_modules()}
    example, seed = torch.randn(3, 4), torch.get_rng_state()
    copy = example.clone()
    kernels = (
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
    )
    infer_spec(module, example)
    assert {
        name: sub.training for name, sub in module.named_modules()
    } == modes
    assert all(
        torch.equal(tensor, state[name])
        for name, tensor in module.state_dict().items()
    )
    assert torch.equal(example, copy)
    assert torch.equal(torch.get_rng_state(), seed)
    assert (
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
    ) == kernels
    assert len(module.a._forward_hooks) == 1
    assert fired == [1]
    assert not module.b.weight.requires_grad
    assert module.a.weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert not torch.nn.modules.module._global_forward_hooks


def test_state_is_put_back_after_a_failure():
    module = Nosy().train()
    calls = module.calls.clone()
    with pytest.raises(TraceError):
        infer_spec(module, torch.zeros(3, 5))
    assert module.training
    assert torch.equal(module.calls, calls)


def test_wrong_input_is_named():
    with pytest.raises(
        TraceError,
        match=r"Linear does not run on the example input \(float32 \(2, 5\)\): RuntimeError",
    ):
        infer_spec(nn.Linear(4, 3), torch.zeros(2, 5))
    with pytest.raises(TraceError, match="example"):
        infer_spec(nn.Linear(4, 3))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64]
)
def test_any_dtype(dtype):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)
    assert [
        g.size
        for g in infer_spec(
            net, torch.zeros(2, 4, dtype=dtype)
        ).groups.values()
    ] == [5]


def test_compiled_modules_are_looked_through():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    spec = infer_spec(torch.compile(net, backend="eager"), torch.zeros(2, 4))
    assert set(spec.tensors) == set(net.state_dict())


def test_inner_compiled_modules_keep_their_names():
    net = nn.Sequential(
        torch.compile(nn.Linear(4, 5), backend="eager"),
        nn.ReLU(),
        nn.Linear(5, 2),
    )
    spec = infer_spec(net, torch.zeros(2, 4))
    assert set(spec.tensors) == set(net.state_dict())
    assert len(spec.groups) == 1


def test_keyword_and_nested_inputs():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, batch, *, mask):
            return self.b(torch.relu(self.a(batch["x"])) * mask)

    spec = infer_spec(
        Keywords(), {"x": torch.zeros(2, 4)}, mask=torch.ones(2, 1)
    )
    assert [g.size for g in spec.groups.values()] == [5]


def test_example_input_array_may_be_a_tensor_a_tuple_or_a_dict():
    for example in (
        torch.zeros(2, 4),
        (torch.zeros(2, 4),),
        {"input": torch.zeros(2, 4)},
    ):
        net = nn.Linear(4, 3)
        net.example_input_array = example
        assert [p.reason for p in infer_spec(net).pinned if p.dim == 0] == [
            "it is an output"
        ] * 2


def test_recurrent_networks_and_transformers_arrive_decomposed():
    ops = {
        node.op
        for node in record(
            nn.LSTM(3, 4), Example((torch.zeros(5, 2, 3),))
        ).nodes
    }
    assert not any("lstm" in op or "rnn" in op for op in ops)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ops = {
        node.op
        for node in record(layer, Example((torch.zeros(2, 3, 8),))).nodes
    }
    assert "aten._transformer_encoder_layer_fwd" not in ops


def test_tape_is_in_single_assignment_form():
    class Writes(nn.Module):
        def forward(self, x):
            y = x.clone()
            view = y[:, 1:]
            view.add_(1)
            return y * 2

    tape = record(Writes(), Example((torch.zeros(2, 3),)))
    outputs = [v for node in tape.nodes for v in node.outputs]
    assert len(outputs) == len(set(outputs))
    assert [node.op for node in tape.live_nodes()[0]][-1] == "aten.mul"
    assert "tape.write_back" in [node.op for node in tape.live_nodes()[0]]


def test_inference_mode_makes_no_difference():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    expected = infer_spec(net, torch.zeros(2, 3, 4))

    class Inference(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        @torch.inference_mode()
        def forward(self, x):
            return self.net(x)

    with torch.inference_mode():
        assert infer_spec(net, torch.zeros(2, 3, 4)) == expected
    inner = infer_spec(Inference(), torch.zeros(2, 3, 4))
    assert [g.size for g in inner.groups.values()] == [5]


def test_model_without_tensor_outputs_is_refused():
    class Silent(nn.Module):
        def forward(self, x):
            return None

    with pytest.raises(TraceError, match="returned no tensor"):
        infer_spec(Silent(), torch.zeros(1))
