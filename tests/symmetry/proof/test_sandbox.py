"""Large models keep their weights in their own precision in the gate, which still judges in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import nn
from torch.nn import functional

from lightning_rebasin.errors import EquivalenceError
from lightning_rebasin.symmetry import (
    Permutation,
    PermutationSpec,
    check_equivalence,
    infer_spec,
    measure_equivalence,
)
from lightning_rebasin.symmetry.proof import sandbox as sandbox_module
from lightning_rebasin.symmetry.proof.gate import check_in_place
from lightning_rebasin.symmetry.proof.sandbox import Sandbox


class Reader(nn.Module):
    """Tied embedding and head, recurrence, attention, weights that the parent of their owner computes with."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.rnn = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.project = nn.utils.parametrizations.weight_norm(nn.Linear(12, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens):
        x = self.project(self.rnn(self.embed(tokens))[0])
        x = self.norm(x + self.attend(x, x, x)[0]) * torch.tanh(
            self.norm.weight
        )
        return functional.linear(x, self.embed.weight)


class Masked(nn.Module):
    """Computes with another submodule's weights and passes its bias along: two precisions meet inside one call."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.b(
            functional.conv2d(x, self.a.weight * 2, self.a.bias).relu()
        )


def tokens():
    return torch.randint(
        11, (2, 5), generator=torch.Generator().manual_seed(0)
    )


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


CASES = [(Reader, tokens), (BatchNormCNN, images), (Masked, images)]


def randomly(spec):
    return Permutation.random(spec, torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch):
    monkeypatch.setattr(sandbox_module, "LARGE", 0)


@pytest.mark.parametrize(("build", "inputs"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_their_own_precision_are_judged_in_float64(
    build, inputs, dtype
):
    module = randomise(build())
    spec = infer_spec(module, inputs())
    module = module.to(dtype)
    assert Sandbox(module).narrow
    example = inputs() if build is Reader else inputs().to(dtype)
    measured = measure_equivalence(module, randomly(spec), example)
    assert (
        measured.error < 1e-12
        and measured.control > 1e-3
        and not measured.rounded
    )


def test_narrow_and_wide_weights_give_the_same_outputs():
    module = randomise(Reader())
    example = sandbox_module.Example((tokens(),))
    narrow, wide = (
        Sandbox(module, narrow=narrow).run(example)[""]
        for narrow in (True, False)
    )
    assert narrow.dtype == torch.float64
    torch.testing.assert_close(narrow, wide, rtol=1e-12, atol=1e-12)
    # What is computed in float32 differs in the eighth digit.
    assert (wide - module(tokens())).abs().max() > 1e-10


def test_wrong_specs_of_large_models_are_refused():
    module = randomise(BatchNormCNN())
    spec = infer_spec(module, images())
    wrong = PermutationSpec(
        spec.groups,
        spec.tensors,
        {n: m for n, m in spec.maps.items() if n != "bn1.running_mean"},
        spec.pinned,
    )
    for check in (check_equivalence, check_in_place):
        with pytest.raises(
            EquivalenceError, match=r"'bn1\.running_mean' must move"
        ):
            check(module, randomly(wrong), images())


@pytest.mark.parametrize(("build", "inputs"), CASES)
@pytest.mark.parametrize("fresh", [False, True])
def test_check_in_place_puts_everything_back(build, inputs, fresh):
    """Fresh networks have constant tensors, which get noise during the check."""
    module = build() if fresh else randomise(build())
    module.train()
    spec = infer_spec(module, inputs())
    kept = copy.deepcopy(module.state_dict())
    memory = [p.data_ptr() for p in module.parameters()]
    assert check_in_place(module, randomly(spec), inputs()) < 1e-12
    assert all(
        torch.equal(kept[name], tensor)
        for name, tensor in module.state_dict().items()
    )
    assert (
        memory == [p.data_ptr() for p in module.parameters()]
        and module.training
    )
    assert not module._forward_pre_hooks and type(module) is build


def test_a_large_model_is_not_copied_in_place():
    module = mlp(4, 5, 2)
    shared, private = Sandbox(module, share=True), Sandbox(module)
    own = {p.data_ptr() for p in module.parameters()}
    assert {p.data_ptr() for p in shared.module.parameters()} == own
    assert own.isdisjoint(p.data_ptr() for p in private.module.parameters())


def test_tensors_that_share_memory_are_permuted_one_by_one():
    class Twins(nn.Module):
        """Two parameters, one memory: each has an axis of its own in the state dict."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.o, self.u = (
                nn.Linear(3, 4),
                nn.Linear(3, 4),
                nn.Linear(4, 2),
                nn.Linear(4, 2),
            )
            self.b.weight = nn.Parameter(self.a.weight.data)

        def forward(self, x):
            return self.o(self.a(x).relu()) + self.u(self.b(x).relu())

    module = randomise(Twins())
    x = torch.randn(5, 3)
    p, kept = randomly(infer_spec(module, x)), module.a.weight.clone()
    for check in (check_equivalence, check_in_place):
        assert check(module, p, x) < 1e-12
    assert (
        torch.equal(module.a.weight, kept)
        and module.a.weight.data_ptr() == module.b.weight.data_ptr()
    )


def test_a_tied_name_that_a_table_forgot_is_noticed():
    """Loading the permuted state dict, the last name of a tied tensor wins: the table must say it of that one too."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.o = (
                nn.Linear(3, 4),
                nn.Linear(3, 4),
                nn.Linear(4, 2),
            )
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.o((self.a(x) * self.b(x)).relu())

    module = randomise(Tied())
    table = {
        "a.weight": ("h", None),
        "a.bias": ("h",),
        "b.bias": ("h",),
        "o.weight": (None, "h"),
    }
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
    }  # which say nothing of ties
    p = Permutation(
        PermutationSpec.from_table(table, shapes),
        {"h": torch.tensor([1, 2, 3, 0])},
    )
    x = torch.randn(5, 3)
    with pytest.raises(EquivalenceError):
        check_equivalence(module, p, x)
    whole = PermutationSpec.from_table(
        table | {"b.weight": ("h", None)}, shapes
    )
    assert (
        check_equivalence(module, Permutation(whole, dict(p.orders)), x)
        < 1e-12
    )
