import json
from pathlib import Path

import pytest
import torch
from helpers.reports import MOVED, SPEC, match
from torch import Tensor

from lightning_rebasin.checkpoints.align import Aligned
from lightning_rebasin.checkpoints.provenance import cosines, provenance
from lightning_rebasin.checkpoints.report import InputFile
from lightning_rebasin.symmetry import Permutation, PermutationSpec
from lightning_rebasin.version import __version__

FILES = [
    InputFile(Path("/home/me/secret/a.pt"), "aa", "lightning", 0.75),
    InputFile(Path("/home/me/secret/b.pt"), "bb", "torch", 0.25),
]
PLAIN = Aligned((None, None))


def test_the_history_of_an_average() -> None:
    found = provenance(FILES, "average", "none", PLAIN, SPEC)
    a = {"name": "a.pt", "sha256": "aa", "format": "lightning", "weight": 0.75}
    b = {"name": "b.pt", "sha256": "bb", "format": "torch", "weight": 0.25}
    # Nothing was permuted, so that a spec would be of no use; folders are nobody's business.
    assert found == {
        "version": __version__,
        "method": "average",
        "statistics": "none",
        "inputs": [a, b],
    }


def test_a_matching_can_be_repeated_from_its_history(tmp_path: Path) -> None:
    aligned = Aligned((None, MOVED), (match(10.0),))
    found = provenance(FILES, "weight", "repair", aligned, SPEC)
    torch.save(found, tmp_path / "history.pt")
    back = torch.load(tmp_path / "history.pt", weights_only=True)
    spec = PermutationSpec.from_dict(json.loads(back["spec"]))
    assert back["permutations"][0] is None
    assert Permutation(spec, back["permutations"][1]) == MOVED
    assert back["objectives"] == [[0.0, 10.0]]


def test_a_cosine_is_that_of_all_matrices_together() -> None:
    """Brute force: one long vector per model."""
    generator = torch.Generator().manual_seed(0)
    states = []
    for _ in range(3):
        one = torch.randn(4, 3, generator=generator)
        two = 5 * torch.randn(6, 4, generator=generator)
        states.append({"one.weight": one, "two.weight": two})
    found = cosines(states, Aligned((None, None, MOVED)))
    moved = MOVED.apply(states[2])

    def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        x, y = (torch.cat([t.flatten() for t in s.values()]) for s in (a, b))
        return float(torch.cosine_similarity(x.double(), y.double(), dim=0))

    first = cosine(states[0], states[1])
    expected = [(first, first)]
    before, after = cosine(states[0], states[2]), cosine(states[0], moved)
    expected.append((before, after))
    assert found == [pytest.approx(pair) for pair in expected]
    assert before != pytest.approx(after)


def test_only_weights_are_compared() -> None:
    """Gains, statistics and counters are alike in any two networks."""
    alike = {
        "norm.weight": torch.ones(2),
        "norm.running_mean": torch.ones(2),
        "norm.running_var": torch.ones(2, 2),
        "norm.num_batches_tracked": torch.tensor(7),
        "mask": torch.ones(2, 2, dtype=torch.bool),
    }
    a = {"w": torch.tensor([[3.0, 4.0]]), **alike}
    b = {"w": torch.tensor([[4.0, -3.0]]), **alike}
    assert cosines([a, b], PLAIN) == [(0.0, 0.0)]


def test_a_network_of_vectors_is_compared_by_them() -> None:
    a = {"scale": torch.tensor([3.0, 4.0])}
    b = {"scale": torch.tensor([4.0, 3.0])}
    assert cosines([a, b], PLAIN) == [pytest.approx((24 / 25, 24 / 25))]


def test_weights_of_zeros_are_like_nothing() -> None:
    zero = {"w": torch.zeros(2, 2)}
    assert cosines([zero, {"w": torch.ones(2, 2)}], PLAIN) == [(0.0, 0.0)]


def test_half_precision_does_not_overflow() -> None:
    large = {"w": torch.full((100, 100), 6e4, dtype=torch.half)}
    assert cosines([large, large], PLAIN) == [pytest.approx((1.0, 1.0))]
