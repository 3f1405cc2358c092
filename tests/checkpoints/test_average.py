"""Averages of aligned models, at once and tensor by tensor."""

import torch
from helpers.reports import MOVED

from lightning_rebasin.checkpoints.average import average_aligned, averaged
from lightning_rebasin.merging import average
from lightning_rebasin.merging.interpolate import normalised_weights


def test_a_weighted_mean_of_moved_models() -> None:
    """By hand: a quarter of the first and three quarters of the second, whose first group is turned by one."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {
            "one.weight": torch.randn(4, 3, generator=generator),
            "two.weight": torch.randn(6, 4, generator=generator),
            "beside": torch.randn(2, generator=generator),
        }
        for _ in range(2)
    )
    found = average_aligned(
        [a, b], [None, MOVED], [0.25, 0.75], progress=False
    )
    turned = [1, 2, 3, 0]
    expected = {
        "one.weight": a["one.weight"] / 4 + 0.75 * b["one.weight"][turned],
        "two.weight": a["two.weight"] / 4 + 0.75 * b["two.weight"][:, turned],
        "beside": a["beside"] / 4 + 0.75 * b["beside"],
    }
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_shares_are_taken_as_they_are() -> None:
    """Divided by their sum once more, which is not quite 1, they would give other numbers than :func:`average`."""
    shares = normalised_weights(6, None)
    assert sum(shares) != 1
    generator = torch.Generator().manual_seed(0)
    states = [
        {"w": torch.randn(50, dtype=torch.float64, generator=generator)}
        for _ in shares
    ]
    found = average_aligned(states, [None] * 6, shares)
    assert torch.equal(found["w"], average(states)["w"])


def test_weights_tied_in_one_model_only_are_averaged_apart() -> None:
    tied, one, two = torch.ones(2), torch.zeros(2), torch.full((2,), 4.0)
    states = [{"e": tied, "h": tied}, {"e": one, "h": two}]
    found = average_aligned(states, [None, None], [0.5, 0.5], progress=False)
    assert found["e"].tolist() == [0.5, 0.5]
    assert found["h"].tolist() == [2.5, 2.5]


def test_views_of_one_memory_are_not_taken_for_ties() -> None:
    """The same address, but the one is the other's first row."""
    whole = [torch.arange(4.0).reshape(2, 2), torch.ones(2, 2)]
    states = [{"all": w, "row": w[0], "turned": w.T} for w in whole]
    found = average_aligned(states, [None, None], [0.5, 0.5], progress=False)
    assert found["all"].tolist() == [[0.5, 1.0], [1.5, 2.0]]
    assert found["row"].tolist() == [0.5, 1.0]
    assert found["turned"].tolist() == [[0.5, 1.5], [1.0, 2.0]]


def test_what_is_asked_for_one_by_one_is_what_comes_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {
            "one.weight": torch.randn(4, 3, generator=generator),
            "two.weight": torch.randn(6, 4, generator=generator).bfloat16(),
            "beside": torch.arange(2),
        }
        for _ in range(2)
    )
    a["two.weight"] = a["two.weight"].half()
    whole = average_aligned([a, b], [None, MOVED], [0.25, 0.75])
    lazy = averaged([a, b], [None, MOVED], [0.25, 0.75])
    assert list(lazy) == list(whole) and len(lazy) == 3
    assert "one.weight" in lazy and "other" not in lazy
    for name, tensor in whole.items():
        assert torch.equal(lazy[name], tensor)
        # What a writer is told before anything is computed.
        assert lazy.plan[name].dtype == tensor.dtype
        assert lazy.plan[name].shape == tensor.shape
        assert lazy.plan[name].is_meta
