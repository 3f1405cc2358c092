"""The picture of a star: rays on the left, lines between the ends on the right, at one scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_rebasin.landscape import BarrierCurve
from lightning_rebasin.plotting import plot_star


def curve(*row: float) -> BarrierCurve:
    return BarrierCurve((0.0, 0.5, 1.0), {"loss": row})


def test_rays_and_lines_have_their_barriers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rays = (curve(1, 2, 1), curve(1, 4, 1))
    figure = plot_star(
        rays, {(0, 1): curve(1, 9, 1)}, "loss", path=tmp_path / "star.png"
    )
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [
        [1, 2, 1],
        [1, 4, 1],
    ]
    assert list(right.lines[0].get_ydata()) == [1, 9, 1]
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["to end 0: barrier 1", "to end 1: barrier 3"]
    assert left.get_ylim() == right.get_ylim()
    assert (tmp_path / "star.png").read_bytes().startswith(b"\x89PNG")
