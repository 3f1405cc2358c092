"""Which alignment and which correction: found by measurement, on networks where the answer is known."""

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.align import Aligned
from lightning_rebasin.checkpoints.choose import choose, repeatable, runs_on
from lightning_rebasin.checkpoints.options import MergeOptions
from lightning_rebasin.symmetry import Permutation, infer_spec

X = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
DATA = list(X.split(32))
HALF = (0.5, 0.5)


def network(seed: int = 0) -> torch.nn.Module:
    return randomise(mlp(6, 12, 10, 3), seed).eval()


def planted() -> tuple[torch.nn.Module, Permutation]:
    net = network()
    spec = infer_spec(net, X[:4])
    return net, Permutation.random(spec, torch.Generator().manual_seed(1))


def test_a_planted_order_is_found_and_nothing_is_missing() -> None:
    net, hidden = planted()
    states = [net.state_dict(), hidden.apply(net.state_dict())]
    choice = choose(
        net, hidden.spec, states, DATA, options=MergeOptions(), shares=HALF
    )
    found = choice.aligned.permutations[1]
    assert found == hidden.inverse()
    scores = {trial.method: trial.scores for trial in choice.trials}
    # Activations find the same order as weights: it is tried once.
    assert list(scores) == ["average", "weight"]
    assert scores["weight"]["naive"] < 1e-8
    assert scores["average"]["naive"] > 0.1
    assert choice.criterion == "distance"


def test_networks_of_one_basin_are_left_where_they_are() -> None:
    net = network()
    near = {k: v + 0.001 for k, v in net.state_dict().items()}
    spec = infer_spec(net, X[:4])
    choice = choose(
        net,
        spec,
        [net.state_dict(), near],
        DATA,
        options=MergeOptions(),
        shares=HALF,
    )
    assert choice.method == "average"
    assert [trial.method for trial in choice.trials] == ["average"]


def test_the_winner_has_the_lowest_score_of_all() -> None:
    net = network()
    states = [net.state_dict(), network(1).state_dict()]
    choice = choose(
        net,
        infer_spec(net, X[:4]),
        states,
        DATA,
        options=MergeOptions(),
        shares=HALF,
    )
    scores = {
        (trial.method, correction): score
        for trial in choice.trials
        for correction, score in trial.scores.items()
    }
    best = min(scores, key=lambda key: scores[key])
    assert (choice.method, choice.correction) == best
    # Refitted are the two that come nearest with the cheap corrections.
    cheapest = {
        trial.method: min(
            score for what, score in trial.scores.items() if what != "refit"
        )
        for trial in choice.trials
    }
    assert len(cheapest) > 2
    refitted = {method for method, what in scores if what == "refit"}
    nearest = sorted(cheapest, key=lambda method: cheapest[method])
    assert refitted == set(nearest[:2])


@pytest.mark.parametrize("statistics", ["none", "repair"])
def test_a_forced_correction_wins_against_better_ones(statistics) -> None:
    net = network()
    states = [net.state_dict(), network(1).state_dict()]
    choice = choose(
        net,
        infer_spec(net, X[:4]),
        states,
        DATA,
        options=MergeOptions(statistics=statistics),
        shares=HALF,
    )
    wanted = {"none": "naive", "repair": "repair"}[statistics]
    assert choice.correction == wanted
    assert choice.refit is None


def test_a_loss_decides_instead_of_the_distance() -> None:
    net = network()
    states = [net.state_dict(), network(1).state_dict()]
    # The whole share is the first model's, which is what the loss asks for.
    target = net(X).detach()

    def loss(module: torch.nn.Module, batch: torch.Tensor) -> float:
        start = int((batch[0] == X).all(1).nonzero()[0])
        wanted = target[start : start + len(batch)]
        return float((module(batch) - wanted).square().mean())

    choice = choose(
        net,
        None,
        states,
        DATA,
        options=MergeOptions(method="average"),
        shares=(1.0, 0.0),
        loss=loss,
    )
    assert choice.criterion == "loss"
    assert choice.trials[0].scores["naive"] == pytest.approx(0, abs=1e-10)


def test_a_shuffling_loader_is_read_once() -> None:
    loader = DataLoader(TensorDataset(X), batch_size=32, shuffle=True)
    kept = repeatable(loader)
    first = torch.cat([batch[0] for batch in kept])
    again = torch.cat([batch[0] for batch in kept])
    assert torch.equal(first, again)
    in_order = DataLoader(TensorDataset(X), batch_size=32)
    assert repeatable(in_order) is in_order
    assert len(list(repeatable(iter(DATA)))) == 4


def test_networks_that_do_not_take_the_batches_are_noticed() -> None:
    assert runs_on(network(), DATA)
    assert not runs_on(network(), [{"image": X}])
    assert not runs_on(network(), [])


def test_nothing_is_better_than_what_it_is_made_of(tmp_path) -> None:
    """A merged file is exactly what won: run from the file it has the score that the report says."""
    net = BatchNormCNN(4)
    images = torch.randn(
        64, 3, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    paths = []
    for seed in range(2):
        path = tmp_path / f"{seed}.pt"
        torch.save(randomise(net, seed).state_dict(), path)
        paths.append(path)
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", module=net, data=list(images.split(16))
    )
    scores = {trial.method: trial.scores for trial in report.trials}
    assert report.statistics in ("reset", "repair", "refit")
    held_out = torch.cat([batch[-2:] for batch in images.split(16)])
    outputs = []
    for path in [*paths, tmp_path / "out.pt"]:
        net.load_state_dict(torch.load(path, weights_only=True))
        outputs.append(net.eval()(held_out).detach())
    first, second, merged = outputs
    wanted = (first + second) / 2
    spread = wanted.var(0, correction=0).sum()
    distance = (merged - wanted).square().mean(0).sum() / spread
    said = scores[report.method][report.statistics]
    assert float(distance) == pytest.approx(said, rel=1e-4)


def test_alignments_that_move_nothing_are_one() -> None:
    net, hidden = planted()
    identity = Permutation.identity(hidden.spec)
    from lightning_rebasin.checkpoints.choose import _same

    nothing = Aligned((None, None))
    assert _same(nothing, Aligned((None, identity)))
    assert not _same(nothing, Aligned((None, hidden)))
    assert _same(Aligned((None, hidden)), Aligned((None, hidden)))
    assert net is not None
