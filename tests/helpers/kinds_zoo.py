"""One architecture of the shared zoo through inference of all kinds, judged by the zoo's own rules.

Random elements of everything must leave the outputs as they are in float64, measured here and not by the package's
gate, and no unit may lose the freedom that permutations give it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from helpers import zoo
from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry import Group, PermutationSpec, Transform

#: Largest relative error of the outputs in float64.
TOLERANCE = 1e-9
DRAWS = 2


@dataclass(frozen=True)
class KindsRow:
    """What one architecture showed; ``failure`` is empty if everything held.

    Args:
        name: Its name in the zoo.
        kinds: Groups by kind.
        error: Largest relative error of the outputs under random elements, in canonical gauge or not.
        gauge: The same of the canonical weights.
        smaller: Axes that move less than with permutations only.
        folded: Gains that are folded.
        untied: What untying would make of groups that a tied weight limits, by kind.
        seconds: Seconds of the inference.
        plain_seconds: Seconds of the inference of permutations only.
        failure: What went wrong.
    """

    name: str
    kinds: Mapping[str, int] = field(default_factory=dict)
    error: float = float("nan")
    gauge: float = float("nan")
    smaller: tuple[str, ...] = ()
    folded: int = 0
    untied: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    plain_seconds: float = 0.0
    failure: str = ""

    @property
    def beyond(self) -> bool:
        """Whether there is a kind beyond permutation."""
        return bool(set(self.kinds) - {"permutation"})


def judge_kinds(name: str) -> KindsRow:
    """Build, infer, move everything at random, compare."""
    return examine(name)[0]


def examine(name: str) -> tuple[KindsRow, PermutationSpec]:
    """What one architecture showed, and its spec."""
    model, args, kwargs = zoo.zoo().build(name)
    start = time.perf_counter()
    plain = infer_spec(model, *args, **kwargs)
    plain_seconds = time.perf_counter() - start
    start = time.perf_counter()
    spec = infer_spec(model, *args, kinds="all", **kwargs)
    seconds = time.perf_counter() - start
    before = zoo.outputs(model, args, kwargs)
    state = own_state(model)

    def error_of(changed: Mapping[str, Tensor]) -> float:
        after = zoo.outputs_with(model, dict(changed), args, kwargs)
        return zoo.error(before, after)

    errors = []
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        moved = Transform.random(spec, generator).apply(state)
        errors.append(error_of(moved))
    untied = spec.untied
    row = KindsRow(
        name,
        kinds=count_kinds(spec),
        error=max(errors),
        gauge=error_of(spec.canonicalise(state)),
        smaller=tuple(smaller_axes(plain, spec)),
        folded=len(spec.folds),
        untied={} if untied is None else count_kinds(untied),
        seconds=seconds,
        plain_seconds=plain_seconds,
    )
    return replace(row, failure=failure_of(row)), spec


def kinds_along(spec: PermutationSpec, axis: str) -> str:
    """The kinds beyond permutation along an axis ``tensor[dimension]``, joined by "+"; "permutation" if there is none.

    Raises:
        KeyError: Nothing moves along it.
    """
    name, _, dim = axis.removesuffix("]").rpartition("[")
    axis_map = spec.maps[spec.aliases.get(name, name)]
    found = set()
    for component in axis_map.components:
        dims = {axis_map.site_dims[site] for site in component.sites}
        if int(dim) in dims:
            found.add(_kind(spec.groups[component.group]))
    if not found:
        raise KeyError(axis)
    return "+".join(sorted(found - {"permutation"})) or "permutation"


def _kind(group: Group) -> str:
    """A number inside every unit is a linear map of size 1."""
    alone = group.kind == "linear" and group.size == 1
    return "number" if alone else group.kind


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors; names that share a tensor share the copy."""
    copies: dict[int, Tensor] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            copy = copies.setdefault(id(tensor), tensor.detach().clone())
            found[name] = copy
    return found


def count_kinds(spec: PermutationSpec) -> dict[str, int]:
    """How many groups there are of each kind; a number inside every unit, of size 1, is written ``number``."""
    found = Counter(_kind(group) for group in spec.groups.values())
    return dict(sorted(found.items()))


def smaller_axes(plain: PermutationSpec, spec: PermutationSpec) -> list[str]:
    """Axes on which fewer units move than with permutations only; a gain that is folded has nothing left to move."""
    gains = {fold.gain for fold in spec.folds}
    found = []
    for name, axis_map in plain.maps.items():
        if name in gains:
            continue
        for dim in range(len(axis_map.shape)):
            before = _members(plain, name, dim)
            after = _members(spec, name, dim)
            if after < before:
                found.append(f"{name}[{dim}]: {after} of {before}")
    return found


def _members(spec: PermutationSpec, name: str, dim: int) -> int:
    """How many units move along an axis, of the largest group."""
    axis_map = spec.maps.get(name)
    if axis_map is None:
        return 0
    sizes = [0]
    for component in axis_map.components:
        dims = {axis_map.site_dims[site] for site in component.sites}
        if dim in dims:
            sizes.append(spec.groups[component.group].members)
    return max(sizes)


def failure_of(row: KindsRow) -> str:
    """What is wrong with a row, in words."""
    faults = []
    if not row.error <= TOLERANCE:
        faults.append(f"random elements change the function: {row.error:.1e}")
    if not row.gauge <= TOLERANCE:
        faults.append(f"the canonical gauge does: {row.gauge:.1e}")
    if row.smaller:
        faults.append(f"moves less: {row.smaller[0]} ({len(row.smaller)})")
    return "; ".join(faults)
