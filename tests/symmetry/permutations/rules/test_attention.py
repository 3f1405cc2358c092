"""Attention kernels agree with the steps they fuse, with as many heads for keys as for queries or fewer."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, noise
from torch import nn

from lightning_rebasin.symmetry.permutations.labels import Label, Part, fixed

KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


def heads(bench, number, dim=2, length=5):
    """A label (batch, heads, length, dim) with elements for heads and dims."""
    parts = (
        Part((0,), bench.store.fresh((number,))),
        Part((2,), bench.store.fresh((dim,))),
    )
    return Label(
        ((), (0,), (1,), (2,)), (number, length, dim), parts, frozenset({1})
    )


def test_queries_and_keys_meet_and_values_pass():
    bench = Bench()
    query, key, value = (heads(bench, 3) for _ in range(3))
    (result, log_sum) = bench.run(
        KERNEL, (1, 3, 5, 2), (1, 3, 5), query=query, key=key, value=value
    )
    # heads 0-2, 5-7, 10-12 are equal; so are the dims 3, 4 and 8, 9 of queries and keys; the value's 13, 14 pass
    assert bench.tables("equal") == [
        ("equal", [0, 1, 2], [5, 6, 7]),
        ("equal", [3, 4], [8, 9]),
        ("equal", [0, 1, 2], [10, 11, 12]),
    ]
    assert bench.tables("mark") == [("mark", [3, 4], [0, 0])]
    assert {i for part in result.parts for i in part.elements.ids.ravel()} == {
        0,
        1,
        2,
        13,
        14,
    }
    assert log_sum.pinned == {0, 1}


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_kernel_pins_the_steps(causal):
    bench = Bench()
    parts = (Part((1,), bench.store.fresh((5,))),)
    steps = Label(((), (0,), (1,), (2,)), (3, 5, 2), parts)
    bench.run(
        KERNEL,
        (1, 3, 5, 2),
        query=steps,
        key=steps,
        value=steps,
        is_causal=causal,
    )
    assert bench.pins == ({0, 1, 2, 3, 4} if causal else set())


@pytest.mark.parametrize("shape", [(5, 5), (1, 1, 5, 5), (1, 6, 5, 5)])
def test_a_mask_broadcasts_over_grouped_heads(shape):
    bench = Bench()
    query, key, value = heads(bench, 6), heads(bench, 2), heads(bench, 2)
    result = bench.run(
        KERNEL,
        (1, 6, 5, 2),
        query=query,
        key=key,
        value=value,
        attn_mask=fixed(shape),
    )
    assert result.shape == (1, 6, 5, 2)
    # only a mask with a row for every head tells the heads apart
    assert bool(bench.pins & set(range(6))) is (shape == (1, 6, 5, 5))


def test_grouped_queries_in_the_kernel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (
                nn.Linear(4, 12),
                nn.Linear(4, 6),
                nn.Linear(4, 6),
                nn.Linear(12, 2),
            )

        def forward(self, x):
            q, k, v = (
                f(x).unflatten(-1, (-1, 3)).transpose(1, 2)
                for f in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
            return self.o(y.transpose(1, 2).flatten(2))

    # 2 key heads, 2 query heads in each, 3 dims of q and k and 3 of v in each key head
    assert exact(Net(), noise(2, 5, 4)).log10_symmetries == pytest.approx(
        log10((2, 1), (2, 2), (3, 2), (3, 2))
    )


class FusedGroupedQueries(nn.Module):
    """One projection for 6 query heads, 2 key heads and 2 value heads of 4 units, laid out in three ways."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.i, self.qkv, self.o, self.out = (
            nn.Linear(5, 10),
            nn.Linear(10, 40),
            nn.Linear(24, 10),
            nn.Linear(10, 3),
        )

    def heads(self, z):
        if (
            self.layout == "interleaved"
        ):  # each key head behind its query heads
            z = z.unflatten(-1, (2, 5, 4))
            q = z[..., :3, :]
            k, v = (
                torch.broadcast_to(z[..., [n], :], q.shape) for n in (3, 4)
            )
            return (y.flatten(2, 3).transpose(1, 2) for y in (q, k, v))
        q, k, v = (
            y.unflatten(-1, (-1, 4)).transpose(1, 2)
            for y in z.split([24, 8, 8], -1)
        )
        return (
            (q, k, v)
            if self.layout == "kernel"
            else (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
        )

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
    spec = exact(FusedGroupedQueries(layout), noise(2, 5, 5))
    # model width, key heads, query heads inside each, query-key and value units inside each key head
    assert spec.log10_symmetries == pytest.approx(
        log10((10, 1), (2, 1), (3, 2), (4, 2), (4, 2))
    )
