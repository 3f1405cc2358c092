"""Kernels that fuse several steps: weight norm, the three-way product of a bilinear layer, grid sampling."""

from __future__ import annotations

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    dims_of,
    rule,
)
from lightning_rebasin.symmetry.trace.tape import Node


@rule("_weight_norm_interface _weight_norm")
def weight_norm(ctx: Context, node: Node) -> list[Label]:
    """``w = g · v / ‖v‖`` with the norm over all dimensions but ``dim``."""
    given = node.arguments
    direction, length = ctx.label(given["v"]), ctx.label(given["g"])
    kept = given["dim"] % len(direction.dims)
    others = [d for d in range(len(direction.dims)) if d != kept]
    direction = ctx.normalise(direction, others)
    letters = list(range(len(direction.dims)))
    result = ctx.join([(direction, letters), (length, letters)], letters)
    norms = ctx.reduce(result, others)
    for dim in others:
        norms = labels.insert_dim(norms, dim)
    return [result, norms][: len(node.outputs)]


@rule("_trilinear")
def trilinear(ctx: Context, node: Node) -> list[Label]:
    """The product of three tensors, each given new dimensions of size 1, summed over some dimensions."""
    given = node.arguments
    operands = []
    for number in "123":
        label = ctx.label(given[f"i{number}"])
        for dim in sorted(given[f"expand{number}"]):
            label = labels.insert_dim(label, dim)
        operands.append((label, list(range(len(label.dims)))))
    letters = operands[0][1]
    summed = dims_of(given["sumdim"], len(letters)) if given["sumdim"] else []
    return [ctx.join(operands, [x for x in letters if x not in summed])]


@rule(
    "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler grid_sampler _grid_sampler_2d_cpu_fallback"
)
def grid_sample(ctx: Context, node: Node) -> list[Label]:
    """Channels of an image read at positions that another tensor gives."""
    image, grid = (
        ctx.label(node.arguments["input"]),
        ctx.label(node.arguments["grid"]),
    )
    space = range(2, len(image.dims))
    image = ctx.pin(image, list(space), "position in the image")
    grid = ctx.pin(grid, [len(grid.dims) - 1], "coordinates of a position")
    places = [("place", d) for d in space]
    pixels = [("pixel", d) for d in space]
    operands = [
        (image, ["n", "c", *pixels]),
        (grid, ["n", *places, "coordinate"]),
    ]
    return [ctx.join(operands, ["n", "c", *places])]


@rule("affine_grid_generator")
def affine_grid(ctx: Context, node: Node) -> list[Label]:
    """Positions made of one matrix per image; only the batch is kept."""
    theta = ctx.label(node.arguments["theta"])
    theta = ctx.pin(theta, [1, 2], "coordinates of a position")
    result = ctx.reduce(theta, [1, 2])
    shape = ctx.out_shape(node)
    for dim in range(1, len(shape)):
        result = labels.insert_pinned(result, dim, shape[dim])
    return [result]
