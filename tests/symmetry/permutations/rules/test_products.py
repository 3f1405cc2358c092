"""Families of rules: every network exact, with as many symmetries as there are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.models import randomise
from torch import nn

from lightning_rebasin.matching import match_weights
from lightning_rebasin.symmetry import Permutation, PermutationSpec, infer_spec


def x(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Between(nn.Module):
    """``after(operation(before(x)))`` with channels in dimension ``dim``."""

    def __init__(self, before, operation, after):
        super().__init__()
        self.before, self.operation, self.after = before, operation, after

    def forward(self, x):
        return self.after(self.operation(F.relu(self.before(x))))


def conv(dims, *args, transposed=False, **kwargs):
    kind = f"Conv{'Transpose' if transposed else ''}{dims}d"
    return getattr(nn, kind)(*args, **kwargs)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_every_kind(dims, transposed):
    net = nn.Sequential(
        conv(dims, 2, 4, 2, transposed=transposed),
        nn.ReLU(),
        conv(dims, 4, 6, 2, groups=2, transposed=transposed),
        nn.ReLU(),
        conv(dims, 6, 6, 2, groups=6, transposed=transposed),
        nn.ReLU(),
        conv(dims, 6, 2, 1),
    )
    spec = exact(net, x(2, 2, *[5] * dims))
    # two blocks of 2 channels in and 3 out, which swap together
    assert spec.log10_symmetries == pytest.approx(log10((2, 1), (2, 2), (3, 2)))


def test_group_norm_nests_and_follows():
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    assert exact(net, x(2, 2, 7, 7)).log10_symmetries == pytest.approx(log10((4, 1), (2, 4)))


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (lambda h: (h[:, :4] * torch.sigmoid(h[:, 4:])).repeat(1, 2), [(4, 1)]),
        (lambda h: F.glu(torch.cat([h, h.flip(1)], 1), 1), [(4, 0)]),
        (lambda h: torch.cat([h, -h], 1)[:, :8], [(8, 1)]),
        (lambda h: h.view(-1, 2, 4).softmax(-1).reshape(-1, 8), [(2, 1), (4, 2)]),
        (lambda h: h.view(-1, 2, 4).cumsum(1).reshape(-1, 8), [(4, 1)]),
        (lambda h: torch.stack([h[:, :4], h[:, 4:]], 2).flatten(1), [(4, 2)]),
        (lambda h: torch.cat([t + 1 for t in h.unbind(1)]).view(8, -1).T, [(8, 0)]),
        (lambda h: h.index_select(1, torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])), [(8, 1)]),
        (lambda h: F.pad(h[:, 2:6], (2, 2)), [(4, 1)]),
        (lambda h: h.sort(1).values, []),
        (lambda h: h * (h > h.mean(1, keepdim=True)), [(8, 1)]),
        (lambda h: h.clone().index_add_(0, torch.tensor([0, 2]), h[:2]), [(8, 1)]),
        (lambda h: torch.zeros_like(h).scatter_(1, torch.arange(8).expand(3, -1), h), []),
        (lambda h: torch.fft.fft(h, dim=1).real, []),
        (lambda h: F.normalize(h, dim=1) + h.logsumexp(1, keepdim=True), [(8, 1)]),
    ],
)
def test_operations_on_units(operation, groups):
    spec = exact(Between(nn.Linear(5, 8), operation, nn.Linear(8, 2)), x(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6


def test_writes_into_views():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

        def forward(self, x):
            buffer = x.new_zeros(2, x.shape[0], 8)
            buffer[0, :, :3] = self.a(x)
            rest = buffer[0][:, 3:]
            rest += self.b(x)
            return self.c(buffer[0].relu_())

    assert exact(Writes(), x(3, 4)).log10_symmetries == pytest.approx(log10((3, 1), (5, 1)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.o = kind(3, 5, num_layers=2), nn.Linear(5, 2)

        def forward(self, x):
            return self.o(self.r(x)[0])

    assert exact(Net(), x(4, 2, 3)).log10_symmetries == pytest.approx(log10((5, 2)))


class Stacked(nn.Module):
    """Attention whose heads are the first dimension of its parameters."""

    def __init__(self, d=6, h=3, k=2):
        super().__init__()
        self.i, self.o = nn.Linear(4, d), nn.Linear(d, 2)
        self.q, self.k, self.v = (nn.Parameter(torch.zeros(h, d, k)) for _ in range(3))
        self.w = nn.Parameter(torch.zeros(h, k, d))

    def forward(self, x):
        x = self.i(x)
        q, k, v = (torch.einsum("btd,hdk->bhtk", x, w) for w in (self.q, self.k, self.v))
        a = torch.einsum("bhtk,bhsk->bhts", q, k).tril().softmax(-1)
        return self.o(x + torch.einsum("bhts,bhsk,hkd->btd", a, v, self.w))


def test_stacked_head_parameters():
    assert exact(Stacked(), x(2, 4, 4)).log10_symmetries == pytest.approx(log10((6, 1), (3, 1), (2, 3), (2, 3)))


def test_stacked_experts_are_ordered_one_by_one():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(4, 5), nn.Linear(5, 2)
            self.up, self.bias = nn.Parameter(torch.zeros(3, 5, 4)), nn.Parameter(torch.zeros(3, 4))
            self.down = nn.Parameter(torch.zeros(3, 4, 5))

        def forward(self, x):
            x = self.a(x)
            for e in range(3):
                x = x + F.relu(x @ self.up[e] + self.bias[e]) @ self.down[e]
            return self.o(x)

    assert exact(Experts(), x(2, 4)).log10_symmetries == pytest.approx(log10((5, 1), (4, 3)))


def test_grouped_queries_in_the_kernel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = nn.Linear(4, 12), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 2)

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return self.o(y.transpose(1, 2).flatten(2))

    # 2 key heads, 2 query heads in each, 3 dims of q and k and 3 of v in each key head
    assert exact(Net(), x(2, 5, 4)).log10_symmetries == pytest.approx(log10((2, 1), (2, 2), (3, 2), (3, 2)))


def test_weight_standardised_grouped_convolution():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
            return F.conv2d(x, w.view_as(self.weight), self.bias, groups=self.groups)

    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), Standardised(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert exact(net, x(2, 2, 5, 5)).log10_symmetries == pytest.approx(log10((2, 1), (2, 2), (3, 2)))


def test_interleaved_writes_and_masked_writes():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x).clone()
            h[h < 0] = 0
            y = torch.empty_like(h)
            y[:, ::2], y[:, 1::2] = h[:, 1::2] * 2, h[:, ::2]
            return self.b(y)

    assert exact(Writes(), x(3, 4)).log10_symmetries == pytest.approx(log10((4, 2)))


def test_routing_between_capsules():
    class Capsules(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.w, self.o = nn.Linear(5, 12), nn.Parameter(torch.zeros(4, 3, 2, 3)), nn.Linear(6, 2)

        def forward(self, x):
            h = torch.einsum("bnd,nkjd->bnkj", self.i(x).view(-1, 4, 3), self.w)
            route = torch.zeros(h.shape[:3], dtype=h.dtype)
            for _ in range(2):
                v = torch.tanh((route.softmax(2)[..., None] * h).sum(1))
                route = route + (h * v[:, None]).sum(-1)
            return self.o(v.flatten(1))

    exact(Capsules(), x(3, 5))


def test_weights_mixed_from_several_convolutions():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.r, self.o = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Conv2d(8, 2, 1)
            self.w = nn.Parameter(torch.zeros(4, 8 * 6 * 9))

        def forward(self, x):
            h = F.relu(self.i(x))
            w = (self.r(h.mean((2, 3))).sigmoid() @ self.w).view(-1, 6, 3, 3)
            y = F.conv2d(h.reshape(1, -1, *h.shape[2:]), w, groups=len(x))
            return self.o(F.relu(y.view(len(x), 8, *y.shape[2:])))

    spec = exact(Conditional(), x(2, 3, 7, 7))
    assert spec.log10_symmetries == pytest.approx(log10((4, 1), (6, 1), (8, 1)))


class FusedGroupedQueries(nn.Module):
    """One projection for 6 query heads, 2 key heads and 2 value heads of 4 units, laid out in three ways."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.i, self.qkv, self.o, self.out = nn.Linear(5, 10), nn.Linear(10, 40), nn.Linear(24, 10), nn.Linear(10, 3)

    def heads(self, z):
        if self.layout == "interleaved":  # each key head behind its query heads
            z = z.unflatten(-1, (2, 5, 4))
            q = z[..., :3, :]
            k, v = (torch.broadcast_to(z[..., [n], :], q.shape) for n in (3, 4))
            return (y.flatten(2, 3).transpose(1, 2) for y in (q, k, v))
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in z.split([24, 8, 8], -1))
        return (q, k, v) if self.layout == "kernel" else (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))

    def forward(self, x):
        x = self.i(x)
        q, k, v = self.heads(self.qkv(x))
        if self.layout == "kernel":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = (q @ k.mT / 2).softmax(-1) @ v
        return self.out(x + self.o(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("layout", ["repeated", "kernel", "interleaved"])
def test_fused_projection_with_fewer_key_heads(layout):
    spec = exact(FusedGroupedQueries(layout), x(2, 5, 5))
    # model width, key heads, query heads inside each, query-key and value units inside each key head
    assert spec.log10_symmetries == pytest.approx(log10((10, 1), (2, 1), (3, 2), (4, 2), (4, 2)))


class Powers(nn.Module):
    """Products of the hidden units with one another, flattened, with the units themselves beside them."""

    def __init__(self, order=2, beside=False):
        super().__init__()
        self.order, self.beside = order, beside
        self.i, self.o = nn.Linear(4, 5), nn.Linear(5**order + 5 * beside, 3)

    def forward(self, x):
        h = z = torch.tanh(self.i(x))
        for _ in range(self.order - 1):
            z = (z[..., None] * h[:, None]).flatten(1)
        return self.o(torch.cat([z, h], 1) if self.beside else z)


@pytest.mark.parametrize("order", [2, 3])
def test_outer_product_with_itself(order):
    spec = exact(Powers(order), x(6, 4))
    assert [g.size for g in spec.groups.values()] == [5]
    assert len(spec.maps["o.weight"].sites[1]) == order and len(spec.maps["o.weight"].components) == order
    again = PermutationSpec.from_dict(spec.to_dict())
    assert again == spec


def test_outer_product_with_itself_is_matched():
    net = randomise(Powers())
    spec = infer_spec(net, x(6, 4).float())
    planted = Permutation.random(spec, torch.Generator().manual_seed(5))
    state = net.state_dict()
    assert match_weights(spec, state, planted.apply(state)).permutation == planted.inverse()


def test_gram_matrix_of_channels():
    class Texture(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.o = nn.Conv2d(3, 6, 3), nn.Linear(36, 2)

        def forward(self, x):
            f = self.c(x).relu().flatten(2)
            return self.o((f @ f.mT).flatten(1))

    assert [g.size for g in exact(Texture(), x(2, 3, 6, 6)).groups.values()] == [6]


def test_products_beside_the_units_themselves_are_pinned_or_exact():
    """A known limit: one axis on which a group acts twice in a part and once in another."""
    exact(Powers(beside=True), x(6, 4))


def test_flattened_image_beside_other_features():
    """Regression: flattening ordered pixels into an axis with channels pinned the channels as soon as it was joined."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.a, self.h, self.o = nn.Conv2d(3, 6, 3), nn.Linear(4, 5), nn.Linear(221, 7), nn.Linear(7, 2)

        def forward(self, image, table):
            z = torch.cat([self.c(image).relu().flatten(1), self.a(table).relu()], 1)
            return self.o(self.h(z).relu())

    spec = exact(Both(), x(2, 3, 8, 8), x(2, 4))
    assert spec.log10_symmetries == pytest.approx(log10((6, 1), (5, 1), (7, 1)))


def test_flattened_steps_joined_and_cut_again():
    """Position of the step stays, units of the steps move together, what is cut out is ordered."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.o = nn.Linear(3, 4), nn.Linear(14, 2)

        def forward(self, z):
            flat = F.pad(self.i(z).tanh().flatten(1), (1, 1))
            return self.o(flat[:, :14])

    spec = exact(Windows(), x(2, 4, 3))
    # of the last step only the first unit is read, which sets it apart
    assert spec.log10_symmetries == pytest.approx(log10((3, 1)))


def test_rows_of_a_relative_table_that_no_output_reads():
    """Relative to absolute positions by padding and reshaping: rows outside of the window's reach are free."""

    class Relative(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.rel = nn.Linear(5, 3), nn.Parameter(torch.zeros(11, 3))

        def forward(self, x):
            y = F.pad(self.q(x) @ self.rel.T, [0, 1]).flatten(1)
            return F.pad(y, [0, 7]).reshape(-1, 5, 11)[:, :4, 5:]

    spec = exact(Relative(), x(2, 4, 5))
    # 4 queries see 6 neighbours at relative positions −3 … 5: 9 rows of 11
    assert spec.log10_symmetries == pytest.approx(log10((3, 1), (2, 1)))
