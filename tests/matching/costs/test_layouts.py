"""Blocks laid out in memory and gathered: always the same numbers, few copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import textbook
from helpers.costs import (
    CPU,
    F64,
    cost_cache,
    layouts,
    random_pair,
    random_soft,
    soft_cost,
)
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block, blocks_of
from lightning_rebasin.matching.costs.cache import CostCache, TermTable
from lightning_rebasin.matching.costs.layouts import SMALL, Layouts, Scratch
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Axes = tuple[str | None, ...]


def one_block(shape: tuple[int, ...]) -> Block:
    """The block of a weight ``w`` whose first two axes belong to groups."""
    axes = ("h", "k", *[None] * (len(shape) - 2))
    spec = PermutationSpec.from_table({"w": axes}, {"w": shape})
    (block,) = blocks_of(spec)
    return block


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_block_in_any_order_of_its_axes(
    order: tuple[int, ...], keep: bool
) -> None:
    block = one_block((2, 3, 4))
    weight = torch.randn(2, 3, 4, dtype=F64)
    found = Layouts({"w": weight}, F64, CPU, keep=keep)
    expected = np.transpose(weight.numpy(), order)
    for _ in range(2):
        contiguous = found.contiguous(block, order)
        assert contiguous.is_contiguous()
        np.testing.assert_array_equal(contiguous.numpy(), expected)
        np.testing.assert_array_equal(
            found.view(block, order).numpy(),
            expected.reshape(-1, expected.shape[-1]),
        )
    np.testing.assert_array_equal(found.natural(block).numpy(), weight)
    np.testing.assert_array_equal(found.standing(block).numpy(), weight)


def test_half_precision_is_widened_only_on_the_way_to_a_product() -> None:
    block = one_block((2, 3))
    weight = torch.randn(2, 3).bfloat16()
    found = Layouts({"w": weight}, torch.float32, CPU)
    assert found.view(block, (1, 0)).dtype is torch.bfloat16
    assert found.natural(block).dtype is torch.float32
    assert torch.equal(found.natural(block), weight.float())
    np.testing.assert_array_equal(found.array(block), weight.float().numpy())


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 2)])
def test_costs_of_complex_weights_are_real_parts(
    shape: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {"w": torch.randn(shape, generator=generator, dtype=torch.complex128)}
        for _ in range(2)
    )
    axes = ("h", "k", *[None] * (len(shape) - 2))
    spec = PermutationSpec.from_table({"w": axes}, a)
    flats = {
        "h": torch.tensor([1, 3, 0, 2]),
        "k": torch.tensor([2, 0, 4, 1, 3]),
    }
    costs = cost_cache(spec, a, b)
    x, y = a["w"].conj(), b["w"]
    # Units are rows, then columns; their partners stand in their order.
    for group, pair in (
        ("h", (x, y[:, flats["k"]])),
        ("k", (x.transpose(0, 1), y[flats["h"]].transpose(0, 1))),
    ):
        left, right = (z.flatten(1) for z in pair)
        found = costs.matrix(group, flats)
        torch.testing.assert_close(found, (left @ right.T).real)
    assert not layouts(a, b)[0].real


#: Below and from the size on from which gathered parts go to memory that is used again.
SIZES = [(6, 5, 3), (300, 250, 1), (200, 170, 4)]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SIZES)
def test_gathered_parts_are_those_of_index_select(
    shape: tuple[int, ...], dtype: torch.dtype, keep: bool
) -> None:
    scratch = Scratch(torch.float32, CPU, keep=keep)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        tensor = torch.randn(shape, generator=generator).to(dtype)
        for axis in (0, 1):
            after, before = (
                torch.randperm(shape[axis], generator=generator)
                for _ in range(2)
            )
            wide = tensor.float()
            new, old = (wide.index_select(axis, i) for i in (after, before))
            taken = scratch.gather("x", tensor, axis, after)
            torch.testing.assert_close(taken, new, rtol=0, atol=0)
            less = scratch.difference("x", tensor, axis, after, before)
            # In half precision what is subtracted has been rounded already.
            torch.testing.assert_close(less, new - old, rtol=0, atol=0)
        swapped = scratch.swapped("x", tensor)
        torch.testing.assert_close(swapped, wide.transpose(0, 1).contiguous())
        torch.testing.assert_close(scratch.working("x", tensor), wide)
        scratch.forget()


def test_only_large_parts_share_their_room() -> None:
    scratch = Scratch(torch.float32, CPU, keep=True)
    index = torch.arange(2)

    def same_room(tensor: Tensor) -> bool:
        first, second = (scratch.gather("x", tensor, 0, index) for _ in "ab")
        return first.data_ptr() == second.data_ptr()

    assert same_room(torch.randn(2, SMALL // 2))
    assert not same_room(torch.randn(2, SMALL // 2 - 1))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [7, 300])
def test_products_are_products(size: int, keep: bool) -> None:
    scratch = Scratch(F64, CPU, keep=keep)
    left, right = torch.randn(2, size, size, dtype=F64)
    found = scratch.product("x", left, right)
    np.testing.assert_allclose(
        found.numpy(), left.numpy() @ right.numpy(), rtol=1e-9, atol=1e-9
    )


def test_copies_of_half_precision_weights_take_half_the_room() -> None:
    table: dict[str, Axes] = {
        "first": ("g", None, None, None),
        "middle": ("h", "g", None, None),
        "last": (None, "h"),
    }
    shapes = {
        "first": (160, 3, 3, 3),
        "middle": (160, 160, 3, 3),
        "last": (10, 160),
    }
    a, b = random_pair(shapes, torch.bfloat16)
    spec = PermutationSpec.from_table(table, a)
    models = layouts(a, b, torch.float32)
    costs = CostCache(TermTable.of(spec), *models, torch.float32, CPU)
    generator = torch.Generator().manual_seed(0)
    flats = {
        "g": torch.randperm(160, generator=generator),
        "h": torch.randperm(160, generator=generator),
    }
    x, y = ({n: t.float() for n, t in s.items()} for s in (a, b))
    for _ in range(3):
        for group in ("g", "h"):
            expected = textbook.cost_matrix(table, group, x, y, flats)
            torch.testing.assert_close(
                costs.matrix(group, flats), expected, rtol=1e-3, atol=1e-2
            )
            flat = flats[group]
            flats[group] = torch.cat([flat[:12].roll(1), flat[12:]])
    kept = [tensor for of in models for tensor in of._kept.values()]
    assert kept
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}


def test_costs_of_large_weights_are_the_definition_and_no_copy_is_kept() -> (
    None
):
    """Seen from their outputs or from their inputs, built, updated or mixed softly, plain or convolutions."""
    table: dict[str, Axes] = {
        "first": ("g", None),
        "middle": ("h", "g", None, None),
        "dense": ("h", "g"),
        "last": (None, "h"),
        "pointwise": ("h", "g", None, None),
    }
    shapes = {
        "first": (400, 3),
        "middle": (192, 400, 3, 3),
        "dense": (192, 400),
        "last": (10, 192),
        "pointwise": (192, 400, 1, 1),
    }
    a, b = random_pair(shapes, torch.float32)
    spec = PermutationSpec.from_table(table, a)
    models = layouts(a, b, torch.float32)
    costs = CostCache(TermTable.of(spec), *models, torch.float32, CPU)
    generator = torch.Generator().manual_seed(0)
    sizes = {name: group.members for name, group in spec.groups.items()}
    soft = {
        g: random_soft(n, generator, torch.float32) for g, n in sizes.items()
    }
    flats = {
        g: torch.randperm(n, generator=generator) for g, n in sizes.items()
    }
    for moved in (20, 20, 150, 20):
        for group in spec.groups:
            torch.testing.assert_close(
                costs.matrix(group, flats),
                textbook.cost_matrix(table, group, a, b, flats),
                rtol=1e-4,
                atol=5e-3,
            )
            torch.testing.assert_close(
                costs.soft_matrix(group, soft),
                soft_cost(table, group, a, b, soft),
                rtol=1e-4,
                atol=5e-3,
            )
        for group, flat in flats.items():
            flats[group] = torch.cat([flat[:moved].roll(1), flat[moved:]])
    own = {
        t.untyped_storage().data_ptr()
        for state in (a, b)
        for t in state.values()
    }
    kept = {
        t.untyped_storage().data_ptr(): t.numel()
        for of in models
        for t in of._kept.values()
    }
    copies = [n for pointer, n in kept.items() if pointer not in own]
    assert all(numel < SMALL for numel in copies)
