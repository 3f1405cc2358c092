"""Train a classifier with LightningCLI and watch barriers, everything configured in ``train.yaml``.

Run it from this folder::

    python train.py fit --config train.yaml
    python train.py fit --config train.yaml --print_config      # everything that can be set
    python train.py fit --trainer.callbacks.help lightning_rebasin.LossBarrier

To compare a second run with this one step by step, set ``reference: runs/first/snapshots`` in a copy of the file, with
another seed and another version of the logger.
"""

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lightning_rebasin.demo.data import digits, loader
from lightning_rebasin.demo.model import Classifier


class Digits(LightningDataModule):
    """The 1,797 digits of scikit-learn, which come with the package.

    Args:
        batch_size: Samples per training batch.
        seed: Order of the training samples.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.data = digits()

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return loader(self.data.train, self.batch_size, seed=self.seed)

    def val_dataloader(self) -> DataLoader:
        """The held-out fifth."""
        return loader(self.data.test, 500)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits, save_config_kwargs={"overwrite": True})
