"""A star domain of MNIST LeNets: barriers from the centre to networks that it was not made for.

    python examples/landscape_star_lenet.py

Trains SOURCES + HELD_OUT LeNets from different starts and a centre of the sources, which are matched to it before every
epoch (Sonthalia et al., ICLR 2025).  Compares the barrier between two networks, matched by weights, with the barrier
between the centre and a held-out network matched to it.  Writes examples/results/landscape_star_lenet: results.json and
barriers.png; about eight minutes on one core.
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import combinations
from statistics import mean

import torch
from landscape_common import (
    RESULTS,
    Classifier,
    LeNet,
    State,
    add_rows,
    begin,
    cosine,
    fit,
    kept,
    kept_curve,
    loader,
    mnist_images,
)

from lightning_rebasin import (
    StarModule,
    infer_spec,
    match_weights,
    measure_barrier,
)
from lightning_rebasin.landscape import BarrierCurve
from lightning_rebasin.plotting import plot_barriers

FOLDER = RESULTS / "landscape_star_lenet"
SOURCES, HELD_OUT = (0, 1, 2), (3, 4)
IMAGES, EPOCHS, STAR_EPOCHS, BATCH, POINTS = 10000, 4, 6, 64, 7


def network() -> Classifier:
    """Two convolutions, two linear layers."""
    module = Classifier(LeNet(), schedule=cosine)
    module.example_input_array = torch.zeros(2, 1, 28, 28)
    return module


TRAIN = mnist_images("train", IMAGES, flat=False)
TEST = mnist_images("test", 4000, flat=False)
SPEC = infer_spec(network())


def trained(seed: int) -> State:
    """Weights of one training."""
    torch.manual_seed(seed)
    module = network()
    fit(module, loader(*TRAIN, BATCH, shuffle=True), max_epochs=EPOCHS)
    return copy.deepcopy(module.state_dict())


def centre(ends: list[State]) -> State:
    """The centre of the sources."""
    torch.manual_seed(0)
    star = StarModule(
        network(),
        ends,
        match="epoch",
        ts_per_step=1,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.ExponentialLR, gamma=0.6
        ),
    )
    batches = loader(*TRAIN, BATCH, shuffle=True)
    fit(star, batches, max_epochs=STAR_EPOCHS)
    return star.center_state_dict()


def between(a: State, b: State) -> BarrierCurve:
    """Test loss and accuracy from one network to another that is matched to it."""
    moved = match_weights(SPEC, a, b, seed=0).transform.apply(b)
    test = loader(*TEST, 1000)
    return measure_barrier(network(), a, moved, test, points=POINTS)


def main() -> None:
    """Train, measure, write."""
    begin()
    states = {}
    for seed in (*SOURCES, *HELD_OUT):
        states[seed] = kept(f"lenet-{seed}", lambda s=seed: trained(s))
        print("trained", seed, flush=True)
    sources = [states[seed] for seed in SOURCES]
    middle = kept("lenet-centre", lambda: centre(sources))
    pairs = {
        f"{i}-{j}": kept_curve(
            f"lenet-{i}-{j}",
            lambda a=states[i], b=states[j]: between(a, b),
        )
        for i, j in combinations(states, 2)
    }
    rays = {
        seed: kept_curve(
            f"lenet-centre-{seed}", lambda b=state: between(middle, b)
        )
        for seed, state in states.items()
    }
    heights: dict[str, dict[str, float]] = {}
    for metric in ("loss", "accuracy"):
        heights[metric] = {
            "pair": mean(c.height(metric) for c in pairs.values()),
            "centre to source": mean(rays[s].height(metric) for s in SOURCES),
            "centre to held-out": mean(
                rays[s].height(metric) for s in HELD_OUT
            ),
        }
    rows = {
        "test barriers": heights,
        "centre": {m: rays[0].values[m][0] for m in heights},
        "pairs": {name: c.height("loss") for name, c in pairs.items()},
        "rays": {s: c.height("loss") for s, c in rays.items()},
        "seeds": {"sources": SOURCES, "held out": HELD_OUT},
    }
    add_rows(FOLDER / "results.json", rows)
    print(heights)
    drawn = {
        "pair 3-4": pairs["3-4"],
        "centre to 3": rays[3],
        "centre to 4": rays[4],
    }
    plot_barriers(drawn, path=FOLDER / "barriers.png")


if __name__ == "__main__":
    main()
