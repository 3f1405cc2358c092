"""What all pictures share."""

from __future__ import annotations

import pytest

from lightning_rebasin.errors import OutputError
from lightning_rebasin.plotting.style import cycle, new_figure, save

pytest.importorskip("matplotlib")


def test_colours_begin_again():
    assert len(set(cycle(7))) == 7
    assert cycle(9)[7:] == cycle(2)


def test_a_title_and_a_file(tmp_path):
    figure = new_figure((2, 2))
    assert save(figure, tmp_path / "x.pdf", "Title") is figure
    assert figure.get_suptitle() == "Title"
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(OutputError, match="nowhere"):
        save(figure, tmp_path / "nowhere" / "x.png", "")
