"""Run the rules over tapes: labels in, constraints out.

Parameters start with one run of elements per axis.  When an operation shows that an axis may be ordered differently for
each block of another axis (the stacked matrices of attention heads or experts, the groups of a convolution), the pass
is repeated with the finer elements, until no operation asks for more.

For ``Linear(3, 2) → ReLU → Linear(2, 2)`` (elements as in ``elements.py``) one pass reads a tape of five operations:

    t       swaps the dimensions of the label of ``0.weight``: (columns [2, 3, 4], rows [0, 1])
    addmm   joins the columns with the features of the input (pinned) and the rows with ``0.bias``: 0 ≡ 5, 1 ≡ 6;
            the result has the label (batch pinned, [0, 1])
    relu    hands the label on
    t       as above, for ``2.weight``: (columns [9, 10], rows [7, 8])
    addmm   joins the columns with the hidden units: 0 ≡ 9, 1 ≡ 10; the result has the label (batch pinned, [7, 8])

The result is an output, so that 7 and 8 are pinned at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_rebasin.errors import InternalError, RebasinError
from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    IntArray,
    connected,
)
from lightning_rebasin.symmetry.permutations.join import (
    Refinement,
    Wishes,
    combine_label,
)
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.rules import RULES
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    Contraction,
    LayoutNotCovered,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.registry import Rule
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape

Shape = tuple[int, ...]
#: A refined axis has at most this many elements.
_LARGEST_AXIS = 1 << 22
#: Each pass refines by one more level of nesting (heads, queries in a head), so few are needed.
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
    #: The last pass over each tape, with the labels of all its values: what a second analysis starts from.
    passes: list[Context] = field(default_factory=list)


def propagate(
    tapes: Sequence[Tape],
    shapes: Mapping[str, Shape],
    pinned: Mapping[str, str],
) -> Propagation:
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
        # The finer elements change what everything after them is, so the whole pass is repeated.
    return result


def _one_pass(
    tapes: Sequence[Tape],
    shapes: Mapping[str, Shape],
    pinned: Mapping[str, str],
    dependence: Dependence,
    wishes: Wishes,
) -> Propagation:
    store = Constraints()
    states = {
        name: state_label(store, name, shape, dependence)
        for name, shape in shapes.items()
    }
    result = Propagation(store, states)
    for name, reason in pinned.items():
        for part in states[name].parts:
            store.pin(part.elements, reason)
    # All examples write into one store: what holds must hold on each of them.
    for example, tape in enumerate(tapes):
        nodes, needed = tape.live_nodes()
        ctx = Context(
            store,
            tape,
            states,
            wishes,
            example,
            needed=needed,
            from_data=tape.from_data(),
        )
        for node in nodes:
            run_rule(ctx, node)
        _pin_outputs(ctx)
        result.contractions += ctx.contractions
        result.passes.append(ctx)
        result.unknown.update(ctx.unknown)
    return result


def _pin_outputs(ctx: Context) -> None:
    """Whoever reads the outputs counts on their order."""
    ctx.store.where = "output"
    for value in ctx.tape.results:
        label = ctx.use(ctx.label(Ref(value)))
        ctx.pin(label, range(len(label.dims)), "it is an output")


def run_rule(ctx: Context, node: Node) -> None:
    """Label the results of one operation; what its rule does not cover is pinned and reported."""
    ctx.store.where = node.where
    shapes = [ctx.tape.values[value].shape for value in node.outputs]
    # Without numbers there is nothing to label, and rules need not know of empty tensors.
    nothing = bool(shapes) and all(0 in shape for shape in shapes)
    found: Sequence[Label] = []
    if not nothing:
        found = _labels(ctx, node, shapes)
    else:
        found = [labels.fixed(shape) for shape in shapes]
    for value, shape, label in zip(node.outputs, shapes, found, strict=False):
        # What comes from constants alone is labelled by the numbers that the tape holds.
        if ctx.tape.values[value].origin == "operation":
            ctx.known[value] = labels.fixed(shape) if 0 in shape else label


def _labels(
    ctx: Context, node: Node, shapes: Sequence[Shape]
) -> Sequence[Label]:
    """The labels that the rule of an operation gives, or those of an operation without a rule."""
    function = RULES.get(node.op)
    if function is None and node.pointwise:
        # torch says so itself: whatever it computes, it does so position by position.
        function = RULES["aten.clone"]
    found = None if function is None else _follow(ctx, node, function)
    if found is not None and _fit(found, shapes):
        return found
    ctx.unknown.setdefault(node.op, node.where)
    return unknown(ctx, node)


def _follow(
    ctx: Context, node: Node, function: Rule
) -> Sequence[Label] | None:
    """What a rule says; ``None`` if it does not cover this overload or layout."""
    try:
        return function(ctx, node)
    except LayoutNotCovered:
        return None
    except RebasinError:
        # It says already what is wrong and what to do.
        raise
    except Exception as error:
        # Whatever it is, it is our mistake: pinning the operation would hide it.
        what = f"{type(error).__name__}: {error}"
        raise InternalError(
            f"the rule {function.__name__!r} failed on {node.where}: {what}; this is a bug of "
            "lightning_rebasin, please report it with the model"
        ) from error


def _fit(found: Sequence[Label], shapes: Sequence[Shape]) -> bool:
    """Whether labels have the shapes of the results; a concatenation gives none, its label comes later."""
    pairs = zip(found, shapes, strict=False)
    return all(label.shape == shape or 0 in shape for label, shape in pairs)


def state_label(
    store: Constraints,
    name: str,
    shape: Shape,
    dependence: Dependence,
) -> Label:
    """Label of a parameter or buffer: elements for every axis, finer where they depend on other axes.

    A 2×3 weight has two runs of elements, ``[0, 1]`` and ``[2, 3, 4]``.  If the columns may be ordered anew in each
    row, ``dependence`` says ``{("w", 1): {0: 2}}``, and they are the elements ``[[2, 3, 4], [5, 6, 7]]`` over both
    sites instead.
    """
    blocks = _blocks_of(name, dependence)
    label = _split_into_blocks(labels.plain(shape), blocks)
    parts = []
    for dim, sites in enumerate(label.dims):
        # A dimension of size 1 has no site: there is nothing to order.
        if not sites:
            continue
        bases = dependence.get((name, dim), {})
        # The first site of a base counts its blocks.
        outer = [label.dims[base][0] for base in bases]
        own = tuple(sorted({*sites, *outer}))
        sizes = tuple(label.sizes[site] for site in own)
        parts.append(Part(own, store.fresh(sizes, name, dim)))
    label = Label(label.dims, label.sizes, tuple(parts))
    # Two parts over one site must agree on what its positions are.
    return combine_label(store, label) if blocks else label


def _split_into_blocks(label: Label, blocks: Mapping[int, int]) -> Label:
    """Split each dimension on which others depend into (block, place in the block)."""
    # From the last dimension on, so that the numbers of earlier sites stay.
    for dim in sorted(blocks, reverse=True):
        count, size = blocks[dim], label.shape[dim]
        if 1 < count < size:
            (site,) = label.dims[dim]
            factors = (count, size // count)
            label = labels.split_site(label, site, factors)
    return label


def _blocks_of(name: str, dependence: Dependence) -> dict[int, int]:
    """The axes of a tensor on which others depend, each with the finest number of blocks."""
    found: dict[int, int] = {}
    for (tensor, _), bases in dependence.items():
        if tensor != name:
            continue
        for base, count in bases.items():
            found[base] = max(found.get(base, 1), count)
    return found


def _grant(
    result: Propagation,
    shapes: Mapping[str, Shape],
    wishes: list[Refinement],
    dependence: Dependence,
) -> bool:
    """Turn wishes into dependences between axes of one tensor; whether there were new ones."""
    if not wishes:
        return False
    axes = _Axes(result.store)
    granted = False
    for wish in wishes:
        # In order, for the first of two axes that wish to depend on each other wins.
        for tensor, inner in sorted(axes.owners(wish.inner.ids)):
            for outer in axes.meeting(tensor, wish.outer.ids):
                new = _depend(
                    wish, shapes[tensor], tensor, (inner, outer), dependence
                )
                granted = granted or new
    return granted


def _depend(
    wish: Refinement,
    shape: Shape,
    tensor: str,
    axes: tuple[int, int],
    dependence: Dependence,
) -> bool:
    """Let the first of two axes of a tensor be ordered anew in each block of the second; whether that is new."""
    inner, outer = axes
    # Blocks as many as elements: every position by itself.
    whole = wish.blocks >= wish.outer.ids.size
    count = shape[outer] if whole else wish.blocks
    if not _may_depend(wish, shape, inner, outer, count):
        return False
    # Each ordered within the other would leave neither an order of its own.
    if inner in dependence.get((tensor, outer), {}):
        return False
    known = dependence.setdefault((tensor, inner), {})
    if known.get(outer, 1) >= count:
        return False
    known[outer] = count
    return True


def _may_depend(
    wish: Refinement,
    shape: Shape,
    inner: int,
    outer: int,
    count: int,
) -> bool:
    """Whether one axis of a tensor may have an order for each of ``count`` blocks of another."""
    if outer == inner or shape[outer] % count:
        return False
    # A stack of matrices has its own order in each: three dimensions at least, the stack before the axes.
    if wish.stack and (len(shape) < 3 or outer > inner):
        return False
    return count * shape[inner] <= _LARGEST_AXIS


class _Axes:
    """Which tensor axes some elements belong to, and which they meet."""

    def __init__(self, store: Constraints) -> None:
        self._classes = _classes(store)
        self._runs = [run for run in store.runs if run.tensor]
        self._starts = np.array([run.start for run in self._runs])
        self._met: dict[str, dict[int, set[int]]] = {}
        for run in self._runs:
            found = set(self._classes[run.start : run.stop].tolist())
            self._met.setdefault(run.tensor, {})[run.axis] = found

    def owners(self, ids: IntArray) -> set[tuple[str, int]]:
        """Tensor axes to which some elements belong."""
        flat = ids.reshape(-1)
        found = set()
        # Runs are in order: an element lies in the last one that starts at or before it, if in any.
        where = np.searchsorted(self._starts, flat, side="right") - 1
        for number, element in zip(where, flat, strict=True):
            run = self._runs[number]
            if element < run.stop:
                found.add((run.tensor, run.axis))
        return found

    def meeting(self, tensor: str, ids: IntArray) -> list[int]:
        """Axes of a tensor that share a class with some elements."""
        wanted = set(self._classes[ids].reshape(-1).tolist())
        axes = []
        for axis, classes in self._met[tensor].items():
            if not wanted.isdisjoint(classes):
                axes.append(axis)
        return axes


def _classes(store: Constraints) -> IntArray:
    """Connected components of the equalities."""
    equal = [table for table in store.tables if table.kind == "equal"]
    # An empty column first: there may be no equality at all.
    nothing = np.zeros(0, dtype=np.int64)
    rows = np.concatenate([nothing, *(table.left for table in equal)])
    columns = np.concatenate([nothing, *(table.right for table in equal)])
    classes, _ = connected(store.size, rows, columns)
    return classes
