"""Classical hand-written tables: those of the paper are exact, bad ones are refused."""

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise

from lightning_rebasin.errors import (
    SpecError,
)
from lightning_rebasin.symmetry import (
    Permutation,
    PermutationSpec,
    check_equivalence,
)


def paper_table(layers):
    """``mlp_permutation_spec`` of the paper's code, in PyTorch's (out, in) layout."""
    table = {}
    for i in range(layers + 1):
        table[f"{2 * i}.weight"] = (
            f"P_{i}" if i < layers else None,
            f"P_{i - 1}" if i else None,
        )
        table[f"{2 * i}.bias"] = (f"P_{i}" if i < layers else None,)
    return table


def test_papers_mlp_table_is_exact():
    module = randomise(mlp(6, 8, 7, 9, 3))
    spec = PermutationSpec.from_table(paper_table(3), module.state_dict())
    assert {g.id: g.size for g in spec.groups.values()} == {
        "P_0": 8,
        "P_1": 7,
        "P_2": 9,
    }
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, torch.randn(5, 6)) < 1e-12


def test_papers_convolution_table_is_exact():
    """``conv``, ``norm`` and ``dense`` axes as the VGG and ResNet specs of the paper's code write them."""
    conv = lambda name, p_in, p_out: {
        f"{name}.weight": (p_out, p_in, None, None)
    }
    norm = lambda name, p: {
        f"{name}.{leaf}": (p,)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    }
    dense = lambda name, p_in, p_out: {
        f"{name}.weight": (p_out, p_in),
        f"{name}.bias": (p_out,),
    }
    table = {
        **conv("conv1", None, "P_1"),
        **norm("bn1", "P_1"),
        **conv("conv2", "P_1", "P_2"),
        **norm("bn2", "P_2"),
        **dense("fc", "P_2", None),
    }
    module = randomise(BatchNormCNN())
    spec = PermutationSpec.from_table(table, module.state_dict())
    assert (
        spec.tensors["bn1.running_mean"].kind
        == spec.tensors["bn1.num_batches_tracked"].kind
        == "buffer"
    )
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, torch.randn(2, 3, 8, 8)) < 1e-12


def test_square_recurrent_table_moves_both_axes_alike():
    spec = PermutationSpec.from_table({"w": ("h", "h")}, {"w": (3, 3)})
    new = Permutation(spec, {"h": torch.tensor([1, 2, 0])}).apply(
        {"w": torch.arange(9).reshape(3, 3)}
    )
    assert new["w"].tolist() == [[4, 5, 3], [7, 8, 6], [1, 2, 0]]


@pytest.mark.parametrize(
    ("table", "shapes", "message"),
    [
        ({"a": ("h",)}, {}, "'a', which the model does not have"),
        ({"a": ("h", None)}, {"a": (3,)}, "'a' has 1 dimensions"),
        ({"a": "h"}, {"a": (3,)}, "'a' has 1 dimensions"),
        (
            {"a": ("h",), "b": ("h",)},
            {"a": (3,), "b": (4,)},
            "'h' has size 3, but 'b' dim 0 has 4",
        ),
        ({"a": (1,)}, {"a": (3,)}, "1 is not a group name"),
        ({"a": ("h",)}, {"a": (0,)}, "'h' has 0 units"),
    ],
)
def test_bad_tables_are_refused(table, shapes, message):
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_table(table, shapes)


def test_tied_tensors_of_a_table():
    weight = torch.zeros(2, 3)
    state = {"a": weight, "b": weight, "c": torch.zeros(3)}
    spec = PermutationSpec.from_table({"b": (None, "h"), "c": ("h",)}, state)
    assert dict(spec.aliases) == {"b": "a"} and set(spec.maps) == {"a", "c"}
    with pytest.raises(SpecError, match="'b' and 'a' are one tied tensor"):
        PermutationSpec.from_table({"a": ("v", None), "b": (None, "h")}, state)
