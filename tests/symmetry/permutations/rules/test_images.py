"""Operations on images: pixels stay, channels move."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, Between, noise, parts_of
from torch import nn


@pytest.mark.parametrize(("op", "shape", "out", "options", "moving"), [
    ("avg_pool2d", (3, 4, 4), (3, 2, 2), {"kernel_size": 2}, {0, 1, 2}),
    ("max_pool3d_with_indices", (3, 4, 4, 4), (3, 2, 2, 2), {"kernel_size": [2]}, {0, 1, 2}),
    ("upsample_linear1d", (2, 3, 4), (2, 3, 8), {}, {0, 1, 2, 3, 4}),
    # windows of one place: the columns 7 to 10 stay as they are
    ("avg_pool2d", (3, 4, 4), (3, 2, 4), {"kernel_size": [2, 1]}, {0, 1, 2, 7, 8, 9, 10}),
    # every other column only, or one more at both ends
    ("avg_pool2d", (3, 4, 4), (3, 2, 2), {"kernel_size": [2, 1], "stride": 2}, {0, 1, 2}),
    ("avg_pool2d", (3, 4, 4), (3, 2, 6), {"kernel_size": [2, 1], "padding": [0, 1]}, {0, 1, 2}),
])  # fmt: skip
def test_pooling_and_resizing_pin_the_dimensions_of_their_name(
    op, shape, out, options, moving
):
    bench = Bench()
    result = bench.run(op, out, self=bench.units(*shape), **options)
    assert bench.pins == set(range(sum(shape))) - moving
    assert {i for ids in parts_of(result).values() for i in ids} == moving


@pytest.mark.parametrize(("needed", "moving"), [
    ([0], {0, 1, 2, 7, 8, 9, 10}),
    ([0, 1], {0, 1, 2}),
])  # fmt: skip
def test_places_of_the_largest_values_count_through_the_whole_image(
    needed, moving
):
    bench = Bench()
    bench.run(
        "max_pool2d_with_indices",
        (3, 2, 4),
        (3, 2, 4),
        self=bench.units(3, 4, 4),
        kernel_size=[2, 1],
        needed=needed,
    )
    assert bench.pins == set(range(11)) - moving


def test_the_units_of_a_pooled_sequence_move():
    """As in the funnel transformer, whose queries are pooled and whose keys are not."""

    class Funnel(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 6)
            self.query, self.key = nn.Linear(6, 4), nn.Linear(6, 4)
            self.value, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x):
            stream = self.embed(x)
            pooled = F.avg_pool2d(stream[:, None], (2, 1), ceil_mode=True)
            queries, keys = self.query(pooled[:, 0]), self.key(stream)
            weights = (queries @ keys.mT).softmax(-1)
            return self.head(weights @ self.value(stream))

    spec = exact(Funnel(), noise(2, 5, 3))
    assert spec.log10_symmetries >= log10((6, 1), (4, 1), (5, 1)) - 1e-6


@pytest.mark.parametrize("argument", ["input", "self"])
def test_a_sampled_image_keeps_its_channels(argument):
    bench = Bench()
    image, grid = bench.units(1, 3, 4, 4), bench.units(1, 5, 6, 2)
    result = bench.run(
        "grid_sampler_2d" if argument == "input" else "cudnn_grid_sampler",
        (1, 3, 5, 6),
        **{argument: image},
        grid=grid,
    )
    # channels 0 to 2 and places 11 to 21 pass; pixels 3 to 10 and coordinates 22, 23 do not
    assert sorted(i for ids in parts_of(result).values() for i in ids) == [
        0,
        1,
        2,
        *range(11, 22),
    ]
    assert bench.pins == {*range(3, 11), 22, 23}


def test_a_grid_made_of_matrices_is_a_position():
    bench = Bench()
    result = bench.run(
        "affine_grid_generator", (2, 4, 4, 2), theta=bench.units(2, 2, 3)
    )
    assert (
        parts_of(result) == {(0,): [0, 1]}
        and result.pinned == {1, 2, 3}
        and bench.pins == {2, 3, 4, 5, 6}
    )


def test_patches_hold_the_positions_of_a_kernel_for_each_channel():
    bench = Bench()
    patches = bench.run("im2col", (1, 12, 9), self=bench.units(1, 3, 4, 4))
    assert (
        patches.dims == ((), (0, 1), (2,))
        and patches.sizes == (3, 4, 9)
        and patches.pinned == {1, 2}
    )
    assert parts_of(patches) == {(0,): [0, 1, 2]}
    image = bench.run("col2im", (1, 3, 4, 4), self=patches)
    assert image.shape == (1, 3, 4, 4) and parts_of(image) == {(0,): [0, 1, 2]}


@pytest.mark.parametrize(
    ("operation", "channels", "groups"),
    [
        (lambda h: F.pixel_shuffle(h, 2), 2, [(2, 1)]),
        (lambda h: F.pixel_unshuffle(h, 2), 32, [(8, 1)]),
        (lambda h: F.channel_shuffle(h, 2), 8, [(8, 1)]),
        (
            lambda h: F.channel_shuffle(F.group_norm(h, 2), 2),
            8,
            [(2, 1), (4, 2)],
        ),
        (
            lambda h: F.interpolate(
                F.max_pool2d(h, 2), scale_factor=2, mode="bilinear"
            ),
            8,
            [(8, 1)],
        ),
        (lambda h: F.fold(F.unfold(h, 2), h.shape[-2:], 2), 8, [(8, 1)]),
        (lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"), 8, [(8, 1)]),
    ],
)
def test_channels_of_an_image_move_along(operation, channels, groups):
    net = Between(nn.Conv2d(2, 8, 3), operation, nn.Conv2d(channels, 2, 1))
    assert (
        exact(net, noise(2, 2, 6, 6)).log10_symmetries >= log10(*groups) - 1e-6
    )


def test_a_sampled_network_is_exact():
    grid = (
        torch.rand(
            2,
            3,
            3,
            2,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        * 2
        - 1
    )
    net = Between(
        nn.Conv2d(2, 6, 3),
        lambda h: F.grid_sample(h, grid, align_corners=False),
        nn.Conv2d(6, 2, 1),
    )
    assert exact(net, noise(2, 2, 6, 6)).log10_symmetries == pytest.approx(
        log10((6, 1))
    )
