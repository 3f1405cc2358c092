"""Run the whole architecture zoo and print the table: ``python tests/symmetry/zoo_table.py --output docs/zoo.md``.

Needs the zoo's packages (see its README) beside torch; works without Lightning.  Every architecture runs in a process
of its own with a time limit, so that a crash or a hang costs one line.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from queue import Empty

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
]

from helpers.zoo import Row, floors, judge, names  # noqa: E402  found through the path above

HEADER = (
    "| model | groups | log10 | floor | error | control | infer s | forward s | |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|---|"
)
INTRODUCTION = """# The zoo

Every architecture of the acceptance zoo (hand-written, torchvision, timm, Hugging Face) through `infer_spec`: how many
groups and symmetries (log10) were found against the known floor, the largest relative output error of a random
permutation of everything in float64, how much a single permuted axis changes the output (the control), and the time.
Made by one run of `python tests/symmetry/zoo_table.py --output docs/zoo.md`; the times are those of that run, with one
thread on two CPU cores that other programs used too, so they are upper bounds.
"""

REMARKS = """
The floor of two of them counts symmetries that act on no weight; both are exact:

- `timm/botnet26t_256`: 2 · (2 · log10 15! + log10 7!) = 55.9 are the zeros that the relative-position trick of its
  three attention layers pads, 15, 15 and 7 in each direction: 18089.8 − 55.9 = 18033.9. Reordering zeros that the
  forward pass makes changes nothing that a state dict holds. Of its 217 axes 192 move, exactly as many as the floor
  counts (`moved` in `floors.json`), each from end to end.
- `timm/halonet26t`: 2 · (2 · log10 15! + log10 19!) = 82.6 are the same padded zeros, 15, 15 and 19 in each direction:
  17462.2 − 82.6 = 17379.6. Of its 223 axes 204 move, as many as the floor counts. Six of these are the tables of
  relative positions, of whose 23 rows blocks of 8 (4) queries read 19 (15): the other 4 (8) are free,
  2 · (2 · log10 4! + log10 8!) = 14.7.
"""


def line(row: Row) -> str:
    """One row of the Markdown table."""
    return (
        f"| {row.name} | {row.groups} | {row.log10:.1f} | {row.floor:.1f} | {row.error:.1e} | {row.control:.1e} "
        f"| {row.seconds:.1f} | {row.forward_seconds:.2f} | {row.failure or 'ok'} |"
    )


def _work(name: str, results: multiprocessing.Queue[Row]) -> None:
    warnings.simplefilter("ignore")
    try:
        results.put(judge(name))
    except BaseException as error:  # noqa: BLE001  one failing architecture must not stop the table
        results.put(
            Row(
                name,
                floor=float(floors()[name]["log10"]),
                failure=f"{type(error).__name__}: {error}"[:300],
            )
        )


def run_one(name: str, limit: float) -> Row:
    """Judge one architecture in a forked process."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[Row] = context.Queue()
    process = context.Process(target=_work, args=(name, results))
    process.start()
    deadline = time.monotonic() + limit
    row = Row(
        name,
        floor=float(floors()[name]["log10"]),
        failure=f"no answer within {limit:.0f} s",
    )
    while time.monotonic() < deadline:
        try:
            row = results.get(timeout=0.5)
            break
        except Empty:
            if not process.is_alive():
                row = Row(
                    name,
                    floor=row.floor,
                    failure=f"the process died with code {process.exitcode}",
                )
                break
    process.kill()
    process.join()
    return row


def main() -> int:
    """Run, print, and write; the exit status is the number of failures (at most 100)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tags",
        nargs="*",
        default=[],
        help="only architectures with one of these tags",
    )
    parser.add_argument(
        "--match", default="", help="only names that contain this"
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds per architecture"
    )
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    chosen = [name for name in names(*options.tags) if options.match in name]
    families = {"tv": "torchvision", "timm": "timm", "hf": "transformers"}
    for package in {
        families[name.split("/")[0]]
        for name in chosen
        if name.split("/")[0] in families
    }:
        # Imported once here, shared by the forks.
        importlib.import_module(package)
    rows = []
    print(HEADER, flush=True)
    for name in chosen:
        rows.append(run_one(name, options.timeout))
        print(line(rows[-1]), flush=True)
    failures = sum(bool(row.failure) for row in rows)
    summary = f"{len(rows) - failures} of {len(rows)} architectures: exact, control moving, at or above the floor."
    print(summary)
    if options.output:
        text = "\n".join(
            [INTRODUCTION, summary, REMARKS, HEADER, *map(line, rows)]
        )
        options.output.write_text(text + "\n", encoding="utf-8")
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
