"""Cases that broke first versions of the inference, judged by functional equality and by the number of symmetries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from torch import nn

from lightning_rebasin.errors import TraceError, UntracedWarning
from lightning_rebasin.symmetry.infer import infer_spec, infer_spec_many


def x(*shape, seed=1):
    return torch.randn(
        *shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


class FusedAttention(nn.Module):
    """q, k and v from one matrix; optionally rotary positions, a norm of q and k, fewer key heads."""

    def __init__(self, dim=12, heads=3, kv_heads=3, rotary=False, norm=False):
        super().__init__()
        self.heads, self.kv, self.size, self.rotary = (
            heads,
            kv_heads,
            dim // heads,
            rotary,
        )
        self.i = nn.Linear(5, dim)
        self.qkv = nn.Linear(dim, self.size * (heads + 2 * kv_heads))
        self.norm = nn.LayerNorm(self.size) if norm else nn.Identity()
        self.o, self.out = nn.Linear(dim, dim), nn.Linear(dim, 4)

    def turn(self, x):
        if not self.rotary:
            return x
        angle = torch.arange(x.shape[2], dtype=x.dtype)[
            :, None
        ] / 10 ** torch.arange(self.size // 2)
        cos, sin = (
            f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin)
        )
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x):
        x = self.i(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).split(
            [self.size * self.heads, self.size * self.kv, self.size * self.kv],
            -1,
        )
        q, k, v = (
            y.view(b, t, -1, self.size).transpose(1, 2) for y in (q, k, v)
        )
        q, k = self.turn(self.norm(q)), self.turn(self.norm(k))
        k, v = (y.repeat_interleave(self.heads // self.kv, 1) for y in (k, v))
        return self.out(
            x
            + self.o(
                F.scaled_dot_product_attention(q, k, v)
                .transpose(1, 2)
                .reshape(b, t, -1)
            )
        )


def test_fused_qkv_puts_two_elements_of_one_axis_into_one_class():
    spec = exact(FusedAttention(), x(2, 6, 5))
    # residual 12; 3 heads; inside each head 4 dims of q and k together, 4 of v and o
    assert spec.log10_symmetries == pytest.approx(
        log10((12, 1), (3, 1), (4, 6))
    )
    heads = [g for g in spec.groups.values() if g.size == 3]
    assert len(heads) == 1
    assert {g.shape for g in spec.groups.values() if g.parent == heads[0]} == {
        (3, 4)
    }


def test_norm_of_heads_ties_the_dims_of_all_heads():
    spec = exact(FusedAttention(norm=True), x(2, 6, 5))
    assert spec.log10_symmetries == pytest.approx(
        log10((12, 1), (3, 1), (4, 1), (4, 3))
    )


def test_rotary_positions_pin_the_dims_of_q_and_k_but_not_the_heads():
    spec = exact(FusedAttention(rotary=True), x(2, 6, 5))
    assert spec.log10_symmetries == pytest.approx(
        log10((12, 1), (3, 1), (4, 3))
    )


def test_grouped_queries_nest_in_key_heads():
    spec = exact(
        FusedAttention(dim=16, heads=4, kv_heads=2, rotary=True), x(2, 6, 5)
    )
    # 2 key heads, 2 queries inside each, 4 dims of v inside each key head
    assert spec.log10_symmetries == pytest.approx(
        log10((16, 1), (2, 1), (2, 2), (4, 2))
    )


def test_position_marks_are_per_relation():
    """Conv → flatten → linear: channel 1 at place 2 is not channel 2 at place 1."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    )
    spec = exact(net, x(2, 1, 4, 4))
    assert [g.size for g in spec.groups.values()] == [3, 6]
    component = next(
        c for c in spec.maps["3.weight"].components if c.group == "0"
    )
    assert component.index.shape == (3, 9) or component.sites != (1,)


