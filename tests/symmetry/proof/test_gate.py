"""The gate accepts true symmetries, refuses false ones by name, notices when it sees nothing, and leaves no trace."""

import random
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.algebra import randomly
from helpers.models import BatchNormCNN, mlp, randomise
from helpers.tables import CNN_TABLE, MLP_TABLE, cnn, images, without
from torch import nn

from lightning_rebasin.errors import (
    EquivalenceError,
    StateDictError,
    TraceError,
)
from lightning_rebasin.symmetry import (
    PermutationSpec,
    check_equivalence,
    measure_equivalence,
)


def test_true_symmetry_passes_and_the_control_moves():
    module, p = cnn()
    assert check_equivalence(module, p, images()) < 1e-12
    measured = measure_equivalence(module, p, x=images())
    assert measured.equal and measured.sees and measured.control > 1e-3


def test_wrong_batch_norm_statistics_are_seen_on_a_fresh_network():
    """Fresh statistics are constant: without noise in the copy, moving or not moving them looks the same."""
    module = BatchNormCNN()
    wrong = randomly(
        PermutationSpec.from_table(
            without("bn2.running_var"), module.state_dict()
        )
    )
    with pytest.raises(EquivalenceError, match=r"bn2.running_var"):
        check_equivalence(module, wrong, images())
    right = randomly(
        PermutationSpec.from_table(CNN_TABLE, module.state_dict())
    )
    assert check_equivalence(module, right, images()) < 1e-12


def test_blind_check_is_refused():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(3, 5, 2)

        def forward(self, x):
            return 0.0 * self.net(x) + 1.0

    module = Dead()
    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    with pytest.raises(EquivalenceError, match="blind"):
        check_equivalence(
            module,
            randomly(PermutationSpec.from_table(table, module.state_dict())),
            torch.ones(2, 3),
        )


def test_control_tries_other_groups_where_the_first_is_invisible():
    class Side(nn.Module):
        """The first group only feeds a branch that is multiplied by zero."""

        def __init__(self):
            super().__init__()
            self.dead, self.live = mlp(3, 5, 2), mlp(3, 5, 2)

        def forward(self, x):
            return 0.0 * self.dead(x) + self.live(x)

    module = Side()
    table = {
        f"dead.{n}": tuple(g and "d" for g in a) for n, a in MLP_TABLE.items()
    }
    table |= {
        f"live.{n}": tuple(g and "l" for g in a) for n, a in MLP_TABLE.items()
    }
    p = randomly(PermutationSpec.from_table(table, module.state_dict()))
    assert check_equivalence(module, p, torch.randn(2, 3)) < 1e-12


def test_nothing_of_the_callers_changes():
    module, p = cnn()
    module.train()
    module.fc.eval()
    before = {
        name: tensor.clone() for name, tensor in module.state_dict().items()
    }
    x = images()
    kept = x.clone()
    states = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    )
    check_equivalence(module, p, x)
    assert all(
        torch.equal(before[name], tensor)
        for name, tensor in module.state_dict().items()
    )
    assert module.training and module.bn1.training and not module.fc.training
    assert torch.equal(x, kept) and torch.equal(
        states[0], torch.get_rng_state()
    )
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.get_default_dtype() is torch.float32 and not any(
        m._forward_hooks for m in module.modules()
    )
    assert all(
        parameter.dtype is torch.float32 and parameter.requires_grad
        for parameter in module.parameters()
    )


