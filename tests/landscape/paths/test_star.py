import pytest
import torch

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.star import Star


def test_rays_lead_from_the_centre_to_each_model():
    centre = {"w": torch.tensor([1.0])}
    models = ({"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])})
    star = Star(centre, models)
    assert star.at(0, 0.0).anchor is centre
    assert star.at(1, 1.0).anchor is models[1]
    assert star.at(1, 0.5).state()["w"].tolist() == [0.0]


@pytest.mark.parametrize("ray", [-1, 2])
def test_a_ray_that_does_not_exist_is_refused(ray):
    state = {"w": torch.zeros(1)}
    with pytest.raises(ConfigurationError, match="the star has 2 models"):
        Star(state, (state, state)).at(ray, 0.5)
