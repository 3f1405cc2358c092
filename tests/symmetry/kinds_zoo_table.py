"""Run the architecture zoo with all kinds: ``python tests/symmetry/kinds_zoo_table.py --output docs/zoo_kinds.md``.

Needs the zoo's packages (see its README) beside torch.  Every architecture runs in a process of its own with a time
limit, so that a crash or a hang costs one line.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from queue import Empty

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
]

from helpers import zoo  # noqa: E402  found through the path above
from helpers.kinds_zoo import KindsRow, judge_kinds  # noqa: E402

HEADER = (
    "| model | groups by kind | folded | untied it would have | error | infer s | permutations s | |\n"
    "|---|---|--:|---|--:|--:|--:|---|"
)
INTRODUCTION = """# The zoo, all kinds

Architectures of the acceptance zoo through `infer_spec(..., kinds="all")`: groups by kind (`number`: any number but 0
inside each unit), gains that the canonical gauge folds, what untying would allow where a tied weight stands in the way,
the largest relative error of the outputs in float64 under random elements of everything and in canonical gauge, and
seconds of the inference beside those of permutations only. A row is `ok` if the errors are at most 1e-9 and no axis
moves less than with permutations only. Made by `python tests/symmetry/kinds_zoo_table.py`, one thread on two CPU cores
that other programs used too.
"""
PACKAGES = {"tv": "torchvision", "timm": "timm", "hf": "transformers"}


def line(row: KindsRow) -> str:
    """One row of the Markdown table."""
    error = max(row.error, row.gauge)
    untied = listed(row.untied) if row.untied else ""
    return (
        f"| {row.name} | {listed(row.kinds)} | {row.folded} | {untied} | {error:.0e} | {row.seconds:.1f} "
        f"| {row.plain_seconds:.1f} | {row.failure or 'ok'} |"
    )


def listed(kinds: Mapping[str, int]) -> str:
    """Kinds with their numbers."""
    return ", ".join(f"{kind} {count}" for kind, count in kinds.items())


def _work(name: str, results: multiprocessing.Queue[KindsRow]) -> None:
    warnings.simplefilter("ignore")
    try:
        results.put(judge_kinds(name))
    except BaseException as error:  # noqa: BLE001  one failing architecture must not stop the table
        failure = f"{type(error).__name__}: {error}"[:300]
        results.put(KindsRow(name, failure=failure))


def run_one(name: str, limit: float) -> KindsRow:
    """Judge one architecture in a forked process."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[KindsRow] = context.Queue()
    process = context.Process(target=_work, args=(name, results))
    process.start()
    deadline = time.monotonic() + limit
    row = KindsRow(name, failure=f"no answer within {limit:.0f} s")
    while time.monotonic() < deadline:
        try:
            row = results.get(timeout=0.5)
            break
        except Empty:
            if not process.is_alive():
                code = process.exitcode
                row = KindsRow(
                    name, failure=f"the process died with code {code}"
                )
                break
    process.kill()
    process.join()
    return row


def summary(rows: list[KindsRow]) -> str:
    """How many hold, and how many have more than permutations."""
    right = sum(not row.failure for row in rows)
    beyond = sum(row.beyond and not row.failure for row in rows)
    return f"{right} of {len(rows)} architectures hold; {beyond} of them have a kind beyond permutation."


def main() -> int:
    """Run, print, and write; the exit status is the number of failures (at most 100)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tags", nargs="*", default=[])
    parser.add_argument(
        "--match", default="", help="only names that contain this"
    )
    parser.add_argument(
        "--names", nargs="*", default=[], help="these architectures"
    )
    parser.add_argument("--timeout", type=float, default=300.0)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    chosen = [n for n in zoo.names(*options.tags) if options.match in n]
    chosen = [n for n in chosen if n in options.names or not options.names]
    for family in {name.partition("/")[0] for name in chosen} & set(PACKAGES):
        # Imported once here, shared by the forks.
        importlib.import_module(PACKAGES[family])
    # What is compiled at the first inference is shared by the forks, too.
    judge_kinds("hand/MLP")
    rows = []
    print(HEADER, flush=True)
    for name in chosen:
        rows.append(run_one(name, options.timeout))
        print(line(rows[-1]), flush=True)
    print(summary(rows))
    if options.output:
        lines = [INTRODUCTION, summary(rows), "", HEADER, *map(line, rows)]
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return min(sum(bool(row.failure) for row in rows), 100)


if __name__ == "__main__":
    sys.exit(main())
