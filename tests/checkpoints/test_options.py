from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoint_files import Planted

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.align import Method
from lightning_rebasin.checkpoints.options import MergeOptions
from lightning_rebasin.errors import ConfigurationError, OutputError


def test_options_that_cannot_work(tmp_path: Path, planted: Planted) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    merge = partial(merge_checkpoints, paths, tmp_path / "o.pt")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "--module or --config"),
        ({"method": "magic"}, "method"),
        ({"method": "average", "statistics": "magic"}, "statistics"),
        ({"method": "average", "shares": [1]}, "1 weights for 2 models"),
        ({"module": planted[0], "method": "activation"}, "need data"),
        ({"spec": planted[1], "method": "activation"}, "give the module"),
        ({"module": planted[0]}, "example_input_array"),
    )
    for options, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            merge(**options)
    with pytest.raises(ConfigurationError, match="two or more"):
        merge_checkpoints(paths[:1], tmp_path / "o.pt", method="average")
    (tmp_path / "o.pt").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        merge(method="average")
    assert (tmp_path / "o.pt").read_text() == "mine"


def test_the_old_name_of_the_shares_still_works(
    tmp_path: Path, planted: Planted
) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    with pytest.warns(DeprecationWarning, match="shares= now"):
        old = merge_checkpoints(
            paths, tmp_path / "old.pt", method="average", weights=[3, 1]
        )
    new = merge_checkpoints(
        paths, tmp_path / "new.pt", method="average", shares=[3, 1]
    )
    assert [f.weight for f in old.inputs] == [f.weight for f in new.inputs]


def test_an_option_that_does_not_exist_is_named(
    tmp_path: Path, planted: Planted
) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    with pytest.raises(ConfigurationError, match="no option 'colour'"):
        merge_checkpoints(paths, tmp_path / "out.pt", colour="red")


def test_each_need_of_the_options_is_asked_for() -> None:
    def refusal(files: int = 2, **given: Any) -> str:
        there = {}
        for what in ("module", "spec", "data"):
            there[what] = given.pop(what, True)
        try:
            MergeOptions(**given).check(files, **there)
        except ConfigurationError as error:
            return str(error)
        return ""

    assert refusal() == ""
    assert "two or more" in refusal(1)
    assert refusal(1, method="none") == ""
    assert "the one to keep" in refusal(0, method="none")
    assert refusal(method="weight", module=False, data=False) == ""
    assert refusal(method="weight", spec=False, data=False) == ""
    assert "--spec" in refusal(method="weight", spec=False, module=False)
    assert refusal(method="average", spec=False, module=False) == ""
    runs: list[dict[str, Any]] = [
        {"method": "activation"},
        {"statistics": "repair"},
    ]
    for needy in runs:
        assert "give the module" in refusal(module=False, **needy)
        assert "--data" in refusal(data=False, **needy)


@pytest.mark.parametrize(
    ("method", "matches"),
    [("weight", True), ("activation", True), ("average", False)],
)
def test_what_moves_units_matches(method: Method, matches: bool) -> None:
    assert MergeOptions(method=method).matches == matches


def test_options_are_changed_in_a_copy_that_is_checked_too() -> None:
    options = MergeOptions(seed=1)
    assert options.changed(seed=2) == MergeOptions(seed=2)
    assert options.seed == 1
    assert options.changed() == options
    with pytest.raises(ConfigurationError, match=r"method.*'magic'"):
        options.changed(method="magic")


def test_the_warning_shows_the_callers_own_line(
    tmp_path: Path, planted: Planted
) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    options: dict[str, Any] = {"method": "average", "weights": [3, 1]}
    with pytest.warns(DeprecationWarning) as caught:
        merge_checkpoints(paths, tmp_path / "o.pt", **options)
    assert [warning.filename for warning in caught] == [__file__]


def test_what_cannot_work_is_refused_before_any_file_is_read() -> None:
    with pytest.raises(ConfigurationError, match="many must be one of"):
        MergeOptions(many="all")  # type: ignore[arg-type]
    alone = MergeOptions(method="none")
    with pytest.raises(ConfigurationError, match=r"no file given.*to keep"):
        alone.check(0, module=False, spec=False, data=False)
    with pytest.raises(ConfigurationError, match=r"1 file given.*two or more"):
        MergeOptions().check(1, module=True, spec=False, data=False)
    fitted = MergeOptions(method="none", statistics="refit")
    with pytest.raises(ConfigurationError, match="keeps one"):
        fitted.check(1, module=True, spec=False, data=True)


def test_untying_needs_kinds_and_a_matching() -> None:
    def refusal(*, spec: bool = False, **given: Any) -> str:
        options = MergeOptions(untie=True, **given)
        try:
            options.check(2, module=True, spec=spec, data=False)
        except ConfigurationError as error:
            return str(error)
        return ""

    assert "--kinds all" in refusal()
    assert refusal(kinds="all") == ""
    # A spec says itself which kinds it has.
    assert refusal(spec=True) == ""
    assert "'average'" in refusal(kinds="all", method="average")
