"""Blocks, memory and the table of terms."""

import gc

import pytest
import torch
from helpers import textbook
from helpers.planted import (
    GroupedResidual,
    Recurrent,
    Transformer,
    chain,
    small_vgg,
)
from helpers.specs import blocks_spec, grouped_spec, nested_spec

from lightning_rebasin import infer_spec
from lightning_rebasin.matching.costs.blocks import (
    blocks_of,
    objective_tensors,
)
from lightning_rebasin.matching.costs.cache import (
    _TABLES,
    CostCache,
    TermTable,
)
from lightning_rebasin.matching.costs.layouts import SMALL, Layouts
from lightning_rebasin.matching.costs.packed import PackedCost
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

SPECS = {
    "nested": nested_spec,
    "grouped": grouped_spec,
    "flatten block": blocks_spec,
    "vgg": lambda: infer_spec(small_vgg().eval(), torch.randn(2, 3, 8, 8)),
    "transformer": lambda: infer_spec(
        Transformer(), torch.randint(0, 20, (2, 8))
    ),
    "grouped convolution": lambda: infer_spec(
        GroupedResidual(), torch.randn(2, 3, 8, 8)
    ),
    "lstm": lambda: infer_spec(Recurrent(), torch.randn(2, 4, 10)),
}


@pytest.mark.parametrize("name", list(SPECS))
def test_blocks_cut_every_tensor_into_disjoint_parts(name):
    spec = SPECS[name]()
    covered = {
        n: torch.zeros(spec.tensors[n].shape)
        for n in objective_tensors(spec)
        if n in spec.maps
    }
    for block in blocks_of(spec):
        tensor = covered[block.tensor]
        places = block.take(torch.arange(tensor.numel()).reshape(tensor.shape))
        assert tuple(places.shape) == block.lengths
        assert len(block.lengths) == len(block.axes)
        tensor.view(-1)[places.reshape(-1)] += 1
    assert all(bool((tensor == 1).all()) for tensor in covered.values())


@pytest.mark.parametrize(
    "name", ["nested", "flatten block", "vgg", "transformer"]
)
def test_soft_costs_at_permutation_matrices_are_the_hard_costs(name):
    from lightning_rebasin.symmetry.actions.permutation import Permutation

    spec = SPECS[name]()
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {
            n: torch.randn(i.shape, generator=generator, dtype=torch.float64)
            for n, i in spec.tensors.items()
        }
        for _ in range(2)
    )
    cpu = torch.device("cpu")
    layouts = (Layouts(s, torch.float64, cpu) for s in (a, b))
    costs = CostCache(TermTable.of(spec), *layouts, torch.float64, cpu)
    p = Permutation.random(spec, generator)
    flats = {g: p.flat(g) for g in spec.groups}
    soft = {
        g: torch.eye(len(flat), dtype=torch.float64)[flat]
        for g, flat in flats.items()
    }
    for group in spec.groups:
        torch.testing.assert_close(
            costs.soft_matrix(group, soft), costs.matrix(group, flats)
        )


def soft_cost(table, group, a, b, soft):
    """The cost of ``group`` by its definition: every other axis of B mixed, then inner products of the units."""
    total = 0.0
    for name, axes in table.items():
        if group in axes:
            own, mixed = axes.index(group), b[name]
            for axis, other in enumerate(axes):
                if other and axis != own:
                    mixed = torch.tensordot(
                        soft[other], mixed, ([1], [axis])
                    ).movedim(0, axis)
            total = total + torch.tensordot(
                a[name].movedim(own, 0), mixed.movedim(own, -1), len(axes) - 1
            )
    return total


