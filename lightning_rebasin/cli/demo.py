"""``lightning-rebasin demo``: the main job on real data."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train two classifiers, watch the barrier between them, match, merge and report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Trains two classifiers from different seeds (the second one with both callbacks attached), matches the second "
        "to the first, merges them and writes merged.ckpt, barrier.png, barrier.csv and report.json.  "
        "Without --data-dir it runs on scikit-learn's digits in under 90 seconds."
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("rebasin-demo"),
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder with MNIST-like idx files: runs the paper's MNIST network, 784-512-512-512-10, instead",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="epochs per training (default: 40 for digits, 10 for idx files)",
    )
    parser.add_argument(
        "--width",
        type=int,
        help="units per hidden layer (default: 256 for digits, 512 for idx files)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the same seed gives the same result (default: %(default)s)",
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bars"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    from lightning_rebasin.demo.run import (
        DemoSettings,
        evaluate_merged,
        run_demo,
    )

    settings = DemoSettings(
        args.output, args.data_dir, args.epochs, args.width, args.seed
    )
    report = run_demo(settings, progress=not args.no_progress)
    tested = evaluate_merged(settings)
    before, after = report.objective
    print(
        f"\n{report.data}: two trainings, seeds {args.seed} and {args.seed + 1}\n"
    )
    print(report.table())
    print(
        f"\nThe network has 10^{report.symmetries:.0f} symmetries; the one found raises the similarity of the two from "
        f"{before:.1f} to {after:.1f} in {report.seconds['matching']:.2f} s "
        f"and leaves the function unchanged (relative error {report.equivalence_error:.0e})."
    )
    print(
        "trainer.test of the merged file: "
        + ", ".join(f"{name} {value:.4f}" for name, value in tested.items())
    )
    print(
        f"Wrote merged.ckpt, barrier.png, barrier.csv and report.json to {settings.output}"
    )
    return 0
