"""The inference stage by stage, and the example that the docstrings of ``symmetry/permutations`` carry on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from lightning_rebasin.symmetry.permutations.build_spec import (
    Assembly,
    assemble,
)
from lightning_rebasin.symmetry.permutations.cells import Cells, find_cells
from lightning_rebasin.symmetry.permutations.elements import Table
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.run_rules import (
    Propagation,
    propagate,
)
from lightning_rebasin.symmetry.run.examples import as_example
from lightning_rebasin.symmetry.trace.record import known_tensors, record
from lightning_rebasin.symmetry.trace.tape import Tape


@dataclass(frozen=True)
class Stages:
    """What every stage of the inference found in one module."""

    tape: Tape
    found: Propagation
    tables: list[Table]
    cells: Cells
    named: NamedGroups
    assembly: Assembly


def stages(module: nn.Module, *inputs: torch.Tensor) -> Stages:
    """Run the inference on one example, without repeating it for what cannot be expressed."""
    tape = record(module, as_example(inputs))
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in known_tensors(module).items()
    }
    found = propagate([tape], shapes, {})
    tables = found.store.active_tables()
    cells = find_cells(found.store.size, found.store.runs, tables)
    named = NamedGroups(cells, found.states)
    assembly = assemble(cells, found.states, tables, found.contractions)
    return Stages(tape, found, tables, cells, named, assembly)


@lru_cache(maxsize=1)
def worked_example() -> Stages:
    """``Linear(3, 2) → ReLU → Linear(2, 2)`` on four inputs."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    return stages(net, torch.zeros(4, 3))
