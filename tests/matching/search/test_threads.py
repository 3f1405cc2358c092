"""Short sweeps run on one thread, and the caller's thread count comes back."""

import pytest
import torch
from helpers.models import mlp

from lightning_rebasin import infer_spec, match_weights
from lightning_rebasin.matching.search import pair, threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_short_sweeps_have_one_thread_and_long_ones_those_of_the_caller():
    with threads.few_threads(threads.SMALL / 2):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads.few_threads(threads.SMALL):
        assert torch.get_num_threads() == 2


def test_the_count_comes_back_after_an_error():
    with pytest.raises(KeyError), threads.few_threads(1.0):
        raise KeyError("x")
    assert torch.get_num_threads() == 2


def test_matching_a_small_network_runs_on_one_thread(monkeypatch):
    seen = []
    visits = pair.CoordinateDescent.visits

    def watched(self, order):
        seen.append(torch.get_num_threads())
        return visits(self, order)

    monkeypatch.setattr(pair.CoordinateDescent, "visits", watched)
    a, b = mlp(3, 8, 2), mlp(3, 8, 2)
    spec = infer_spec(a, torch.zeros(1, 3))
    match_weights(spec, a.state_dict(), b.state_dict())
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
