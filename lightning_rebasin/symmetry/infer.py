"""Infer which permutations of a network's units leave its function unchanged.

The model runs once; every index of every parameter axis is an *element*; the operations tell which elements are the
same unit, which lie in blocks of others and which cannot move; what is left free to permute becomes a
:class:`~lightning_rebasin.symmetry.spec.spec.PermutationSpec`.  No rule knows any architecture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_rebasin.errors import TraceError, UntracedWarning
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION, chosen_kinds
from lightning_rebasin.symmetry.declared.prove import add_declared
from lightning_rebasin.symmetry.kinds import FirstAnalysis, with_kinds
from lightning_rebasin.symmetry.permutations.build_spec import (
    Assembly,
    assemble,
)
from lightning_rebasin.symmetry.permutations.cells import Cells, find_cells
from lightning_rebasin.symmetry.permutations.elements import Table
from lightning_rebasin.symmetry.permutations.reasons import NOT_NESTED
from lightning_rebasin.symmetry.permutations.run_rules import (
    Propagation,
    propagate,
)
from lightning_rebasin.symmetry.run.copy import unwrap
from lightning_rebasin.symmetry.run.examples import (
    as_example,
    resolve_examples,
)
from lightning_rebasin.symmetry.run.hollow import is_hollow
from lightning_rebasin.symmetry.run.untie import separable
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import TensorInfo, TensorKind
from lightning_rebasin.symmetry.trace.record import known_tensors, record
from lightning_rebasin.symmetry.trace.tape import Tape
from lightning_rebasin.symmetry.untied import with_untied

#: Every attempt pins more, so few are ever needed.
_MOST_ATTEMPTS = 20


def infer_spec(
    module: nn.Module,
    *args: Any,
    kinds: str | Iterable[str] = PERMUTATION,
    **kwargs: Any,
) -> PermutationSpec:
    """Infer the permutation symmetries of a network from one forward pass.

    Args:
        module: Any module, in any mode, on any device, of any dtype; it is left as it was.  Wrappers of
            ``torch.compile`` and data parallelism are looked through.
        *args: Positional example inputs.  Without any inputs, ``module.example_input_array`` is used.
        kinds: Which kinds of symmetry to look for: ``"all"``, one name or several.  Other kinds than permutations are
            proved before they are handed out, by running the module in float64: it needs real weights.
        **kwargs: Keyword example inputs.

    Returns:
        The spec, with what is pinned and why.  Submodules that define ``symmetry_spec`` declare symmetries of their
        own (``lightning_rebasin.symmetry.declared``), which are proved on the example.

    Raises:
        TraceError: The model does not run on the example input, or there is none.
        SpecError: ``kinds`` names something that is not a kind.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = infer_spec(net, torch.zeros(1, 3))
        >>> {g.id: g.size for g in spec.groups.values()}, spec.tensors_of("0")
        ({'0': 8}, ('0.weight', '0.bias', '2.weight'))
    """
    module = unwrap(module)
    return infer_spec_many(
        module, resolve_examples(module, args, kwargs, None), kinds=kinds
    )


def infer_spec_many(
    module: nn.Module,
    examples: Iterable[Any],
    *,
    pin: Iterable[str] = (),
    kinds: str | Iterable[str] = PERMUTATION,
) -> PermutationSpec:
    """Infer one spec from several example inputs (other branches, other experts).

    Args:
        module: The network.
        examples: Inputs: each a pair of positional and keyword arguments, a tuple of positional ones, a mapping of
            keyword ones, or a single argument.  The symmetries hold on all of them.
        pin: Names of tensors that must not move.
        kinds: Which kinds of symmetry to look for, see :func:`infer_spec`.

    Returns:
        The spec.

    Raises:
        TraceError: The model does not run on an example, or ``pin`` names an unknown tensor.
        SpecError: ``kinds`` names something that is not a kind.
    """
    wanted = chosen_kinds(kinds)
    module = unwrap(module)
    inputs = [as_example(example) for example in examples]
    tapes = [record(module, example) for example in inputs]
    if not tapes:
        raise TraceError("no example input was given")
    tensors = known_tensors(module)
    parameters = {id(p) for p in module.parameters()}
    pinned = _pinned(tensors, tuple(pin))
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    found = propagate(tapes, shapes, pinned)
    assembly = _express(found)
    # What the trace cannot vouch for stays, and the user hears of it.
    notes = _notes(tapes, tensors, parameters, found)
    for note in notes:
        warnings.warn(note, UntracedWarning, stacklevel=3)
    spec = _spec(module, assembly, notes, parameters)
    if wanted == {PERMUTATION} or assembly.named is None:
        return add_declared(module, spec, inputs, wanted)
    first = FirstAnalysis(assembly.named, found.passes)
    larger = with_kinds(module, inputs, spec, first, wanted)
    spec = add_declared(module, larger.spec, inputs, wanted)
    names = separable(module, spec.aliases, larger.blocked.values())
    if not names:
        return spec

    def infer_again(free: nn.Module) -> PermutationSpec:
        return infer_spec_many(free, inputs, pin=pin, kinds=wanted)

    return with_untied(module, spec, names, infer_again)


def _pinned(
    tensors: Mapping[str, Tensor], pin: Iterable[str]
) -> dict[str, str]:
    """Tensors that must not move, and why."""
    for name in pin:
        if name not in tensors:
            raise TraceError(
                f"cannot pin {name!r}: the module has no such tensor"
            )
    return dict.fromkeys(pin, "pinned on request")


def _express(found: Propagation) -> Assembly:
    """Find cells and make groups of them; pin what no axis map can express, and look again."""
    store = found.store
    for _ in range(_MOST_ATTEMPTS):
        tables = store.active_tables()
        cells = find_cells(store.size, store.runs, tables)
        assembly = assemble(cells, found.states, tables, found.contractions)
        if not assembly.inexpressible:
            return assembly
        for elements in assembly.inexpressible:
            number = int(cells.colouring.cell_of[elements[0]])
            store.tables += _fix_parents(cells, number)
    raise TraceError("the symmetries of this model cannot be expressed")


def _fix_parents(cells: Cells, number: int) -> Iterator[Table]:
    """Tables that fix the parents of a cell: units that follow them in an odd way stay if they do."""
    classes = cells.colouring.classes
    for image in cells.cells[number].maps:
        ids = np.flatnonzero(np.isin(classes, image))
        places = np.arange(len(ids))
        yield Table("position", ids, places, "", NOT_NESTED)


def _notes(
    tapes: Sequence[Tape],
    tensors: Mapping[str, Tensor],
    parameters: set[int],
    found: Propagation,
) -> tuple[str, ...]:
    """What the user should know: parameters that no input touched, operations without a rule."""
    touched = set().union(*(tape.touched() for tape in tapes))
    notes = []
    for name, tensor in tensors.items():
        idle = name not in touched and tensor.numel() > 0
        if idle and id(tensor) in parameters:
            notes.append(
                f"parameter {name!r} is not used in the traced forward pass "
                f"and stays pinned; trace an input that uses it"
            )
    for op, where in found.unknown.items():
        notes.append(
            f"operation {op} has no rule ({where}); what it touches is pinned"
        )
    return tuple(notes)


def _spec(
    module: nn.Module,
    assembly: Assembly,
    notes: tuple[str, ...],
    parameters: set[int],
) -> PermutationSpec:
    """The spec of a module: what was assembled, and all tensors of its state dict."""
    infos: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        # Modules may keep anything in their extra state.
        if not isinstance(tensor, Tensor):
            continue
        kind: TensorKind = "buffer"
        if id(tensor) in parameters:
            kind = "parameter"
        infos[name] = TensorInfo(tuple(tensor.shape), kind)
        # A tied weight has several names: the first one is its own.
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    activations = {}
    for group, addresses in assembly.activations.items():
        activations[group] = tuple(addresses)
    if any(map(is_hollow, module.parameters())):
        # Kernels are chosen by how tensors lie in memory: a real network runs others, where units are seen elsewhere.
        activations = {}
    return PermutationSpec(
        assembly.groups,
        infos,
        assembly.maps,
        tuple(assembly.pins),
        aliases,
        notes,
        activations,
    )
