"""The permutation spec: which changes of the weights leave the network's function unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload

from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.symmetry.spec.check_state import check_state
from lightning_rebasin.symmetry.spec.fields import (
    log10_symmetries,
    tensors_of,
)
from lightning_rebasin.symmetry.spec.folds import Centre, Fold
from lightning_rebasin.symmetry.spec.gauge import canonical_state
from lightning_rebasin.symmetry.spec.json import (
    arguments_from_dict,
    spec_to_dict,
)
from lightning_rebasin.symmetry.spec.passed_biases import PassedBias
from lightning_rebasin.symmetry.spec.shared_buffers import (
    pin_identical_buffers,
)
from lightning_rebasin.symmetry.spec.table import arguments_from_table
from lightning_rebasin.symmetry.spec.text import explain_tensor, spec_table
from lightning_rebasin.symmetry.spec.untied import Untied, canonical_untied
from lightning_rebasin.symmetry.spec.validate import validate_spec
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Group,
    Pin,
    TensorInfo,
)


@dataclass(frozen=True, eq=False, repr=False)
class PermutationSpec:
    """What may be permuted in a network, where, and what may not and why.

    Made by :func:`~lightning_rebasin.infer_spec`, read with :meth:`load`, or imported from a classical table with
    :meth:`from_table`.

    Args:
        groups: Groups by id, parents before children.
        tensors: Every tensor of the state dict, with its shape and kind.
        maps: Axis maps by tensor name; tensors without one are left as they are.
        pinned: What is pinned and why.
        aliases: Tied tensors: name → the name under which the shared tensor is mapped.
        notes: Warnings of the inference (untouched parameters, operations without a rule).
        activations: For each group, where its units can be observed in a forward pass; empty for imported tables.
        folds: Gains of norms that are folded into their readers before anything else acts.
        centres: Tensors whose mean along one dimension nothing sees.
        biases: Biases that an attention cancels or passes on.
        limits: For each group, why its kind is not a larger one, where that was asked.
        untied: The spec of the same network with separate tensors in the place of a tied one, where that alone would
            allow more.

    Example:
        >>> spec = PermutationSpec.from_table(
        ...     {"a.weight": ("h", None), "a.bias": ("h",), "b.weight": (None, "h")},
        ...     {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (1, 3)},
        ... )
        >>> list(spec.groups), round(spec.log10_symmetries, 3)
        (['h'], 0.778)
    """

    groups: Mapping[str, Group]
    tensors: Mapping[str, TensorInfo]
    maps: Mapping[str, AxisMap]
    pinned: tuple[Pin, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    activations: Mapping[str, tuple[ActivationAddress, ...]] = field(
        default_factory=dict
    )
    folds: tuple[Fold, ...] = ()
    centres: tuple[Centre, ...] = ()
    biases: tuple[PassedBias, ...] = ()
    limits: Mapping[str, str] = field(default_factory=dict)
    untied: PermutationSpec | None = None

    def __post_init__(self) -> None:
        for name in (
            "groups",
            "tensors",
            "maps",
            "aliases",
            "activations",
            "limits",
        ):
            object.__setattr__(
                self, name, MappingProxyType(dict(getattr(self, name)))
            )
        validate_spec(self)

    @property
    def log10_symmetries(self) -> float:
        """``log10`` of the number of symmetries: ``Σ_groups instances · log10(size!)``."""
        return log10_symmetries(self)

    def children(self, group: str) -> tuple[Group, ...]:
        """Groups directly inside ``group``."""
        found = []
        for other in self.groups.values():
            if other.parent is not None and other.parent.id == group:
                found.append(other)
        return tuple(found)

    def tensors_of(self, group: str) -> tuple[str, ...]:
        """Names of the tensors on which ``group`` itself acts (not its children), aliases left out."""
        return tensors_of(self, group)

    @overload
    def canonicalise(
        self, state: Mapping[str, Tensor], *, untie: Literal[False] = False
    ) -> dict[str, Tensor]: ...

    @overload
    def canonicalise(
        self, state: Mapping[str, Tensor], *, untie: Literal[True]
    ) -> Untied[PermutationSpec]: ...

    def canonicalise(
        self, state: Mapping[str, Tensor], *, untie: bool = False
    ) -> dict[str, Tensor] | Untied[PermutationSpec]:
        """The same function in canonical gauge: the weights that may be compared, averaged and matched.

        Gains of norms are folded into the weights that read them, what only a centring norm reads loses its mean,
        biases that an attention cancels or passes on become 0, and every pair of maps between which a scale or a linear
        map is free gets equal lengths.  Of a spec that knows permutations only nothing changes.

        Args:
            state: Weights with exactly the tensors of the spec, any floating dtype.
            untie: Give a tied weight that stands in the way a tensor for each of its uses (see :attr:`untied`).

        Returns:
            The same names, shapes and dtypes; canonical weights come back as they are, up to rounding.  With ``untie``
            these are ``.state``, ``.names`` are the names that have tensors of their own now, and ``.spec`` is the spec
            for them; a module that loads them is :func:`~lightning_rebasin.untie` ``(module, names)``.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape, or a gain is 0 and its shift is not.
        """
        self.check_state(state)
        if untie:
            return canonical_untied(self, self.untied, state)
        return canonical_state(self, state)

    def pin_identical_buffers(
        self,
        *states: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]],
    ) -> PermutationSpec:
        """The spec for matching these models: what would move a buffer that is the same in two of them is pinned.

        Tables such as sinusoidal positions fit already; moved in one model only, their average would mean nothing.
        Statistics of normalisation layers move in any case.

        Args:
            *states: State dicts of the models, or functions that load them.

        Returns:
            This spec if there is nothing to pin, else a new one that says why in :meth:`explain`.
        """
        return pin_identical_buffers(self, states)

    def check_state(
        self,
        state: Mapping[str, Tensor],
        what: str = "state dict",
        *,
        finite: bool = False,
    ) -> None:
        """Raise unless ``state`` has exactly the tensors of this spec, in their shapes.

        Args:
            state: Weights to check.
            what: How to call them in the message ("reference", a file name).
            finite: Also refuse NaN and infinity in floating-point tensors.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape; the message names it.
            NonFiniteError: A tensor holds NaN or infinity.
        """
        check_state(self, state, what, finite=finite)

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Sequence[str | None]],
        shapes: Mapping[str, Sequence[int] | Tensor],
    ) -> PermutationSpec:
        """Import a classical hand-written table ``{tensor: (group or None per dimension)}``.

        Args:
            table: For each tensor the group that permutes each of its dimensions.  Tensors left out are not permuted.
            shapes: Shapes of all tensors: a state dict or ``{name: shape}``.

        Returns:
            The spec.  It is *not* proved: run :func:`~lightning_rebasin.check_equivalence` before trusting it.

        Raises:
            SpecError: A group has two sizes, the table names an unknown tensor, or does not fit its dimensions.
        """
        return cls(**arguments_from_table(table, shapes))

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return spec_to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PermutationSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            SpecError: ``data`` is not a spec, is malformed, or is of another version.
        """
        arguments = arguments_from_dict(data)
        other = data.get("untied")
        untied = None
        if other is not None:
            # One level and no deeper, whatever a stranger's file says.
            untied = cls(**arguments_from_dict(other))
        return cls(**arguments, untied=untied)

    def save(self, path: str | Path) -> None:
        """Write the spec as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        atomic_write_text(
            Path(path), json.dumps(self.to_dict(), indent=1) + "\n"
        )

    @classmethod
    def load(cls, path: str | Path) -> PermutationSpec:
        """Read a spec written by :meth:`save`.

        Raises:
            SpecError: The file is missing or is not a spec.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_dict(json.loads(text))
        except (
            OSError,
            UnicodeDecodeError,
            json.JSONDecodeError,
            RecursionError,
            SpecError,
        ) as error:
            raise SpecError(
                f"cannot read a permutation spec from {path}: {error}"
            ) from error

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, PermutationSpec):
            return False
        return self.to_dict() == other.to_dict()

    __hash__ = object.__hash__

    def explain(self, tensor: str) -> str:
        """What moves in one tensor with which group, what stays, and why, as text.

        Args:
            tensor: Name in the state dict.

        Raises:
            SpecError: There is no such tensor; the message offers the nearest names.
        """
        return explain_tensor(self, tensor)

    def __str__(self) -> str:
        return spec_table(self)

    def __repr__(self) -> str:
        moved = len(self.maps)
        return (
            f"PermutationSpec({len(self.groups)} groups, 10^{self.log10_symmetries:.1f} symmetries, "
            f"{moved} of {len(self.tensors)} tensors permutable)"
        )
