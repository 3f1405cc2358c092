"""One architecture of the shared zoo through inference, judged by the zoo's own rules and not by the package's gate."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor, nn

from helpers.shared import ROOT
from lightning_rebasin.symmetry import Permutation, PermutationSpec

ZOO_FOLDER = ROOT / "zoo"


@dataclass(frozen=True)
class Row:
    """What one architecture showed; ``failure`` is empty if everything held."""

    name: str
    groups: int = 0
    log10: float = 0.0
    floor: float = 0.0
    error: float = float("nan")
    control: float = float("nan")
    seconds: float = 0.0
    forward_seconds: float = 0.0
    failure: str = ""


@lru_cache(maxsize=1)
def zoo() -> ModuleType:
    """The zoo's module (raises FileNotFoundError where the shared folder is absent)."""
    path = ZOO_FOLDER / "acceptance_zoo.py"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist (set REBASIN_SHARED)")
    spec = importlib.util.spec_from_file_location("acceptance_zoo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["acceptance_zoo"] = module
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def floors() -> dict[str, dict[str, float]]:
    """What is known to be permutable in each architecture."""
    return json.loads((ZOO_FOLDER / "floors.json").read_text())


def names(*tags: str) -> list[str]:
    """Architectures with one of the tags, all without a tag; empty where the shared folder is absent."""
    return zoo().names(set(tags) or None) if ZOO_FOLDER.exists() else []


def judge(name: str) -> Row:
    """Build, infer, permute everything at random, compare, try the control, compare with the floor."""
    from lightning_rebasin.symmetry.infer import infer_spec

    model, args, kwargs = zoo().build(name)
    row = Row(name, floor=float(floors()[name]["log10"]))
    before = outputs(model, args, kwargs)
    start = time.perf_counter()
    outputs(model, args, kwargs)
    row = replace(row, forward_seconds=time.perf_counter() - start)
    start = time.perf_counter()
    spec = infer_spec(model, *args, **kwargs)
    row = replace(
        row,
        seconds=time.perf_counter() - start,
        groups=len(spec.groups),
        log10=spec.log10_symmetries,
    )
    state = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
    permuted = Permutation.random(
        spec, torch.Generator().manual_seed(0)
    ).apply(state)
    row = replace(
        row, error=error(before, outputs_with(model, permuted, args, kwargs))
    )
    row = replace(
        row, control=_control(spec, model, state, before, args, kwargs)
    )
    return replace(row, failure=_failure(row))


def _failure(row: Row) -> str:
    faults = []
    if not row.error < 1e-8:
        faults.append(f"error {row.error:.1e}")
    if row.log10 < row.floor - 0.5:
        faults.append(f"log10 {row.log10:.1f} below the floor {row.floor:.1f}")
    if not row.control > 1e-6 and row.groups:
        faults.append(f"control {row.control:.1e} does not move")
    return "; ".join(faults)


def _control(
    spec: PermutationSpec,
    model: nn.Module,
    state: dict[str, Tensor],
    before: list[Tensor],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> float:
    """One axis of one tensor of a group rolled alone; the largest change over a few groups."""
    found = 0.0
    groups = [g for g in spec.groups.values() if g.size > 1]
    for group in groups[:: max(1, len(groups) // 4)][:5]:
        for tensor in spec.tensors_of(group.id)[:2]:
            dims = spec.maps[tensor].dims_of(group.id)
            changed = {**state, tensor: state[tensor].roll(1, dims[0])}
            # A tied tensor has several names; the last one loaded would undo the change.
            tied = [
                n
                for n, t in model.state_dict().items()
                if t.data_ptr() == model.state_dict()[tensor].data_ptr()
            ]
            changed |= dict.fromkeys(
                (n for n in tied if state[n].shape == state[tensor].shape),
                changed[tensor],
            )
            found = max(
                found,
                error(before, outputs_with(model, changed, args, kwargs)),
            )
            if found > 1e-4:
                return found
    return found


def outputs_with(
    model: nn.Module,
    state: dict[str, Tensor],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> list[Tensor]:
    live = model.state_dict()
    kept = {key: live[key].clone() for key in state}
    for key, value in state.items():
        live[key].copy_(value)
    try:
        return outputs(model, args, kwargs)
    finally:
        for key, value in kept.items():
            live[key].copy_(value)


def outputs(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad(), zoo().exact64():
        return [
            tensor.clone() for tensor in zoo().outputs(model(*args, **kwargs))
        ]


def error(before: list[Tensor], after: list[Tensor]) -> float:
    errors = [
        float((a - b).abs().max() / a.abs().max())
        for a, b in zip(before, after, strict=True)
        if a.numel()
    ]
    return max(errors, default=float("nan"))
