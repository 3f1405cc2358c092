"""The cases that broke first versions of the inference, kept as regressions."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.models import randomise
from torch import nn

from lightning_rebasin.errors import EquivalenceError, UntracedWarning
from lightning_rebasin.symmetry import (
    Permutation,
    check_equivalence,
    infer_spec,
)
from lightning_rebasin.symmetry.infer import infer_spec_many


class Module(nn.Module):
    """Layers by name and a forward pass as a function of them."""

    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def proved(module, *args):
    """The spec of a module, after the gate."""
    randomise(module)
    spec = infer_spec(module, *args)
    check_equivalence(
        module,
        Permutation.random(spec, torch.Generator().manual_seed(0)),
        *args,
    )
    return spec


def sizes(spec):
    return sorted(group.shape for group in spec.groups.values())


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_fused_qkv_keeps_the_three_parts_apart():
    """Query i and key i are one class but two elements of one axis; values are not mixed with them."""

    def forward(m, z):
        q, k, v = m.qkv(z).chunk(3, -1)
        return m.out((q @ k.mT).softmax(-1) @ v)

    spec = proved(
        Module(forward, qkv=nn.Linear(5, 18), out=nn.Linear(6, 2)), x(2, 4, 5)
    )
    assert sizes(spec) == [(6,), (6,)]
    both = next(
        c for c in spec.maps["qkv.weight"].components if c.index.shape[1] == 2
    )
    assert (both.index[:, 1] - both.index[:, 0]).tolist() == [
        6
    ] * 6 and both.index.min() == 0
    assert spec.maps["out.weight"].components[0].group != both.group


@pytest.mark.parametrize("channels", [2, 4])
def test_flattened_channels_and_positions_are_not_confused(channels):
    """As many channels as positions in either order: only the channel part of the axis moves."""
    module = nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * channels, 3),
    )
    spec = proved(module, x(2, 1, 4, 4))
    assert sizes(spec) == [(channels,)]
    p = Permutation(spec, {"0": torch.arange(channels).roll(1)})
    columns = p.apply(module.state_dict())["3.weight"][0]
    expected = (
        module.state_dict()["3.weight"][0]
        .unflatten(0, (channels, 4))
        .roll(1, 0)
        .flatten()
    )
    assert torch.equal(columns, expected)


def test_rotary_positions_fix_queries_and_keys_but_not_values():
    def rotate(z):
        angle = torch.arange(z.shape[1], dtype=z.dtype)[
            :, None
        ] * 0.3 ** torch.arange(3, dtype=z.dtype)
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        return z * cos + torch.cat([-z[..., 3:], z[..., :3]], -1) * sin

    def forward(m, z):
        return m.out((rotate(m.q(z)) @ rotate(m.k(z)).mT).softmax(-1) @ m.v(z))

    layers = {name: nn.Linear(5, 6) for name in "qkv"}
    spec = proved(Module(forward, **layers, out=nn.Linear(6, 2)), x(2, 4, 5))
    assert (
        sizes(spec) == [(6,)]
        and "q.weight" not in spec.maps
        and "k.weight" not in spec.maps
    )


def test_cyclic_copies_fix_the_order():
    """Rolled by one and multiplied: the only symmetries are rotations, which are no permutation group of ours."""
    forward = lambda m, z: m.b(m.a(z) * m.a(z).roll(1, -1))
    assert not proved(
        Module(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), x(2, 3)
    ).groups


def test_slice_of_one_marks_its_unit():
    forward = lambda m, z: m.b(m.a(z) * m.a(z)[..., 2:3])
    spec = proved(
        Module(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), x(2, 3)
    )
    assert sizes(spec) == [(4,)]
    assert 2 not in spec.maps["a.weight"].components[0].index


def test_dead_slices_and_unused_results_do_not_constrain():
    def forward(m, z):
        h = m.a(z)
        h[..., 2:3] * 2
        values, _indices = h.max(-1, keepdim=True)
        h.sort(-1)
        return m.b(h * values)

    assert sizes(
        proved(Module(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), x(2, 3))
    ) == [(5,)]


def test_pinned_classes_may_repeat_within_an_axis():
    """The input twice: its positions are fixed, and apply leaves both copies of them in place."""
    forward = lambda m, z: m.b(m.a(torch.cat([z, z], -1)).relu())
    module = Module(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 2))
    spec = proved(module, x(2, 3))
    assert sizes(spec) == [(5,)]
    moved = Permutation(spec, {"a": torch.tensor([1, 0, 2, 3, 4])}).apply(
        module.state_dict()
    )
    assert torch.equal(moved["a.weight"], module.a.weight[[1, 0, 2, 3, 4]])


def test_as_strided_on_an_unchanged_shape_is_the_identity():
    def forward(m, z):
        h = m.a(z)
        return m.b(torch.as_strided(h, h.shape, h.stride()).relu())

    assert sizes(
        proved(Module(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), x(2, 3))
    ) == [(5,)]


def branches(m, z, *, right=False):
    return (m.right if right else m.left)(m.a(z).relu())


def test_a_branch_not_taken_is_reported_and_a_second_example_takes_it():
    module = randomise(
        Module(
            branches,
            a=nn.Linear(3, 5),
            left=nn.Linear(5, 2),
            right=nn.Linear(5, 2),
        )
    )
    example = x(4, 3)
    with pytest.warns(UntracedWarning) as caught:
        half = infer_spec(module, example)
    assert any("right.weight" in str(warning.message) for warning in caught)
    assert (
        any("right.weight" in note for note in half.notes)
        and "right.weight" not in half.maps
    )
    p = Permutation.random(half, torch.Generator().manual_seed(0))
    check_equivalence(module, p, example)
    with pytest.raises(EquivalenceError, match=r"right\.weight"):
        check_equivalence(module, p, examples=[{"z": example, "right": True}])
    both = [((example,), {}), ((example,), {"right": True})]
    spec = infer_spec_many(module, both)
    assert sizes(spec) == [(5,)] and "right.weight" in spec.maps
    check_equivalence(
        module,
        Permutation.random(spec, torch.Generator().manual_seed(0)),
        examples=both,
    )


def test_unused_units_stay():
    """A layer read only in part: the units that nobody reads are pinned, and the note says so."""
    forward = lambda m, z: m.b(F.relu(m.a(z)[..., :4]))
    module = Module(forward, a=nn.Linear(3, 6), b=nn.Linear(4, 2))
    randomise(module)
    spec = infer_spec(module, x(2, 3))
    assert sizes(spec) in ([(4,)], [(2,), (4,)])
    check_equivalence(
        module,
        Permutation.random(spec, torch.Generator().manual_seed(0)),
        x(2, 3),
    )


def test_tables_in_buffers_stay_where_models_share_them_and_statistics_move():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = (
                nn.Linear(3, 6),
                nn.BatchNorm1d(6),
                nn.Linear(6, 2),
            )
            self.register_buffer(
                "table", torch.arange(24.0).reshape(4, 6).sin()
            )

        def forward(self, z):
            return self.b(
                torch.relu(self.norm((self.a(z)).mT).mT) + 0 * self.table.sum()
            )

    class Added(Positions):
        def forward(self, z):
            return self.b(torch.relu(self.norm(self.a(z).mT).mT + self.table))

    assert "norm.running_mean" in proved(Positions(), x(2, 4, 3)).maps
    free = proved(Added(), x(2, 4, 3))
    assert free.log10_symmetries == pytest.approx(
        math.log10(720)
    ) and "moves" in free.explain("table")
    state = Added().state_dict()
    pinned = free.pin_identical_buffers(state, state)
    assert not pinned.groups and "pinned" in pinned.explain("table")
