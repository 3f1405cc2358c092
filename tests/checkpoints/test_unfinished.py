"""A merge that is killed goes on when the same command is given again: ``examples/scale_1b.py``, made small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lightning_rebasin.checkpoints import unfinished as room
from lightning_rebasin.checkpoints.unfinished import (
    FileJournal,
    Unfinished,
    unfinished,
)
from lightning_rebasin.errors import CheckpointError, OutputError
from lightning_rebasin.matching.search.journal import Ended, Standing
from lightning_rebasin.symmetry import Permutation

pytest.importorskip("transformers", reason="builds the network of the folders")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import scale_1b

#: Every model counts as large, and everything is written down at once.
SMALL = """
import os, signal
from lightning_rebasin.checkpoints import unfinished, align
unfinished.LARGE = 0
unfinished.PAUSE = 0.0
"""
#: Ends the process itself the n-th time that a function is called: no moment is hit more exactly.
KILL = """
def killed(module, name, count, before):
    kept, calls = getattr(module, name), []
    def call(*args, **keywords):
        calls.append(1)
        if before and len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = kept(*args, **keywords)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, call)
"""
IN_A_SWEEP = "killed(unfinished.FileJournal, 'write', 4, False)"
AFTER_THE_MATCHING = "killed(align, 'check_in_place', 1, True)"
#: In the third of five files, which have four tensors each.
IN_A_FILE = """
from lightning_rebasin.checkpoints import write_safetensors
killed(write_safetensors, '_memory', 10, True)
"""


def run(folder: Path, before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        scale_1b.merge(folder, SMALL + before),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Permutation]:
    """Two folders of a Llama of two layers, the second one in another order."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, scale_1b.make_pair(folder, 2, (32, 48, 8, 2, 64))


def files(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.timeout(280)
@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_killed_three_times_the_result_is_exact(
    pair: tuple[Path, Permutation],
) -> None:
    folder, planted = pair
    before = files(folder)
    left: dict[str, int] = {}
    for moment in (IN_A_SWEEP, AFTER_THE_MATCHING, IN_A_FILE):
        found = run(folder, KILL + moment)
        assert found.returncode == -signal.SIGKILL, found.stderr
        # Neither an output nor half of one: what is left is beside it, in files that are whole.
        assert not (folder / "out").exists()
        now = files(folder)
        assert set(before) < set(now)
        new = {n for n in now if n not in before}
        assert all(n.startswith(".out.unfinished/") for n in new)
        assert len(new) >= len(left)
        left = {n: now[n] for n in new}
    assert ".out.unfinished/match-1.pt" in left
    shards = [n for n in left if n.endswith(".safetensors")]
    assert len(shards) == 2
    # The third one was being written, under a name that nobody takes for a shard.
    assert len([n for n in left if n.endswith(".tmp")]) == 1
    stamps = [(folder / n).stat().st_mtime_ns for n in shards]
    kept = [
        folder / n.replace(".out.unfinished/output", "out") for n in shards
    ]
    # Nothing is matched again: the process would end with the first entry of the journal.
    found = run(
        folder, KILL + "killed(unfinished.FileJournal, 'write', 1, True)"
    )
    assert found.returncode == 0, found.stderr
    assert [p.stat().st_mtime_ns for p in kept] == stamps
    scale_1b.check(folder, planted)
    assert {n for n in files(folder) if n not in before} == {
        n.replace("a/", "out/", 1) for n in before if n.startswith("a/")
    } | {"out/lightning_rebasin.json"}


def standing() -> Standing:
    order = torch.tensor([1, 0])
    duals = {"g": (torch.ones(2).double().numpy(), order.numpy())}
    return Standing(
        (Ended({"g": order}, (2.0, 0.0), 1.5),),
        torch.Generator().get_state(),
        {"g": order},
        duals,
        ("g",),
        (3.0,),
        1,
        0.5,
        seconds=2.0,
    )


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "match.pt")
    assert journal.read() is None
    written = standing()
    journal.write(written)
    found = FileJournal(tmp_path / "match.pt").read()
    assert found is not None
    assert found.ended[0].flats["g"].tolist() == [1, 0]
    assert found.ended[0].gains == (2.0, 0.0) and found.ended[0].converged
    assert torch.equal(found.generator, written.generator)
    assert found.duals["g"][0].tolist() == [1.0, 1.0]
    assert (found.settled, found.gains, found.visited) == (("g",), (3.0,), 1)
    assert (found.gain, found.seconds) == (0.5, 2.0)


def test_entries_are_some_seconds_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(tmp_path / "match.pt")
    assert not journal.due
    monkeypatch.setattr(room, "PAUSE", 0.0)
    journal.write(standing())
    assert journal.due


def test_a_damaged_journal_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "match.pt").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(CheckpointError, match="to begin again"):
        FileJournal(tmp_path / "match.pt").read()


def test_only_the_same_job_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "out"
    job: Mapping[str, object] = {"options": {"seed": "0"}, "files": [["a", 1]]}
    first = Unfinished(target, job)
    assert not first.found
    first.journal(1).write(standing())
    (first.output / "whole.safetensors").write_bytes(b"x")
    (first.output / ".half.safetensors.abc.tmp").write_bytes(b"x")
    again = Unfinished(target, job)
    assert again.found
    # What was being written when the process died is worth nothing.
    assert [p.name for p in again.output.iterdir()] == ["whole.safetensors"]
    assert again.journal(1).read() is not None
    other = Unfinished(target, {**job, "options": {"seed": "1"}})
    assert not other.found
    assert not list(other.output.iterdir())
    assert other.journal(1).read() is None
    other.remove()
    assert not list(tmp_path.iterdir())


def test_a_file_that_changed_is_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    target, paths = tmp_path / "out.pt", [tmp_path / "a.pt"]
    # Small models are merged sooner than anybody could go on.
    assert unfinished(target, paths, [state], None, {}) is None
    monkeypatch.setattr(room, "LARGE", 1)
    unfinished(target, paths, [state], None, {"seed": 0})
    same = unfinished(target, paths, [state], None, {"seed": 0})
    assert same is not None and same.found
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    changed = unfinished(target, paths, [state], None, {"seed": 0})
    assert changed is not None and not changed.found
    job = json.loads((changed.folder / "job.json").read_text())
    assert job["files"][0][0].endswith("a.pt")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Unfinished(tmp_path / "file" / "out", {})
