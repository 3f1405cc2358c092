"""What the landscape commands share: the folder of the results, and what they work on."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import Files, one_line, run

from lightning_rebasin.cli.landscape.job import check_folder, make_folder
from lightning_rebasin.errors import OutputError

Capture = pytest.CaptureFixture[str]


def test_a_folder_may_be_new_or_empty_or_forced(tmp_path: Path) -> None:
    new = tmp_path / "new"
    check_folder(new, force=False)
    assert not new.exists()
    assert make_folder(new) == new
    check_folder(new, force=False)
    (new / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        check_folder(new, force=False)
    check_folder(new, force=True)
    with pytest.raises(OutputError, match="is a file"):
        check_folder(new / "mine.txt", force=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_folder(tmp_path / "gone" / "out", force=False)
    with pytest.raises(OutputError, match="cannot make"):
        make_folder(tmp_path / "gone" / "out")


def test_a_network_and_data_are_needed(files: Files, capsys: Capture) -> None:
    for given in ("", f"--module {files.loaders}.Plain"):
        assert run("landscape plane a.ckpt -o out", given) == 2
        assert "--module and --data" in one_line(capsys)
