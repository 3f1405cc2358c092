"""Join three trainings: a curve between two of them, a centre of all three.

Run:  python examples/curve_and_star.py        (needs scikit-learn: pip install "lightning-rebasin[demo]")

Prints two reports and writes them with their pictures to examples/results/curve_and_star: curve.*, star.*, plane.*.
The expected output is in examples/results/curve_and_star/printed.txt; numbers differ a little between machines.
"""

import copy
import logging
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_rebasin import CurveModule, StarModule, loss_plane
from lightning_rebasin.demo.data import digits

RESULTS = Path(__file__).parent / "results" / "curve_and_star"
SCORE = nn.CrossEntropyLoss()
DATA = digits()
TRAIN = DataLoader(DATA.train, batch_size=64, shuffle=True)
TEST = DataLoader(DATA.test, batch_size=256)


class Net(LightningModule):
    """A small perceptron, as anybody would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)
        )
        self.example_input_array = torch.zeros(1, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        """Cross-entropy of one batch."""
        return SCORE(self(batch[0]), batch[1])

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """What reports and pictures are made of."""
        logits = self(batch[0])
        self.log("loss", SCORE(logits, batch[1]))
        self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 3e-3)


def fit(module: LightningModule, epochs: int) -> LightningModule:
    """Train without a word."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, TRAIN)
    return module


def trained(seed: int) -> dict[str, Tensor]:
    """The weights of one training from its own start."""
    torch.manual_seed(seed)
    return copy.deepcopy(fit(Net(), 30).state_dict())


logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.simplefilter("ignore")
RESULTS.mkdir(parents=True, exist_ok=True)
ends = [trained(seed) for seed in range(3)]

curve = CurveModule(
    Net(),
    ends[:2],
    start="matched",
    optimizer=partial(torch.optim.Adam, lr=3e-3),
)
fit(curve, 20)
along = curve.report(TEST, points=21)
print(along)
along.plot(RESULTS / "curve.png")
along.to_json(RESULTS / "curve.json")
along.to_csv(RESULTS / "curve.csv")

corners = [*curve.ends.states, curve.bend_state_dict()]
plane = loss_plane(Net(), corners, TEST, curve=curve.path, points=31)
plane.plot(RESULTS / "plane.png", labels=["a", "b, matched", "bend"])
plane.to_json(RESULTS / "plane.json")

star = StarModule(Net(), ends)
fit(star, 30)
rays = star.report(TEST)
print(rays)
rays.plot(RESULTS / "star.png")
rays.to_json(RESULTS / "star.json")
rays.to_csv(RESULTS / "star.csv")
