"""Pictures of geodesics: the way among outputs, the falling energy."""

from __future__ import annotations

import pytest
import torch

from lightning_rebasin.landscape import Geodesic, GeodesicLength
from lightning_rebasin.landscape.paths import Polygon

LENGTH = GeodesicLength((0.0, 0.5, 1.0), (0.02, 0.005), 0.02, 7)
CHAIN = Geodesic(
    Polygon(tuple({"w": torch.tensor([x])} for x in (0.0, 1.0, 3.0))),
    (0.5, 0.25, 0.125),
)


def test_lengths_are_drawn_as_they_add_up(tmp_path):
    figure = LENGTH.plot(tmp_path / "l.png", geodesic=LENGTH)
    way, _ = (
        line for line in figure.axes[0].lines if len(line.get_xdata()) == 3
    )
    assert list(way.get_ydata()) == pytest.approx([0.0, 0.4, 0.6])
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


def test_energies_over_the_steps(tmp_path):
    figure = CHAIN.plot(tmp_path / "c.png")
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.5, 0.25, 0.125]
