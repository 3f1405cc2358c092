"""What a spec holds, for those who read one.

The class ``PermutationSpec`` (``spec.py``) stands on the other files of this room: its methods call them.  They in turn
need to say "a spec" in their signatures.  So that nothing is imported in a circle they say :class:`SpecFields`, a
protocol that lists the fields and that the class fulfils by having them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypedDict

from lightning_rebasin.symmetry.spec.folds import Centre, Fold
from lightning_rebasin.symmetry.spec.passed_biases import PassedBias
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Group,
    Pin,
    TensorInfo,
)


class SpecFields(Protocol):
    """What a spec holds."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def groups(self) -> Mapping[str, Group]:
        """Groups by id, parents before children."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the state dict."""

    @property
    def maps(self) -> Mapping[str, AxisMap]:
        """Axis maps by tensor name."""

    @property
    def pinned(self) -> tuple[Pin, ...]:
        """What is pinned and why."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Tied tensors: name to the name under which the tensor is mapped."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings of the inference."""

    @property
    def activations(self) -> Mapping[str, tuple[ActivationAddress, ...]]:
        """For each group, where its units can be observed."""

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Gains that are folded into their readers before anything else acts."""

    @property
    def centres(self) -> tuple[Centre, ...]:
        """Tensors whose mean along one dimension nothing sees."""

    @property
    def biases(self) -> tuple[PassedBias, ...]:
        """Biases that an attention cancels or passes on."""

    @property
    def limits(self) -> Mapping[str, str]:
        """For each group, why its kind is not a larger one, where that was asked."""

    @property
    def untied(self) -> SpecFields | None:
        """The spec of the same network with separate tensors for a tied one, where that would allow more."""


class SpecArguments(TypedDict, total=False):
    """The arguments that make a spec, as a file or a table gives them."""

    groups: Mapping[str, Group]
    tensors: Mapping[str, TensorInfo]
    maps: Mapping[str, AxisMap]
    pinned: tuple[Pin, ...]
    aliases: Mapping[str, str]
    notes: tuple[str, ...]
    activations: Mapping[str, tuple[ActivationAddress, ...]]
    folds: tuple[Fold, ...]
    centres: tuple[Centre, ...]
    biases: tuple[PassedBias, ...]
    limits: Mapping[str, str]


def tensors_of(spec: SpecFields, group: str) -> tuple[str, ...]:
    """Names of the tensors on which ``group`` itself acts (not its children), aliases left out."""
    return tuple(
        name
        for name, axis_map in spec.maps.items()
        if group in axis_map.groups
    )


def log10_symmetries(spec: SpecFields) -> float:
    """``log10`` of the number of symmetries: ``Σ_groups instances · log10(size!)``."""
    return sum(group.log10_symmetries for group in spec.groups.values())