class Tokens(nn.Module):
    """Integer input, keyword arguments, a complex output and a dictionary around them; the output weight is tied."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = (
            nn.Embedding(11, 6),
            nn.Linear(6, 11, bias=False),
        )
        self.out.weight = self.embed.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, *, tokens, scale=1.0):
        h = self.drop(self.embed(tokens).mean(1)) * scale
        logits = self.out(torch.tanh(h))
        return {
            "logits": logits,
            "spectrum": torch.fft.fft(logits),
            "best": logits.argmax(-1),
            "nothing": None,
        }


def test_integer_input_keywords_complex_output_dropout_and_tied_weights():
    module = Tokens()
    spec = PermutationSpec.from_table(
        {"embed.weight": (None, "h"), "out.weight": (None, "h")},
        module.state_dict(),
    )
    tokens = torch.arange(10).reshape(2, 5)
    assert (
        check_equivalence(module, randomly(spec), tokens=tokens, scale=2.0)
        < 1e-12
    )
    bad = PermutationSpec.from_table(
        {"embed.weight": ("v", None), "out.weight": ("v", None)},
        module.state_dict(),
    )
    with pytest.raises(EquivalenceError, match="'v'"):
        check_equivalence(module, randomly(bad), tokens=tokens)


def test_several_examples_reach_other_branches():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.left, self.right = (
                nn.Linear(3, 8),
                nn.Linear(8, 2),
                nn.Linear(8, 2),
            )

        def forward(self, x, *, right=False):
            return (self.right if right else self.left)(self.a(x).relu())

    module = randomise(Branches())
    table = {
        "a.weight": ("h", None),
        "a.bias": ("h",),
        "left.weight": (None, "h"),
    }
    p = randomly(PermutationSpec.from_table(table, module.state_dict()))
    x = torch.randn(4, 3)
    assert check_equivalence(module, p, x) < 1e-12
    with pytest.raises(EquivalenceError, match=r"right.weight"):
        check_equivalence(module, p, x, examples=[{"x": x, "right": True}])
    with pytest.raises(EquivalenceError, match=r"right.weight"):
        check_equivalence(module, p, examples=[(x,), {"x": x, "right": True}])


def test_wrapped_modules_are_looked_through():
    module, p = cnn()
    compiled = torch.compile(module, backend="eager")
    assert check_equivalence(compiled, p, images()) < 1e-12
    assert check_equivalence(nn.DataParallel(module), p, images()) < 1e-12
    module.conv2 = torch.compile(module.conv2, backend="eager")
    assert check_equivalence(module, p, images()) < 1e-12


def test_distributed_wrapper_is_looked_through(tmp_path):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module, p = cnn()
        assert (
            check_equivalence(
                nn.parallel.DistributedDataParallel(module), p, images()
            )
            < 1e-12
        )
    finally:
        distributed.destroy_process_group()


def test_compiled_lightning_module_runs_its_copy():
    """Lightning binds the compiled forward of the original to the instance: a plain copy would run old weights."""
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.utilities.compile import from_compiled

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(3, 5, 2)

        def forward(self, x):
            return self.net(x)

    plain = Model()
    module = from_compiled(torch.compile(plain, backend="eager"))
    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    spec = PermutationSpec.from_table(table, plain.state_dict())
    assert check_equivalence(module, randomly(spec), torch.randn(4, 3)) < 1e-12
    wrong = PermutationSpec.from_table(
        {"net.0.weight": ("h", None)}, plain.state_dict()
    )
    with pytest.raises(EquivalenceError, match=r"net\.0\."):
        check_equivalence(module, randomly(wrong), torch.randn(4, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hook_style_weight_norm_can_be_copied():
    module = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)
    )
    module(torch.ones(1, 3))
    table = {
        "0.weight_g": ("h", None),
        "0.weight_v": ("h", None),
        "0.bias": ("h",),
        "2.weight": (None, "h"),
    }
    spec = PermutationSpec.from_table(table, module.state_dict())
    assert check_equivalence(module, randomly(spec), torch.randn(4, 3)) < 1e-12


def test_lightning_module_with_example_input_array():
    lightning = pytest.importorskip("lightning.pytorch")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(3, 5, 2)
            self.example_input_array = torch.randn(4, 3)

        def forward(self, x):
            return self.net(x)

    module = Model()
    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    spec = PermutationSpec.from_table(table, module.state_dict())
    module.trainer = lightning.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    assert check_equivalence(module, randomly(spec)) < 1e-12
    module.example_input_array = None
    with pytest.raises(TraceError, match="example_input_array"):
        check_equivalence(module, randomly(spec))


class HuggingFaceOutput(OrderedDict):
    def to_tuple(self):
        return tuple(self.values())


def test_caches_and_hidden_states_of_output_objects_do_not_count():
    class Model(nn.Module):
        def __init__(self, *, logits):
            super().__init__()
            self.net, self.logits = mlp(3, 5, 2), logits

        def forward(self, x):
            hidden = self.net[1](self.net[0](x))
            out = HuggingFaceOutput(
                past_key_values=(hidden,), last_hidden_state=hidden
            )
            if self.logits:
                out["logits"] = self.net[2](hidden)
            return out

    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    model = Model(logits=True)
    spec = PermutationSpec.from_table(table, model.state_dict())
    assert check_equivalence(model, randomly(spec), torch.randn(4, 3)) < 1e-12
    with pytest.raises(
        EquivalenceError, match="group 'h'"
    ):  # a bare encoder is there for its hidden states
        check_equivalence(
            Model(logits=False), randomly(spec), torch.randn(4, 3)
        )


def test_state_that_carries_over_is_reset_or_reported():
    class Counting(nn.Module):
        def __init__(self, *, as_buffer):
            super().__init__()
            self.net, self.calls = mlp(3, 5, 2), 0
            if as_buffer:
                del self.calls
                self.register_buffer(
                    "calls", torch.zeros(()), persistent=False
                )

        def forward(self, x):
            self.calls += 1
            return self.net(x) * self.calls

    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    module = Counting(as_buffer=True)
    spec = PermutationSpec.from_table(table, module.state_dict())
    assert check_equivalence(module, randomly(spec), torch.randn(4, 3)) < 1e-12
    with pytest.raises(EquivalenceError, match="not deterministic"):
        check_equivalence(
            Counting(as_buffer=False), randomly(spec), torch.randn(4, 3)
        )


def test_random_numbers_in_the_forward_pass_are_the_same_in_every_run():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(3, 5, 2)

        def forward(self, x):
            return self.net(x + torch.randn_like(x)) + F.dropout(
                torch.ones(2), 0.5, training=True
            )

    module = Noisy()
    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    assert (
        check_equivalence(
            module,
            randomly(PermutationSpec.from_table(table, module.state_dict())),
            torch.ones(1, 3),
        )
        < 1e-12
    )


def test_bad_input_is_named():
    module, p = cnn()
    with pytest.raises(
        TraceError, match="BatchNormCNN failed on the example input"
    ):
        check_equivalence(module, p, torch.randn(2, 4, 8, 8))
    with pytest.raises(StateDictError, match="conv1"):
        check_equivalence(mlp(3, 4, 2), p, torch.randn(2, 3))
    with pytest.raises(EquivalenceError, match="NaN"):
        check_equivalence(module, p, torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(TraceError, match="without values"):
        check_equivalence(module.to("meta"), p, images())


def test_output_without_tensors_is_refused():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(3, 5, 2)

        def forward(self, x):
            return SimpleNamespace(y=self.net(x))

    module = Silent()
    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    with pytest.raises(EquivalenceError, match="no tensor"):
        check_equivalence(
            module,
            randomly(PermutationSpec.from_table(table, module.state_dict())),
            torch.ones(1, 3),
        )


def test_an_example_of_zeros_is_enough_where_biases_speak():
    module = randomise(mlp(6, 8, 3))
    spec = PermutationSpec.from_table(MLP_TABLE, module.state_dict())
    result = measure_equivalence(module, randomly(spec), torch.zeros(2, 6))
    assert result.equal
    assert result.sees
