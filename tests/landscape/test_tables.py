"""Files of tables."""

from __future__ import annotations

import pytest

from lightning_rebasin.errors import DataError, OutputError
from lightning_rebasin.landscape.tables import (
    main_metric,
    read_json,
    write_csv,
    write_json,
)


def test_files_come_back_and_foreign_ones_are_refused(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"format": "mine", "row": (1, 2)})
    assert read_json(path, "mine")["row"] == [1, 2]
    with pytest.raises(DataError, match="'other'"):
        read_json(path, "other")
    path.write_text("[1]")
    with pytest.raises(DataError, match="format"):
        read_json(path, "mine")
    path.write_bytes(b"\xff{")
    with pytest.raises(DataError, match="cannot read"):
        read_json(path, "mine")
    with pytest.raises(DataError, match="cannot read"):
        read_json(tmp_path / "none.json", "mine")


def test_csv(tmp_path):
    write_csv(tmp_path / "x.csv", ["a", "b"], [[1, "x,y"], [2.5, ""]])
    assert (tmp_path / "x.csv").read_text() == 'a,b\n1,"x,y"\n2.5,\n'
    with pytest.raises(OutputError, match="nowhere"):
        write_csv(tmp_path / "nowhere" / "x.csv", [], [])


def test_the_main_metric_is_the_first_loss():
    assert (
        main_metric({"acc": 0, "train_loss": 0, "val_loss": 0}) == "train_loss"
    )
    assert main_metric({"acc": 0, "loss": 0}, "acc") == "acc"
    for names in ({}, {"loss": 0}):
        with pytest.raises(DataError, match="'acc' was not measured"):
            main_metric(names, "acc")
    with pytest.raises(DataError, match="none"):
        main_metric({})
