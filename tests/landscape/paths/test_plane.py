"""The plane's coordinates against Gram–Schmidt done by hand on the joined vectors."""

import pytest
import torch

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.plane import Plane


def models(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def one():
        return {
            "w": torch.randn(4, 3, generator=generator, dtype=torch.float64),
            "b": torch.randn(4, generator=generator, dtype=torch.float64),
        }

    return one(), one(), one()


def vector(state):
    return torch.cat([tensor.flatten() for tensor in state.values()])


@pytest.mark.parametrize("seed", range(5))
def test_coordinates_recover_the_models(seed):
    three = models(seed)
    plane = Plane(three)
    for (x, y), model in zip(plane.coordinates, three, strict=True):
        assert torch.allclose(
            vector(plane.at(x, y).state()), vector(model), atol=1e-12
        )


def test_axes_are_orthonormal_and_distances_euclidean():
    plane = Plane(models())
    origin, right, up = (
        vector(plane.at(*xy).state()) for xy in ((0, 0), (1, 0), (0, 1))
    )
    u, v = right - origin, up - origin
    assert float(u @ u) == pytest.approx(1.0)
    assert float(v @ v) == pytest.approx(1.0)
    assert float(u @ v) == pytest.approx(0.0, abs=1e-12)
    assert sum(plane.at(3.0, -2.0).coefficients) == pytest.approx(1.0)


def test_models_on_a_line_or_too_few_are_refused():
    a, b, _ = models()
    middle = {name: (a[name] + b[name]) / 2 for name in a}
    with pytest.raises(ConfigurationError, match="lie on one line"):
        Plane((a, b, middle))
    with pytest.raises(ConfigurationError, match="are the same"):
        Plane((a, a, b))
    with pytest.raises(ConfigurationError, match="three models, got 2"):
        Plane((a, b))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.7, -30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_does_not_make_a_plane_of_a_line(share, dtype):
    a, b, _ = models(3)
    a = {name: t.to(dtype) for name, t in a.items()}
    b = {name: t.to(dtype) for name, t in b.items()}
    between = {name: torch.lerp(a[name], b[name], share) for name in a}
    with pytest.raises(ConfigurationError, match="lie on one line"):
        Plane((a, b, between))


def test_the_height_of_a_nearly_flat_triangle_keeps_its_digits():
    origin = {"w": torch.zeros(2, dtype=torch.float64)}
    right = {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    # 2 along the first axis, 1e-5 beside it.
    up = {"w": torch.tensor([1.2 - 0.8e-5, 1.6 + 0.6e-5], dtype=torch.float64)}
    along, height = Plane((origin, right, up)).coordinates[2]
    assert along == pytest.approx(2.0, rel=1e-12)
    assert height == pytest.approx(1e-5, rel=1e-9)


def test_integers_do_not_count():
    a, b, c = models()
    for i, state in enumerate((a, b, c)):
        state["count"] = torch.tensor(i)
    plane = Plane((a, b, c))
    assert plane.coordinates == Plane(models()).coordinates


def test_projection_gives_coordinates_back_and_the_distance_to_the_plane():
    torch.manual_seed(3)
    models = tuple(
        {"w": torch.randn(5, dtype=torch.float64)} for _ in range(3)
    )
    plane = Plane(models)
    x, y, distance = plane.project(plane.at(0.7, -1.3).state())
    assert (x, y) == pytest.approx((0.7, -1.3), abs=1e-12)
    assert distance < 1e-7
    # Off the plane along its normal, which Gram–Schmidt over five axes gives.
    basis = torch.linalg.qr(
        torch.stack(
            [models[1]["w"] - models[0]["w"], models[2]["w"] - models[0]["w"]]
        ).T
    ).Q
    off = torch.randn(5, dtype=torch.float64)
    off -= basis @ (basis.T @ off)
    state = {"w": plane.at(0.7, -1.3).state()["w"] + off}
    x, y, distance = plane.project(state)
    assert (x, y) == pytest.approx((0.7, -1.3), abs=1e-9)
    assert distance == pytest.approx(float(off.norm()), rel=1e-9)


def test_lengths_may_leave_tensors_out():
    a, b, c = (
        {"w": torch.tensor(v), "mean": torch.tensor(v) * 100}
        for v in ([0.0, 0.0], [3.0, 0.0], [1.0, 2.0])
    )
    plane = Plane((a, b, c), frozenset({"w"}))
    assert plane.coordinates == ((0.0, 0.0), (3.0, 0.0), (1.0, 2.0))
    # What is left out still moves.
    assert plane.at(3.0, 0.0).state()["mean"].tolist() == [300.0, 0.0]
