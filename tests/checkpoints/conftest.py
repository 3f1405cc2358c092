from pathlib import Path

import pytest
import torch
from helpers.checkpoint_files import Planted, X, build
from helpers.models import mlp, randomise
from torch import Tensor

from lightning_rebasin.symmetry import Permutation, infer_spec


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """A network, and the same network in another order: matching must find it again."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build()
    randomise(net)
    spec = infer_spec(net, X)
    hidden = Permutation.random(spec, torch.Generator().manual_seed(1))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    torch.save(hidden.apply(net.state_dict()), tmp_path / "b.pt")
    return Planted(net, spec, hidden)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The weights of a small network."""
    return {name: t.clone() for name, t in mlp(3, 4, 2).state_dict().items()}
