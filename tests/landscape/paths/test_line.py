import torch

from lightning_rebasin.landscape.paths.line import Line


def test_the_ends_are_anchors_and_outside_is_extrapolation():
    a, b = {"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}
    line = Line(a, b)
    assert line.at(0.0).anchor is a
    assert line.at(1.0).anchor is b
    assert line.at(1.5).state()["w"].tolist() == [3.0]
