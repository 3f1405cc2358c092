from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoint_files import Planted

from lightning_rebasin.checkpoints import merge_checkpoints
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
