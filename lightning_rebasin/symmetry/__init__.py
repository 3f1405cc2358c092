"""Which changes of the weights leave the function of a network unchanged."""

from lightning_rebasin.symmetry.actions import Permutation, Transform
from lightning_rebasin.symmetry.infer import infer_spec, infer_spec_many
from lightning_rebasin.symmetry.proof.gate import (
    Equivalence,
    check_equivalence,
    measure_equivalence,
)
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    Pin,
    TensorInfo,
)

__all__ = [
    "AxisMap",
    "Component",
    "Equivalence",
    "Example",
    "Group",
    "Permutation",
    "PermutationSpec",
    "Pin",
    "TensorInfo",
    "Transform",
    "check_equivalence",
    "infer_spec",
    "infer_spec_many",
    "measure_equivalence",
]
