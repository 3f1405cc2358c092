"""A star domain of MNIST LeNets: barriers from the centre to networks that it was not made for.

    python examples/landscape_star_lenet.py

Sources are one LeNet of the shared data and two trained here; a centre of them is learned, to which they are matched
before every epoch (Sonthalia et al., ICLR 2025).  The other shared LeNet is held out.  Compares the barrier between two
networks, matched by weights, with the barrier between the centre and the held-out network matched to it.  Writes
results.json and barriers.png to examples/results/landscape_star_lenet; two minutes on an idle core.
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
    load_weights,
    loader,
    mnist_images,
    shared_path,
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
SOURCES, HELD_OUT = ("a", 0, 1), ("b",)
IMAGES, EPOCHS, STAR_EPOCHS, BATCH, POINTS = 6000, 2, 3, 64, 5


def network() -> Classifier:
    """Two convolutions, two linear layers."""
    module = Classifier(LeNet(), schedule=cosine)
    module.example_input_array = torch.zeros(2, 1, 28, 28)
    return module


TRAIN = mnist_images("train", IMAGES, flat=False)
TEST = mnist_images("test", 1000, flat=False)
SPEC = infer_spec(network())


def trained(seed: int) -> State:
    """Weights of one training."""
    torch.manual_seed(seed)
    module = network()
    fit(module, loader(*TRAIN, BATCH, shuffle=True), max_epochs=EPOCHS)
    return copy.deepcopy(module.state_dict())


def shared(name: str) -> State:
    """Weights that other people trained."""
    module = network()
    path = shared_path(f"data/checkpoints/mnist-lenet/{name}.pt")
    module.network.load_state_dict(load_weights(path))
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
    for name in (*SOURCES, *HELD_OUT):
        if isinstance(name, str):
            states[name] = shared(name)
        else:
            states[name] = kept(f"lenet-{name}", lambda s=name: trained(s))
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
            "pair with a held-out one": mean(
                c.height(metric)
                for name, c in pairs.items()
                if set(name.split("-")) & set(HELD_OUT)
            ),
            "centre to source": mean(rays[s].height(metric) for s in SOURCES),
            "centre to held-out": mean(
                rays[s].height(metric) for s in HELD_OUT
            ),
        }
    rows = {
        "test barriers": heights,
        "centre": {m: rays["a"].values[m][0] for m in heights},
        "pairs": {name: c.height("loss") for name, c in pairs.items()},
        "rays": {s: c.height("loss") for s, c in rays.items()},
        "seeds": {"sources": SOURCES, "held out": HELD_OUT},
    }
    add_rows(FOLDER / "results.json", rows)
    print(heights)
    drawn = {
        "pair a-b": pairs["a-b"],
        "centre to b": rays["b"],
    }
    plot_barriers(drawn, path=FOLDER / "barriers.png")


if __name__ == "__main__":
    main()
