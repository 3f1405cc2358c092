"""Join three trainings: a curve between two of them, a centre of all three.

Run:  python examples/curve_and_star.py        (needs scikit-learn: pip install "lightning-rebasin[demo]")

Expected output (numbers differ a little between machines):

    ends                     0.073 0.090
    largest on the line      0.193
    largest on the curve     0.090 (started segment)
    largest on the curve     0.090 (started matched)
    ends     largest loss: line  over the center  length
      0   1             0.1935            0.112   2.165
      0   2              0.203            0.112   2.212
      1   2             0.2326            0.112   2.174
    end      barrier to the center
      0                0.01961
      1                0.01082
      2                0.01835
"""

import copy
import logging
import warnings
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_rebasin import CurveModule, StarModule, interpolate
from lightning_rebasin.demo.data import digits

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


def test_loss(state: dict[str, Tensor]) -> float:
    """Cross-entropy of these weights on the test images."""
    net = Net()
    net.load_state_dict(state)
    images, labels = DATA.test.tensors
    with torch.no_grad():
        return float(SCORE(net(images), labels))


logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.simplefilter("ignore")
ends = [trained(seed) for seed in range(3)]
a, b = ends[:2]
grid = [number / 20 for number in range(21)]
print(f"ends                     {test_loss(a):.3f} {test_loss(b):.3f}")
line = max(test_loss(interpolate(a, b, t)) for t in grid)
print(f"largest on the line      {line:.3f}")

adam = partial(torch.optim.Adam, lr=3e-3)
for start in ("segment", "matched"):
    curve = CurveModule(Net(), [a, b], start=start, optimizer=adam)
    fit(curve, 20)
    largest = max(test_loss(curve.state_dict_at(t)) for t in grid)
    print(f"largest on the curve     {largest:.3f} (started {start})")

star = StarModule(Net(), ends)
fit(star, 30)
print(star.report(TEST))
