"""Match two LeNets that other people trained on MNIST, in every way.

    python examples/merge_module/mnist_lenet.py --data-dir path/to/mnist --ends a.pt b.pt

The expected output is in ``results/mnist-lenet.json`` and ``.png``.
"""

import argparse
from pathlib import Path

from compare import Learning, compare
from data import MNIST
from lightning.pytorch import seed_everything
from networks import LeNet
from torch import Tensor

from lightning_rebasin import read_checkpoint

HERE = Path(__file__).parent


def prepare(pixels: Tensor) -> Tensor:
    """The normalisation that the two networks were trained with."""
    return ((pixels - 0.1307) / 0.3081).reshape(-1, 1, 28, 28)


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
        "--ends", type=Path, nargs=2, required=True, help="the two checkpoints"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "results",
        help="where the numbers and the picture go",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=40,
        help="steps of the straight-through estimator",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=25,
        help="number of λ; 3 is quick and measures the midpoint",
    )
    args = parser.parse_args()
    a, b = (
        {
            f"network.{n}": t
            for n, t in read_checkpoint(path).state_dict.items()
        }
        for path in args.ends
    )
    seed_everything(0)
    data = MNIST(args.data_dir, batch_size=500, transform=prepare)
    compare(
        LeNet(),
        a,
        b,
        data,
        out=args.out,
        name="mnist-lenet",
        learning=Learning(1.0, args.steps, 10, 2),
        points=args.points,
    )


if __name__ == "__main__":
    main()
