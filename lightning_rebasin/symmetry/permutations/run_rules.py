"""Run the rules over tapes: labels in, constraints out.

Parameters start with one run of elements per axis.  When an operation shows that an axis may be ordered differently for
each block of another axis (the stacked matrices of attention heads or experts, the groups of a convolution), the pass
is repeated with the finer elements, until no operation asks for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.elements import Block, Constraints, IntArray
from lightning_rebasin.symmetry.permutations.join import Refinement, Wishes, combine_label
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.rules import RULES
from lightning_rebasin.symmetry.permutations.rules.base import Context, Contraction, LayoutNotCovered, unknown
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape

#: A refined axis has at most this many elements.
_LARGEST_AXIS = 1 << 22
_MOST_PASSES = 8
#: For each tensor and axis, the axes (with a number of leading blocks) on which its order may depend.
Dependence = dict[tuple[str, int], dict[int, int]]


@dataclass
class Propagation:
    """What the rules found out: constraints and the labels of the state."""

    store: Constraints
    states: Mapping[str, Label]
    contractions: list[Contraction] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


def propagate(tapes: Sequence[Tape], shapes: Mapping[str, tuple[int, ...]], pinned: Mapping[str, str]) -> Propagation:
    """Run the rules over all tapes until no axis has to be refined.

    Args:
        tapes: One per example.
        shapes: Shape of every tensor of the state dict that has elements of its own.
        pinned: Tensors that must not move, and why.
    """
    dependence: Dependence = {}
    for _ in range(_MOST_PASSES):
        wishes = Wishes()
        result = _one_pass(tapes, shapes, pinned, dependence, wishes)
        if not _grant(result, shapes, list(wishes.found.values()), dependence):
            break
    return result


def _one_pass(
    tapes: Sequence[Tape],
    shapes: Mapping[str, tuple[int, ...]],
    pinned: Mapping[str, str],
    dependence: Dependence,
    wishes: Wishes,
) -> Propagation:
    store = Constraints()
    states = {name: state_label(store, name, shape, dependence) for name, shape in shapes.items()}
    result = Propagation(store, states)
    for name, reason in pinned.items():
        for part in states[name].parts:
            store.pin(part.elements, reason)
    for example, tape in enumerate(tapes):
        nodes, needed = tape.live_nodes()
        ctx = Context(store, tape, states, wishes, example, needed=needed, from_data=tape.from_data())
        for node in nodes:
            run_rule(ctx, node)
        store.where = "output"
        for value in tape.results:
            label = ctx.use(ctx.label(Ref(value)))
            ctx.pin(label, range(len(label.dims)), "it is an output")
        result.contractions += ctx.contractions
        result.unknown.update(ctx.unknown)
    return result


def run_rule(ctx: Context, node: Node) -> None:
    """Label the results of one operation; what its rule does not cover is pinned and reported."""
    ctx.store.where = node.where
    shapes = [ctx.tape.values[v].shape for v in node.outputs]
    if shapes and all(0 in shape for shape in shapes):
        found: Sequence[Label] = [labels.fixed(shape) for shape in shapes]
    else:
        found = _labels(ctx, node, shapes)
    for value, shape, label in zip(node.outputs, shapes, found, strict=False):
        if ctx.tape.values[value].origin == "operation":
            ctx.known[value] = labels.fixed(shape) if 0 in shape else label


def _labels(ctx: Context, node: Node, shapes: Sequence[tuple[int, ...]]) -> Sequence[Label]:
    function = RULES.get(node.op) or (RULES["aten.clone"] if node.pointwise else unknown)
    if function is not unknown:
        try:
            found = function(ctx, node)
        except LayoutNotCovered:
            found = [labels.fixed((-1,))]
        if all(x.shape == shape or 0 in shape for x, shape in zip(found, shapes, strict=False)):
            return found
    ctx.unknown.setdefault(node.op, node.where)
    return unknown(ctx, node)


def state_label(store: Constraints, name: str, shape: tuple[int, ...], dependence: Dependence) -> Label:
    """Label of a parameter or buffer: elements for every axis, finer where they depend on other axes."""
    label = labels.plain(shape)
    factors: dict[int, int] = {}
    for (tensor, _), bases in dependence.items():
        if tensor == name:
            for base, blocks in bases.items():
                factors[base] = max(factors.get(base, 1), blocks)
    for dim in sorted(factors, reverse=True):
        if 1 < factors[dim] < shape[dim]:
            label = labels.split_site(label, label.dims[dim][0], (factors[dim], shape[dim] // factors[dim]))
    parts = []
    for dim, sites in enumerate(label.dims):
        if not sites:
            continue
        own = tuple(sorted({*sites, *(label.dims[base][0] for base in dependence.get((name, dim), {}))}))
        parts.append(Part(own, store.fresh(tuple(label.sizes[s] for s in own), name, dim)))
    label = Label(label.dims, label.sizes, tuple(parts))
    return combine_label(store, label) if factors else label


def _grant(
    result: Propagation, shapes: Mapping[str, tuple[int, ...]], wishes: list[Refinement], dependence: Dependence
) -> bool:
    """Turn wishes into dependences between axes of one tensor; whether there were new ones."""
    if not wishes:
        return False
    classes = _classes(result.store)
    axes: dict[str, dict[int, set[int]]] = {}
    for block in result.store.blocks:
        if block.tensor:
            axes.setdefault(block.tensor, {})[block.axis] = set(classes[block.start : block.stop].tolist())
    blocks = [b for b in result.store.blocks if b.tensor]
    starts = np.array([b.start for b in blocks])
    granted = False
    for wish in wishes:
        outer = set(classes[wish.outer.ids].reshape(-1).tolist())
        for tensor, inner_axis in _owners(wish.inner.ids, blocks, starts):
            for outer_axis, found in axes[tensor].items():
                size = shapes[tensor][outer_axis]
                count = size if wish.blocks >= wish.outer.ids.size else wish.blocks
                if outer_axis == inner_axis or outer.isdisjoint(found) or size % count:
                    continue
                if inner_axis in dependence.get((tensor, outer_axis), {}):
                    continue
                if wish.stack and (len(shapes[tensor]) < 3 or outer_axis > inner_axis):
                    continue
                if count * shapes[tensor][inner_axis] > _LARGEST_AXIS:
                    continue
                known = dependence.setdefault((tensor, inner_axis), {})
                if known.get(outer_axis, 1) < count:
                    known[outer_axis] = count
                    granted = True
    return granted


def _owners(ids: IntArray, blocks: list[Block], starts: IntArray) -> set[tuple[str, int]]:
    """Tensor axes to which some elements belong."""
    flat = ids.reshape(-1)
    where = np.searchsorted(starts, flat, side="right") - 1
    return {(blocks[w].tensor, blocks[w].axis) for w, i in zip(where, flat, strict=True) if i < blocks[w].stop}


def _classes(store: Constraints) -> IntArray:
    """Connected components of the equalities."""
    tables = [t for t in store.tables if t.kind == "equal"]
    left = np.concatenate([t.left for t in tables]) if tables else np.zeros(0, dtype=np.int64)
    right = np.concatenate([t.right for t in tables]) if tables else np.zeros(0, dtype=np.int64)
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(store.size, store.size))
    result: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return result
