import os
from pathlib import Path

import pytest

from lightning_rebasin.errors import OutputError
from lightning_rebasin.files import (
    atomic_folder,
    atomic_path,
    atomic_write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old"
        # A rename is only atomic within one file system.
        assert temporary.parent == target.parent
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_errors_of_the_system_say_which_file_and_why(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    full = OSError(28, "No space left on device")
    with pytest.raises(OutputError) as caught, atomic_path(target):
        raise full
    assert str(caught.value) == f"cannot write {target}: {full.strerror}"
    assert caught.value.__cause__ is full
    assert names(tmp_path) == []


def test_a_missing_folder_is_found_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "no" / "a.txt"
    with (
        pytest.raises(OutputError, match=r"no/a\.txt.*create the folder"),
        atomic_path(target),
    ):
        pytest.fail("went to work")


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").is_dir()
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_has_the_permissions_that_any_new_file_has(
    tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        atomic_write_text(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    modes = [(tmp_path / n).stat().st_mode for n in ("ours", "plain")]
    assert modes[0] == modes[1]


def test_text_is_utf_8_and_paths_may_be_strings(tmp_path: Path) -> None:
    atomic_write_text(str(tmp_path / "a.txt"), "λ ≤ 1")
    expected = b"\xce\xbb \xe2\x89\xa4 1"
    assert (tmp_path / "a.txt").read_bytes() == expected


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    with (
        pytest.raises(OutputError, match="never overwritten"),
        atomic_folder(tmp_path / "out"),
    ):
        raise AssertionError("never entered")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "more") as folder:
        (folder / "half").touch()
        raise KeyError
    with (
        pytest.raises(OutputError, match="create the folder above"),
        atomic_folder(tmp_path / "no" / "out"),
    ):
        raise AssertionError("never entered")
    with (
        pytest.raises(OutputError, match=r"^one file only$"),
        atomic_folder(tmp_path / "more"),
    ):
        raise OutputError("one file only")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_built_elsewhere_stays_on_failure(
    tmp_path: Path,
) -> None:
    place = tmp_path / "work"
    place.mkdir()
    with pytest.raises(KeyError), atomic_folder(tmp_path / "out", place):
        (place / "half").touch()
        raise KeyError
    assert (place / "half").exists()
    with atomic_folder(tmp_path / "out", place) as folder:
        assert folder == place
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
