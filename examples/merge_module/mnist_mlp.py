"""Train the paper's MNIST perceptron (784-512-512-512-10) twice, then match the two in every way.

    python examples/merge_module/mnist_mlp.py --data-dir path/to/mnist

Some ten minutes on one CPU core.  The expected output is in ``results/mnist-mlp.json`` and ``.png``.
"""

import argparse
from pathlib import Path

import torch
from compare import Learning, compare
from data import MNIST
from lightning.pytorch import Trainer, seed_everything
from networks import MLP

HERE = Path(__file__).parent


def train(
    seed: int, data: MNIST, epochs: int, folder: Path
) -> dict[str, torch.Tensor]:
    """Train one network, or read the one that was trained before."""
    path = folder / f"mnist-mlp-seed{seed}-{epochs}epochs.pt"
    if not path.exists():
        seed_everything(seed)
        model = MLP()
        trainer = Trainer(
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return torch.load(path, weights_only=True)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder with the four idx .gz files of MNIST",
    )
    parser.add_argument(
        "--ends",
        type=Path,
        default=Path("ends"),
        help="where the two trained networks are kept",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "results",
        help="where the numbers and the picture go",
    )
    parser.add_argument(
        "--epochs", type=int, default=25, help="epochs of each training"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=220,
        help="steps of the straight-through estimator",
    )
    args = parser.parse_args()
    a, b = (
        train(seed, MNIST(args.data_dir), args.epochs, args.ends)
        for seed in (1, 2)
    )
    seed_everything(0)
    data = MNIST(args.data_dir, batch_size=1000)
    compare(
        MLP(),
        a,
        b,
        data,
        out=args.out,
        name="mnist-mlp",
        learning=Learning(10.0, args.steps, 5),
    )


if __name__ == "__main__":
    main()
