"""Matrix products and their relatives: joins with contracted letters.

A product ``ik, kj -> ij`` contracts ``k``: the elements of both operands along it are the same units, and they are
summed over, so their order is free.  The join of a 2×3 weight with its input is worked out in
:mod:`~lightning_rebasin.symmetry.permutations.join`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.align import Letter
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    LayoutNotCovered,
    Results,
)
from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.permutations.rules.registry import rule

Operands = list[tuple[Label, Sequence[Letter]]]

#: For each product the letters of its two operands and of its result; an addend broadcasts to the result.
_PRODUCTS = {
    "aten.mm": "self ik, mat2 kj -> ij",
    "aten.bmm": "self bik, mat2 bkj -> bij",
    "aten.mv": "self ik, vec k -> i",
    "aten.dot": "self k, tensor k -> ",
    "aten.vdot": "self k, other k -> ",
    "aten.addmm": "mat1 ik, mat2 kj -> ij",
    "aten.addmv": "mat ik, vec k -> i",
    "aten.baddbmm": "batch1 bik, batch2 bkj -> bij",
    "aten.addbmm": "batch1 bik, batch2 bkj -> ij",
    "aten.addr": "vec1 i, vec2 j -> ij",
    "aten._addmm_activation": "mat1 ik, mat2 kj -> ij",
}


@rule("mm bmm mv dot vdot addmm addmv baddbmm addbmm addr _addmm_activation")
def product(ctx: Context, op: Operation) -> Results:
    """Matrix products, with an addend that broadcasts to the result."""
    factors, out = _PRODUCTS[op.name].split(" -> ")
    operands: Operands = []
    for number, factor in enumerate(factors.split(", ")):
        name, letters = factor.split()
        label = op.label(name)
        contracted = [
            letters.index(letter) for letter in letters if letter not in out
        ]
        op.observe(number, name, label, contracted)
        operands.append((label, letters))
    if "add" in op.name:
        addend = op.label("self")
        missing = len(out) - addend.ndim
        operands.append((addend, out[missing:]))
    return [ctx.join(operands, out, batch=["b"])]


@rule("_cdist_forward cdist")
def distances(ctx: Context, op: Operation) -> Results:
    """Distances between rows: the features are contracted."""
    first = op.label("x1")
    second = op.label("x2")
    if first.ndim != second.ndim:
        raise LayoutNotCovered(
            "distances between stacks of different dimensions"
        )
    lead = range(first.ndim - 2)
    operands: Operands = [
        (first, [*lead, "row of first", "feature"]),
        (second, [*lead, "row of second", "feature"]),
    ]
    out = [*lead, "row of first", "row of second"]
    return [ctx.join(operands, out, batch=lead)]


@rule("_trilinear")
def trilinear(ctx: Context, op: Operation) -> Results:
    """The product of three tensors, each given new dimensions of size 1, summed over some dimensions."""
    factors = []
    for number in "123":
        label = op.label(f"i{number}")
        new_dims = op[f"expand{number}"]
        factors.append(label_dims.insert_dims(label, new_dims))
    letters = range(factors[0].ndim)
    summed = op["sumdim"]
    # An empty list sums nothing here, while it sums everything in a reduction.
    dims = dims_of(summed, len(letters)) if summed else []
    operands = [(factor, letters) for factor in factors]
    left = [letter for letter in letters if letter not in dims]
    return [ctx.join(operands, left)]