@pytest.mark.parametrize("keep", [True, False])
def test_soft_costs_of_large_blocks_are_the_definition(keep):
    """Blocks beyond the cache are mixed into memory that is used again; soft orders that are no permutations."""
    generator = torch.Generator().manual_seed(0)
    table = {
        "first": ("g", None, None, None),
        "middle": ("h", "g", None, None),
        "dense": ("g", "h"),
        "cube": ("g", "h", "k"),
    }
    shapes = {
        "first": (160, 3, 3, 3),
        "middle": (144, 160, 3, 3),
        "dense": (160, 144),
        "cube": (160, 144, 6),
    }
    a, b = (
        {
            n: torch.randn(s, generator=generator, dtype=torch.float64)
            for n, s in shapes.items()
        }
        for _ in range(2)
    )
    spec, cpu = PermutationSpec.from_table(table, a), torch.device("cpu")
    models = (Layouts(s, torch.float64, cpu, keep=keep) for s in (a, b))
    costs = CostCache(TermTable.of(spec), *models, torch.float64, cpu)
    for _ in range(2):
        soft = {
            g: torch.rand(
                n, n, generator=generator, dtype=torch.float64
            ).softmax(0)
            for g, n in (("g", 160), ("h", 144), ("k", 6))
        }

        for group in ("g", "h"):
            torch.testing.assert_close(
                costs.soft_matrix(group, soft),
                soft_cost(table, group, a, b, soft),
            )


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("moved", [0, 12, 64, 160])
def test_updated_costs_of_large_convolutions_are_the_definition(moved, keep):
    """Blocks beyond the cache are gathered into memory that is used again; a step may skip, update or build anew."""
    generator = torch.Generator().manual_seed(moved)
    table = {
        "first": ("g", None, None, None),
        "middle": ("h", "g", None, None),
        "dense": ("g", "h"),
        "last": (None, "h"),
    }
    shapes = {
        "first": (160, 3, 3, 3),
        "middle": (160, 160, 3, 3),
        "dense": (160, 160),
        "last": (10, 160),
    }
    a, b = (
        {
            n: torch.randn(shape, generator=generator, dtype=torch.float64)
            for n, shape in shapes.items()
        }
        for _ in range(2)
    )
    spec = PermutationSpec.from_table(table, a)
    cpu = torch.device("cpu")
    costs = CostCache(
        TermTable.of(spec),
        *(Layouts(s, torch.float64, cpu, keep=keep) for s in (a, b)),
        torch.float64,
        cpu,
    )
    flats = {
        "g": torch.randperm(160, generator=generator),
        "h": torch.randperm(160, generator=generator),
    }
    for _ in range(4):
        for group in table["middle"][:2]:
            expected = textbook.cost_matrix(table, group, a, b, flats)
            torch.testing.assert_close(costs.matrix(group, flats), expected)
        for group, flat in flats.items():
            where = torch.randperm(160, generator=generator)[:moved]
            flats[group] = flat.clone()
            flats[group][where] = flat[where.roll(1)]


@pytest.mark.parametrize("units", [128, 192])
def test_only_groups_with_compiled_assignments_compile_anything_else(
    units, monkeypatch
):
    from lightning_rebasin.matching.costs import gather

    compiled, done = gather.gather_differences, []
    monkeypatch.setattr(
        gather,
        "gather_differences",
        lambda *arrays: done.append(compiled(*arrays)),
    )
    monkeypatch.setattr(
        torch, "get_num_threads", lambda: 1
    )  # with many threads torch is faster
    generator = torch.Generator().manual_seed(0)
    table = {"first": ("g", None), "middle": ("h", "g", None, None)}
    shapes = {"first": (units, 3), "middle": (units, units, 3, 3)}
    a, b = (
        {
            n: torch.randn(s, generator=generator, dtype=torch.float64)
            for n, s in shapes.items()
        }
        for _ in range(2)
    )
    spec, cpu = PermutationSpec.from_table(table, a), torch.device("cpu")
    costs = CostCache(
        TermTable.of(spec),
        *(Layouts(s, torch.float64, cpu) for s in (a, b)),
        torch.float64,
        cpu,
    )
    flats = {"g": torch.arange(units), "h": torch.arange(units)}
    for _ in range(3):
        expected = textbook.cost_matrix(table, "h", a, b, flats)
        torch.testing.assert_close(costs.matrix("h", flats), expected)
        where = torch.randperm(units, generator=generator)[:64]
        flats["g"] = flats["g"].clone()
        flats["g"][where] = flats["g"][where.roll(1)]
    assert bool(done) == (units > 160)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_packed_costs_of_small_groups_are_the_definition(dtype):
    generator = torch.Generator().manual_seed(0)
    table = {
        "first": ("g", None, None, None),
        "scale": ("g",),
        "middle": ("h", "g", None, None),
        "dense": ("h", "g"),
        "last": (None, "h"),
    }
    shapes = {
        "first": (24, 3, 3, 3),
        "scale": (24,),
        "middle": (40, 24, 3, 3),
        "dense": (40, 24),
        "last": (10, 40),
    }
    a, b = (
        {
            n: torch.randn(s, generator=generator).to(dtype)
            for n, s in shapes.items()
        }
        for _ in range(2)
    )
    spec = PermutationSpec.from_table(table, a)
    working = torch.float64 if dtype is torch.float64 else torch.float32
    cpu, terms = torch.device("cpu"), TermTable.of(spec)
    assert all(terms.packings.values())
    costs = CostCache(
        terms, *(Layouts(s, working, cpu) for s in (a, b)), working, cpu
    )
    flats = {"g": torch.arange(24), "h": torch.arange(40)}
    for _ in range(3):
        for group, size in (("g", 24), ("h", 40)):
            expected = textbook.cost_matrix(
                table,
                group,
                *({n: t.to(working) for n, t in s.items()} for s in (a, b)),
                flats,
            )
            torch.testing.assert_close(
                costs.matrix(group, flats), expected, rtol=1e-4, atol=1e-4
            )
            flats[group] = torch.randperm(size, generator=generator)
        assert costs.stale("g", flats)


