"""Which changes of the weights leave the function of a network unchanged."""

from lightning_rebasin.symmetry.examples import Example
from lightning_rebasin.symmetry.infer import infer_spec, infer_spec_many
from lightning_rebasin.symmetry.permutation import Permutation
from lightning_rebasin.symmetry.spec import AxisMap, Component, Group, PermutationSpec, Pin, TensorInfo
from lightning_rebasin.symmetry.verify import Equivalence, check_equivalence, measure_equivalence

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
    "check_equivalence",
    "infer_spec",
    "infer_spec_many",
    "measure_equivalence",
]
