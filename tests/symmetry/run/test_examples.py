"""Example inputs as users write them, and the outputs that count."""

from __future__ import annotations

import pytest
import torch
from helpers.models import mlp
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.run.examples import (
    Example,
    as_example,
    output_tensors,
    resolve_examples,
)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 4, 2)
        self.example_input_array = torch.zeros(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_constant_example_does_not_free_the_inputs() -> None:
    """``example_input_array`` is an attribute of a LightningModule and its input at once: the input counts."""
    """As a constant of the model, an array of zeros would be free along every dimension."""
    net = Net()
    for spec in (infer_spec(net), infer_spec(net, net.example_input_array)):
        assert [group.size for group in spec.groups.values()] == [4]
        assert spec.maps["net.0.weight"].dims_of(next(iter(spec.groups))) == (
            0,
        )


def test_examples_as_users_write_them() -> None:
    pair = as_example(((1, 2), {"z": 3}))
    assert (pair.args, pair.kwargs) == ((1, 2), {"z": 3})
    assert as_example([1, {"z": 3}]).args == (1, {"z": 3})
    assert as_example({"z": 3}) == Example((), {"z": 3})
    assert as_example(pair) is pair


def test_arguments_come_before_the_list_and_the_own_example() -> None:
    module = nn.Linear(2, 2)
    step = Example((1,), method="validation_step")
    assert resolve_examples(module, (step,), {}, None) == (step,)
    assert resolve_examples(module, (1,), {"y": 2}, [3]) == (
        Example((1,), {"y": 2}),
        Example((3,)),
    )
    with pytest.raises(TraceError, match="no example input"):
        resolve_examples(module, (), {}, [])
    module.example_input_array = torch.zeros(1, 2)
    (own,) = resolve_examples(module, (), {}, None)
    assert own.args[0] is module.example_input_array


class Output(dict):
    """In the style of Hugging Face: a mapping that can also be a tuple."""

    def to_tuple(self):
        return tuple(self.values())


def test_caches_are_not_results_and_hidden_states_are_not_predictions() -> (
    None
):
    one = torch.zeros(1)
    hidden = {"last_hidden_state": one, "past_key_values": one}
    assert list(output_tensors(Output(hidden))) == ["['last_hidden_state']"]
    assert list(output_tensors(Output(logits=one, **hidden))) == ["['logits']"]
    # a plain dict means what it says
    assert len(output_tensors({"logits": one, **hidden})) == 3