def test_packed_costs_are_updated_by_the_rows_that_changed(monkeypatch):
    """In a stream with two partners, few or many units of either move; float32, so errors would pile up."""
    generator = torch.Generator().manual_seed(0)
    table = {
        name: (name[0], "g", None, None) for name in ("h.weight", "k.weight")
    } | {"scale": ("g",)}
    shapes = {
        "h.weight": (64, 64, 3, 3),
        "k.weight": (48, 64, 3, 3),
        "scale": (64,),
    }
    a, b = (
        {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
        for _ in range(2)
    )
    spec, cpu = PermutationSpec.from_table(table, a), torch.device("cpu")
    costs = CostCache(
        TermTable.of(spec),
        *(Layouts(s, torch.float32, cpu) for s in (a, b)),
        torch.float32,
        cpu,
    )
    updated, done = PackedCost._updated, []
    monkeypatch.setattr(
        PackedCost,
        "_updated",
        lambda self, orders: done.append(updated(self, orders)) or done[-1],
    )
    flats = {
        group: torch.arange(size)
        for group, size in (("g", 64), ("h", 64), ("k", 48))
    }
    for moved in (
        (2, 0),
        (0, 3),
        (5, 4),
        (64, 48),
        (0, 0),
        (20, 0),
        *[(9, 7)] * 60,
    ):
        expected = textbook.cost_matrix(table, "g", a, b, flats)
        torch.testing.assert_close(
            costs.matrix("g", flats), expected, rtol=1e-4, atol=2e-3
        )
        for group, count in zip("hk", moved, strict=True):
            where = torch.randperm(len(flats[group]), generator=generator)[
                :count
            ]
            flats[group] = flats[group].clone()
            flats[group][where] = flats[group][where.roll(1)]
    assert done[:4] == [True, True, True, False]
    assert done.count(True) > 40
    assert False in done[6:], "never built anew, however often it was updated"


@pytest.mark.parametrize("change", ["large", "complex", "three groups"])
def test_what_is_not_packed(change):
    shape = (65, 4) if change == "large" else (8, 4)
    table = {
        "w": ("h", None),
        "v": ("k", "h", "m") if change == "three groups" else ("k", "h"),
    }
    state = {
        "w": torch.zeros(shape),
        "v": torch.zeros((4, shape[0], 2)[: len(table["v"])]),
    }
    if change == "complex":
        state = {
            name: tensor.to(torch.complex64) for name, tensor in state.items()
        }
    spec, cpu = PermutationSpec.from_table(table, state), torch.device("cpu")
    packing, layouts = (
        TermTable.of(spec).packings["h"],
        Layouts(state, torch.float32, cpu),
    )
    assert (
        packing is None if change != "complex" else not packing.fits(layouts)
    )


def test_copies_of_half_precision_weights_take_half_the_room():
    generator = torch.Generator().manual_seed(0)
    table = {
        "first": ("g", None, None, None),
        "middle": ("h", "g", None, None),
        "last": (None, "h"),
    }
    shapes = {
        "first": (160, 3, 3, 3),
        "middle": (160, 160, 3, 3),
        "last": (10, 160),
    }
    a, b = (
        {
            n: torch.randn(s, generator=generator).bfloat16()
            for n, s in shapes.items()
        }
        for _ in range(2)
    )
    spec, cpu = PermutationSpec.from_table(table, a), torch.device("cpu")
    layouts = [Layouts(s, torch.float32, cpu) for s in (a, b)]
    costs = CostCache(TermTable.of(spec), *layouts, torch.float32, cpu)
    flats = {
        "g": torch.randperm(160, generator=generator),
        "h": torch.randperm(160, generator=generator),
    }
    wide = [{n: t.float() for n, t in s.items()} for s in (a, b)]
    for _ in range(3):
        for group in ("g", "h"):
            expected = textbook.cost_matrix(table, group, *wide, flats)
            torch.testing.assert_close(
                costs.matrix(group, flats), expected, rtol=1e-3, atol=1e-2
            )
            flat = flats[group].clone()
            flat[:12] = flat[:12].roll(1)
            flats[group] = flat
    kept = [tensor for of in layouts for tensor in of._kept.values()]
    assert kept
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}


