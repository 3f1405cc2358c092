"""Large files: memory stays small, progress is shown, and a kill at any moment leaves no broken output."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_rebasin.symmetry import Permutation, PermutationSpec

MEBIBYTE = 2**20


def make(folder, width, layers):
    """Two checkpoints of a chain of square layers, the second one permuted and disturbed, and their spec."""
    names = [f"layer{i}.weight" for i in range(layers)]
    table = {
        name: (f"h{i}" if i < layers - 1 else None, f"h{i - 1}" if i else None)
        for i, name in enumerate(names)
    }
    spec = PermutationSpec.from_table(
        table, dict.fromkeys(names, (width, width))
    )
    g = torch.Generator().manual_seed(0)
    a = {name: torch.randn(width, width, generator=g) for name in names}
    torch.save(a, folder / "a.pt")
    moved = Permutation.random(spec, g).apply(a)
    del a
    for tensor in moved.values():
        tensor.add_(torch.randn(width, width, generator=g), alpha=0.3)
    torch.save(moved, folder / "b.pt")
    spec.save(folder / "spec.json")


def command(folder, *extra, large=None):
    """The merge as a program of its own; ``large`` is from how many bytes on a model counts as large."""
    program = "import sys; from lightning_rebasin.cli.main import main; "
    if large is not None:
        program += f"from lightning_rebasin.matching.search import pair; pair.LARGE = {large}; "
    program += "sys.exit(main(sys.argv[1:]))"
    return [
        sys.executable,
        "-c",
        program,
        "merge",
        "a.pt",
        "b.pt",
        "-o",
        "out.pt",
        *(() if "--module" in extra else ("--spec", "spec.json")),
        "--force",
        *extra,
    ]


def memory(pid):
    """Anonymous and file-backed resident memory in MiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    found = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", status))
    return int(found.get("RssAnon", 0)) / 1024, int(
        found.get("RssFile", 0)
    ) / 1024


def watched(folder, *extra, large=None):
    """Run the merge; its highest anonymous and total memory in MiB, and what it printed."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command(folder, *extra, large=large),
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        anonymous = total = 0.0
        while process.poll() is None:
            private, shared = memory(process.pid)
            anonymous, total = (
                max(anonymous, private),
                max(total, private + shared),
            )
            time.sleep(0.02)
    assert process.returncode == 0, (folder / "log").read_text()
    return anonymous, total, (folder / "log").read_text()


def baseline(folder):
    """Memory of the program with the libraries but no model."""
    code = "import lightning_rebasin.checkpoints, sys; print('up', flush=True); sys.stdin.read()"
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, **pipes
    )
    process.stdout.readline()
    private, _ = memory(process.pid)
    process.communicate()
    return private


def check(folder, method, size, large=None):
    anonymous, total, log = watched(folder, "--method", method, large=large)
    beside = anonymous - baseline(folder)
    print(
        f"MiB: model {size:.0f}, beside the libraries {beside:.0f}, all with mapped files {total:.0f}"
    )
    steps = (
        ("reading", "merging")
        if method == "average"
        else ("reading", "weight matching", "merging")
    )
    assert all(step in log for step in steps)
    assert (folder / "out.pt").stat().st_size / MEBIBYTE > 0.99 * size
    assert beside < 3 * size


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("method", ["average", "weight"])
def test_two_files_of_500_megabytes_need_less_than_three_models(
    tmp_path, method
):
    """Anonymous memory; the mapped input files come on top as page cache, which the system may drop."""
    make(tmp_path, width=1024, layers=124)
    size = (tmp_path / "a.pt").stat().st_size / MEBIBYTE
    assert size > 490
    check(tmp_path, method, size)


NETWORK = """
import torch
from torch import nn

class Chain(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        for i in range(layers):
            setattr(self, f"layer{i}", nn.Linear(width, width, bias=False))

    def forward(self, x):
        *inner, last = self.children()
        for layer in inner:
            x = layer(x).relu()
            x = x / x.std()
        return last(x)
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_files_of_500_megabytes_are_proved_in_less_than_three_models(
    tmp_path,
):
    """With the network's code: the spec is inferred, and the permuted network is run in float64 before writing."""
    width, layers = 1024, 124
    make(tmp_path, width, layers)
    (tmp_path / "chain.py").write_text(NETWORK)
    size = (tmp_path / "a.pt").stat().st_size / MEBIBYTE
    settings = f'{{"width": {width}, "layers": {layers}}}'
    module = (
        "--module",
        "chain.Chain",
        "--init-args",
        settings,
        "--input-shape",
        f"4,{width}",
    )
    anonymous, total, log = watched(tmp_path, *module)
    beside = anonymous - baseline(tmp_path)
    print(
        f"MiB: model {size:.0f}, beside the libraries {beside:.0f}, all with mapped files {total:.0f}"
    )
    assert size > 490 and "permuted models compute the same function" in log
    assert beside < 3 * size


@pytest.mark.timeout(280)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_matching_like_a_large_model_needs_less_than_three_models(tmp_path):
    """The same at a size for every day, with the threshold for large models lowered."""
    make(tmp_path, width=512, layers=64)
    check(
        tmp_path,
        "weight",
        (tmp_path / "a.pt").stat().st_size / MEBIBYTE,
        large=0,
    )


@pytest.mark.timeout(280)
def test_killed_at_any_moment(tmp_path):
    make(tmp_path, width=256, layers=8)
    process = subprocess.run(
        command(tmp_path), cwd=tmp_path, capture_output=True, check=True
    )
    assert b"wrote out.pt" in process.stdout
    whole = (tmp_path / "out.pt").read_bytes()
    begin = time.monotonic()
    subprocess.run(
        command(tmp_path), cwd=tmp_path, capture_output=True, check=True
    )
    length = time.monotonic() - begin
    (tmp_path / "out.pt").unlink()
    for moment in (0.5, 0.9, 0.97, 1.0):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command(tmp_path), cwd=tmp_path, **silent)
        try:
            process.wait(timeout=moment * length)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if (tmp_path / "out.pt").exists():
            assert (tmp_path / "out.pt").read_bytes() == whole
            (tmp_path / "out.pt").unlink()
