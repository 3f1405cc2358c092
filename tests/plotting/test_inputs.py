"""Pictures of paths between inputs: curves, and strips where inputs are images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_rebasin.errors import DataError
from lightning_rebasin.inputs import InputPath, InputPaths
from lightning_rebasin.plotting import plot_inputs


def paths(shape: tuple[int, ...], corners: int = 2) -> InputPaths:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(4):
        places = torch.rand(corners, *shape, generator=generator)
        rows.append(InputPath(places, (0.0, 0.5, 1.0), (0.1, 2.0, 0.3)))
    return InputPaths(tuple(rows), 0.5)


def test_images_have_a_strip_beside_each_curve(tmp_path: Path) -> None:
    found = paths((3, 8, 8), 3).plot(
        tmp_path / "paths.png", segment=paths((3, 8, 8))
    )
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    assert len(found.axes) == 6
    curve, strip = found.axes[:2]
    labels = [text.get_text() for text in curve.get_legend().get_texts()]
    assert labels == ["segment: max 2", "path: max 2"]
    # Two rows of nine images of eight pixels.
    assert strip.images[0].get_array().shape == (16, 72, 3)


def test_the_strip_goes_from_end_to_end() -> None:
    own = paths((1, 4, 4))
    figure = plot_inputs({"path": own}, pairs=[2])
    shown = torch.tensor(figure.axes[1].images[0].get_array().data)
    ends = torch.cat([*own[2].corners[:, 0]], 1)
    low, high = ends.min(), ends.max()
    assert torch.allclose(shown[:, :4], (ends[:, :4] - low) / (high - low))
    assert torch.allclose(shown[:, -4:], (ends[:, 4:] - low) / (high - low))


@pytest.mark.parametrize("shape", [(5,), (5, 8), (4, 8, 8)])
def test_other_inputs_have_curves_alone(shape: tuple[int, ...]) -> None:
    figure = plot_inputs({"path": paths(shape)}, pairs=[0, 3])
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylabel() == "loss, pair 3"


def test_a_corner_is_a_dot_on_the_curve() -> None:
    corners = torch.tensor([[0.0], [1.0], [2.0]])
    own = InputPath(corners, (0.0, 0.5, 1.0), (0.1, 0.7, 0.3))
    figure = plot_inputs({"path": InputPaths((own,))})
    line, dots = figure.axes[0].lines
    assert list(line.get_ydata()) == [0.1, 0.7, 0.3]
    assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([0.5], [0.7])


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(DataError, match="no path to draw"):
        plot_inputs({"path": InputPaths(())})
    with pytest.raises(DataError, match="'path' has no pair 9"):
        plot_inputs({"path": paths((2,))}, pairs=[9])
