"""Data of the commands: from a function, a loader, a data module or a config; what is no data says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import MODULE, Files, one_line, run

Capture = pytest.CaptureFixture[str]


def test_a_config_file_gives_network_and_data(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"fit:\n  model:\n    class_path: {MODULE}\n    init_args: {{hidden: 6, batch_norm: true}}\n"
        f"  data:\n    class_path: {files.loaders}.Blobs\n    init_args: {{samples: 32}}\n"
    )
    merge = "merge a.ckpt b.ckpt --config config.yaml"
    assert run(merge, "-o out.ckpt --no-progress") == 0
    assert "statistics reset" in capsys.readouterr().out
    config.write_text(
        f"model: {{class_path: {MODULE}}}\ndata: {{class_path: {files.loaders}.Nothing}}\n"
    )
    assert run(merge, "-o o.ckpt") == 2
    assert "'data' section of config.yaml" in one_line(capsys)


def test_failing_user_code_is_reported(files: Files, capsys: Capture) -> None:
    code = run(
        "merge a.ckpt b.ckpt -o x.ckpt",
        f"--module {MODULE} --data {files.loaders}.broken",
    )
    assert code == 2
    assert "RuntimeError: no disk" in one_line(capsys)
