"""What is asked of a spec through its fields alone."""

import math
from dataclasses import fields

import pytest
from helpers.specs import nested_spec

from lightning_rebasin.symmetry import PermutationSpec
from lightning_rebasin.symmetry.spec.fields import (
    SpecArguments,
    SpecFields,
    log10_symmetries,
    tensors_of,
)


def test_symmetries_are_counted_over_all_groups():
    spec = nested_spec(3, 4, 5)
    orders = math.factorial(3) * math.factorial(4) ** 3 * math.factorial(5)
    assert log10_symmetries(spec) == pytest.approx(math.log10(orders))


def test_tensors_of_a_group_leave_out_its_children():
    assert tensors_of(nested_spec(), "heads") == ("scale",)
    assert tensors_of(nested_spec(), "model") == ("value.weight", "out.weight")


def test_protocol_arguments_and_class_have_the_same_fields():
    own = {field.name for field in fields(PermutationSpec)}
    listed = {name for name in vars(SpecFields) if not name.startswith("_")}
    assert own == listed
    # The spec of the untied network is a spec itself, no plain value.
    assert own - {"untied"} == set(SpecArguments.__annotations__)