def test_costs_of_large_weights_are_the_definition_and_no_copy_is_kept():
    """Seen from their outputs or from their inputs, built, updated or mixed softly, plain or convolutions."""
    table = {
        "first": ("g", None),
        "middle": ("h", "g", None, None),
        "dense": ("h", "g"),
        "last": (None, "h"),
    }
    shapes = {
        "first": (400, 3),
        "middle": (192, 400, 3, 3),
        "dense": (192, 400),
        "last": (10, 192),
    }
    table["pointwise"], shapes["pointwise"] = table["middle"], (192, 400, 1, 1)
    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    a, b = (
        {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
        for _ in range(2)
    )
    spec = PermutationSpec.from_table(table, a)
    layouts = [Layouts(s, torch.float32, cpu) for s in (a, b)]
    costs = CostCache(TermTable.of(spec), *layouts, torch.float32, cpu)
    soft = {
        g: torch.rand(of.members, of.members, generator=generator).softmax(0)
        for g, of in spec.groups.items()
    }
    flats = {
        group: torch.randperm(of.members, generator=generator)
        for group, of in spec.groups.items()
    }
    close = {"rtol": 1e-4, "atol": 5e-3}
    for moved in (20, 20, 150, 20):
        for group in spec.groups:
            torch.testing.assert_close(
                costs.matrix(group, flats),
                textbook.cost_matrix(table, group, a, b, flats),
                **close,
            )
            torch.testing.assert_close(
                costs.soft_matrix(group, soft),
                soft_cost(table, group, a, b, soft),
                **close,
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
        for of in layouts
        for t in of._kept.values()
    }
    assert all(
        numel < SMALL for pointer, numel in kept.items() if pointer not in own
    )


def test_tables_are_kept_per_spec_and_let_go_with_it():
    table, a, _ = chain((4, 5, 3), 0)
    spec = PermutationSpec.from_table(table, a)
    assert TermTable.of(spec) is TermTable.of(spec)
    key = id(spec)
    assert key in _TABLES
    del spec
    gc.collect()
    assert key not in _TABLES


@pytest.mark.cuda
def test_costs_on_a_gpu_give_the_same_matching():
    from lightning_rebasin.matching import match_weights

    table, a, b = chain((20, 60, 50, 5), 0)
    spec = PermutationSpec.from_table(table, a)
    there = ({n: t.cuda() for n, t in state.items()} for state in (a, b))
    assert (
        match_weights(spec, *there).permutation
        == match_weights(spec, a, b).permutation
    )