class Sliced(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.a(x)
        if self.mode == "dead":
            y[:, :3].sum()
        if self.mode == "one":
            return self.b(F.relu(y)) * y[:, 5:6]
        if self.mode == "some":
            return self.b(F.relu(y)) * y[:, :3]
        return self.b(F.relu(y))


@pytest.mark.parametrize(
    ("mode", "sizes"), [("dead", [8]), ("one", [7]), ("some", [5])]
)
def test_slices_mark_only_what_is_used(mode, sizes):
    """A slice of size 1 still marks its element; one that nothing uses constrains nothing."""
    assert [
        g.size for g in exact(Sliced(mode), x(3, 4)).groups.values()
    ] == sizes


class Outputs(dict):
    """In the style of Hugging Face: predictions besides hidden states and caches."""

    def to_tuple(self):
        return tuple(self.values())


class Verbose(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.a(x))
        return Outputs(logits=self.b(h), hidden_states=(h,), past_key_values=h)


def test_unused_outputs_cost_nothing():
    assert [
        g.size
        for g in infer_spec(Verbose(), torch.zeros(2, 4)).groups.values()
    ] == [8]


def test_cyclic_copies_are_equalities():
    """Rolling an axis onto itself puts all its elements into one class: nothing moves, and nothing breaks."""

    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (
                nn.Linear(4, 6),
                nn.Linear(6, 5),
                nn.Linear(5, 2),
            )

        def forward(self, x):
            y = self.a(x)
            return self.c(F.relu(self.b(y * y.roll(1, -1))))

    assert [g.size for g in exact(Rolled(), x(3, 4)).groups.values()] == [5]


def test_as_strided_on_an_unchanged_shape_is_the_identity():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            y = self.a(x)
            return self.b(F.relu(y.as_strided(y.shape, y.stride())))

    assert [g.size for g in exact(Strided(), x(3, 4)).groups.values()] == [6]


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.left, self.right = (
            nn.Linear(4, 6),
            nn.Linear(6, 2),
            nn.Linear(6, 2),
        )

    def forward(self, x, right=False):
        h = F.relu(self.a(x))
        return self.right(h) if right else self.left(h)


def test_branch_not_taken_is_pinned_and_reported():
    with pytest.warns(UntracedWarning, match=r"right\."):
        spec = infer_spec(Branching(), torch.zeros(2, 4))
    assert "right.weight" not in spec.maps
    assert any("right.weight" in note for note in spec.notes)


def test_several_examples_give_one_spec_for_all_branches():
    module = Branching()
    examples = [((x(2, 4),), {}), ((x(2, 4),), {"right": True})]
    spec = infer_spec_many(module.double(), examples)
    assert spec.tensors_of("a") == (
        "a.weight",
        "a.bias",
        "left.weight",
        "right.weight",
    )
    assert not spec.notes
    for _, kwargs in examples:
        exact(module, x(2, 4), spec=spec, **kwargs)


def test_pin_on_request():
    net = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    spec = infer_spec_many(net, [torch.zeros(1, 3)], pin=["0.bias"])
    assert [g.size for g in spec.groups.values()] == [4]
    with pytest.raises(TraceError, match="no such tensor"):
        infer_spec_many(net, [torch.zeros(1, 3)], pin=["7.bias"])


class Sinusoidal(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Linear(4, 6),
            nn.Linear(6, 7),
            nn.Linear(7, 2),
        )
        self.register_buffer("table", torch.arange(30.0).reshape(5, 6).sin())

    def forward(self, x):
        return self.c(F.relu(self.b(self.a(x) + self.table)))


def test_persistent_tables_are_pinned_where_shared_and_statistics_move():
    free = exact(Sinusoidal(), x(2, 5, 4))
    assert "table" in free.maps
    spec = free.pin_identical_buffers(
        Sinusoidal().state_dict(), Sinusoidal().state_dict()
    )
    assert "table" not in spec.maps
    assert [g.size for g in spec.groups.values()] == [7]
    spec = exact(
        nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 2, 3),
        ),
        x(2, 2, 7, 7),
    )
    assert {"1.running_mean", "1.running_var"} <= set(spec.maps)
    assert spec.tensors["1.running_mean"].kind == "buffer"


def test_operation_without_a_rule_is_pinned_and_reported():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.linalg.matrix_exp(h))

    with pytest.warns(UntracedWarning, match="has no rule"):
        spec = exact(Odd(), x(4, 4))
    assert not spec.groups


def test_tied_weights_are_aliases():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.f, self.o = (
                nn.Embedding(9, 6),
                nn.Linear(6, 6),
                nn.Linear(6, 9, bias=False),
            )
            self.o.weight = self.e.weight

        def forward(self, i):
            return self.o(torch.tanh(self.f(self.e(i))))

    spec = exact(Tied(), torch.tensor([[1, 2, 3], [4, 8, 0]]))
    assert dict(spec.aliases) == {"o.weight": "e.weight"}
    # the table meets the input of f and its output at once: all three axes are one group
    assert [g.size for g in spec.groups.values()] == [6]


def test_reasons_name_the_operation_and_the_submodule():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    reasons = {
        (p.tensor, p.dim): p
        for p in infer_spec(net, torch.zeros(1, 3, 8, 8)).pinned
    }
    assert reasons["0.weight", 2].reason == "position in the kernel"
    assert reasons["0.weight", 2].where == "aten.convolution in 0"
    assert reasons["2.weight", 0].reason == "it is an output"
    assert reasons["0.weight", 1].pinned == 3
