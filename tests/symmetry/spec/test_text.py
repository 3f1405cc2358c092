"""The table of a spec and the story of a tensor say what is so, and unknown names get near ones."""

import pytest
import torch
from helpers.specs import blocks_spec, grouped_spec, nested_spec

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    Pin,
    TensorInfo,
)

IN = "moves with group 'in' (2×3 units inside 'g')"


def test_table_of_nested_groups():
    assert str(nested_spec()).splitlines() == [
        "group  size  inside  log10  acts on (tensor[dimension])",
        "heads     3  -         0.8  scale[0]",
        "value   3×4  heads     4.1  value.weight[0], out.weight[1]",
        "model     5  -         2.1  value.weight[1], out.weight[0]",
        "total                  7.0  3 groups; 3 of 3 tensors move",
    ]


def test_table_shortens_counts_pins_and_prints_notes():
    names = [f"layer{i}.weight" for i in range(6)]
    index = torch.arange(3)[:, None]
    spec = PermutationSpec(
        {"h": Group("h", 3)},
        {name: TensorInfo((3, 2)) for name in [*names, "tied"]},
        {
            name: AxisMap(name, ((3,), (2,)), (Component("h", (0,), index),))
            for name in names
        },
        (
            *(Pin(name, 1, 2, 2, "input of the model") for name in names),
            Pin("layer0.weight", 0, 1, 3, "unused"),
        ),
        {"tied": names[0]},
        ("operation aten.foo has no rule",),
    )
    text = str(spec)
    assert (
        "layer0.weight[0], layer1.weight[0], layer2.weight[0] (+3 more)"
        in text
    )
    assert "1 group; 7 of 7 tensors move" in text
    assert (
        "pinned: 6 axes: input of the model\npinned: 1 axis: unused\nnote: operation aten.foo has no rule"
        in text
    )


def test_empty_spec():
    spec = PermutationSpec({}, {"w": TensorInfo((2,))}, {})
    assert "0 groups; 0 of 1 tensors move" in str(spec)
    assert spec.explain("w") == "w: parameter (2,)\n  dimension 0 (2): pinned"


@pytest.mark.parametrize(
    ("spec", "tensor", "lines"),
    [
        (
            nested_spec(),
            "value.weight",
            [
                "value.weight: parameter (12, 5)",
                "  dimension 0 (12): moves with group 'value' (3×4 units inside 'heads')",
                "  dimension 1 (5): moves with group 'model' (5 units)",
            ],
        ),
        (
            grouped_spec(),
            "conv.weight",
            [
                "conv.weight: parameter (4, 3, 3)",
                "  dimension 0 (4): moves with group 'out' (2×2 units inside 'g')",
                "  dimension 0 (4): "
                + IN
                + ", together with dimension 1, in blocks of 2",
                "  dimension 1 (3): " + IN + ", together with dimension 0",
                "  dimension 2 (3): pinned",
            ],
        ),
        (
            blocks_spec(),
            "linear.weight",
            [
                "linear.weight: parameter (2, 12)",
                "  dimension 0 (2): pinned",
                "  dimension 1 (12): moves with group 'c' (4 units), in blocks of 3",
            ],
        ),
        (
            blocks_spec(),
            "crelu.weight",
            [
                "crelu.weight: parameter (8,)",
                "  dimension 0 (8): moves with group 'c' (4 units), 2 positions per unit",
            ],
        ),
        (
            blocks_spec(),
            "part.weight",
            [
                "part.weight: parameter (6,)",
                "  dimension 0 (6): moves with group 'c' (4 units)",
                "  dimension 0 (6): 2 of 6 positions pinned",
            ],
        ),
    ],
)
def test_explain(spec, tensor, lines):
    assert spec.explain(tensor).splitlines() == lines


def test_explain_gives_reason_place_and_ties():
    spec = PermutationSpec(
        {},
        {"a": TensorInfo((2,)), "b": TensorInfo((2,))},
        {},
        (Pin("a", 0, 2, 2, "it is the output", "aten.addmm in 'head'"),),
        {"b": "a"},
    )
    assert spec.explain("a") == (
        "a: parameter (2,), tied to b\n  dimension 0 (2): pinned: it is the output (at aten.addmm in 'head')"
    )
    assert spec.explain("b").startswith(
        "b: parameter (2,), tied to a\n  dimension 0 (2): pinned: it is the output"
    )


def test_unknown_tensor_gets_near_names():
    with pytest.raises(
        SpecError,
        match=r"no tensor 'value.wieght'; did you mean 'value.weight'",
    ):
        nested_spec().explain("value.wieght")
    with pytest.raises(SpecError, match=r"did you mean 'scale'"):
        nested_spec().explain("cal")
    with pytest.raises(SpecError, match="it has 3 others"):
        nested_spec().explain("zzzz")
