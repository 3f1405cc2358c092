import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoint_files import same
from helpers.shared import shared_path
from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.checkpoints.unpickle import (
    MAX_DEPTH,
    RestrictedUnpickler,
    StandIn,
    is_stand_in,
)


def test_hyper_parameters_of_refused_files_are_kept() -> None:
    c = read_checkpoint(
        shared_path("data/lightning/v2.6.0-loss-object-in-hparams.ckpt")
    )
    kept = c.metadata["hyper_parameters"]
    assert (kept["hidden_channels"], kept["padding"], kept["lr"]) == (
        16,
        "same",
        0.001,
    )
    assert repr(kept["optimizer"]) == "<stand-in for torch.optim.adam.Adam>"
    assert (
        repr(kept["criterion"])
        == "<stand-in for torch.nn.modules.loss.BCEWithLogitsLoss>"
    )


def test_stand_ins_for_containers_paths_and_numbers(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    np = pytest.importorskip("numpy")
    import argparse
    import functools

    payload = {
        "state_dict": OrderedDict(state),
        "args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(depth=3)),
        "where": Path("a/b"),
        "best": np.float64(0.25),
        "count": np.int32(-7),
        "array": np.zeros(3),
        "callable": functools.partial(print, "x"),
        "seen": {1, 2},
        "dtype": torch.bfloat16,
    }
    torch.save(payload, tmp_path / "a.pt")
    meta = read_checkpoint(tmp_path / "a.pt").metadata
    assert meta["args"] == {"lr": 0.1, "inner": {"depth": 3}}
    assert (meta["where"], meta["best"], meta["count"]) == ("a/b", 0.25, -7)
    assert (meta["seen"], meta["dtype"]) == ({1, 2}, torch.bfloat16)
    assert repr(meta["callable"]) == "<stand-in for functools.partial>"


@pytest.mark.parametrize("zipped", [True, False])
def test_restricted_reading_gives_the_same_tensors(
    tmp_path: Path, zipped: bool
) -> None:
    shared = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "view": shared[1:, ::2],
        "transposed": shared.T,
        "half": shared.half(),
        "bf16": shared.bfloat16(),
        "int8": shared.to(torch.int8),
        "complex": torch.view_as_complex(torch.randn(3, 2)),
        "scalar": torch.tensor(4),
        "parameter": nn.Parameter(shared.clone()),
        "empty": torch.zeros(0, 3),
    }
    payload = {"state_dict": tensors, "why_refused": print}
    torch.save(
        payload, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    got = read_checkpoint(tmp_path / "a.pt").state_dict
    assert same(got, tensors)
    assert all(
        got[n].dtype == t.dtype and type(got[n]) is torch.Tensor
        for n, t in tensors.items()
    )


def test_tensors_of_newer_dtypes_are_read_too(tmp_path: Path) -> None:
    """They lie in storages without a type; torch itself cannot read them from its old format."""
    number = torch.tensor([1, 2**16 - 1], dtype=torch.uint16)
    small = torch.tensor([0.5, -2]).to(torch.float8_e4m3fn)
    tensors = {"uint16": number, "float8": small}
    payload = {"state_dict": tensors, "why_refused": print}
    torch.save(payload, tmp_path / "a.pt")
    got = read_checkpoint(tmp_path / "a.pt").state_dict
    assert got["uint16"].dtype == torch.uint16
    assert got["uint16"].tolist() == [1, 2**16 - 1]
    assert got["float8"].dtype == torch.float8_e4m3fn
    assert got["float8"].float().tolist() == [0.5, -2]


def read(raw: bytes) -> Any:
    return RestrictedUnpickler(io.BytesIO(raw)).load()


def again(value: object, protocol: int | None = None) -> Any:
    """Pickled by Python and read by us."""
    return read(pickle.dumps(value, protocol))


class Recipe:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_what_pickle_makes_of_them(protocol: int) -> None:
    value = {
        "numbers": [1, -(2**70), 0.1, True, None],
        "complex": 1 + 2j,
        "text": ("λ", b"\xff", bytearray(b"ab")),
        "sets": [{1, 2}, frozenset({3})],
        "ordered": OrderedDict(b=1, a=2),
        "slice": slice(1, 5, 2),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "nested": ((1, (2,)), [[]], {}),
    }
    found = again(value, protocol)
    assert found == value
    assert list(found["ordered"]) == ["b", "a"]
    assert [type(found["sets"][i]) for i in (0, 1)] == [set, frozenset]


def test_a_call_is_remembered_and_not_made(tmp_path: Path) -> None:
    path = str(tmp_path / "made")
    found = again(Recipe(open, path, "w"))
    assert not (tmp_path / "made").exists()
    assert isinstance(found, StandIn) and is_stand_in(found)
    assert found.arguments == (path, "w")
    assert repr(found) == repr(type(found))
    assert re.fullmatch(r"<stand-in for _?io\.open>", repr(found))


def test_one_name_is_one_class_and_inert_as_a_class_too() -> None:
    first, second, other = read(b"(ca\nb\nca\nb\nca\nc\nt.")
    assert first is second is not other
    assert is_stand_in(first) and not is_stand_in(int)
    # Called again (a factory in the file), it goes on doing nothing.
    assert is_stand_in(first("x")("y"))


class Bag(list[int]):
    """A list of its own class, with an attribute."""


class Table(dict[str, int]):
    """A dict of its own class."""


def test_stand_ins_keep_items_entries_and_state() -> None:
    bag = Bag([1, 2])
    bag.extend([3])
    vars(bag)["note"] = "x"
    found = again(bag)
    assert is_stand_in(found)
    assert found.sequence == [1, 2, 3]
    assert found.state == {"note": "x"}
    assert again(Table(a=1)).mapping == {"a": 1}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i4", "u8", "?"])
def test_numpy_numbers_become_pythons(kind: str, protocol: int) -> None:
    number = np.array([0, 1, 100]).astype(kind)[1]
    found = again(number, protocol)
    assert type(found) in (int, float, bool)
    assert found == number


def test_numpy_numbers_of_other_machines_are_turned_round() -> None:
    scalar = np.float64(0).__reduce__()[0]
    for kind, raw in ((">i4", b"\0\0\1\2"), ("<i4", b"\2\1\0\0")):
        assert again(Recipe(scalar, np.dtype(kind), raw)) == 0x102


def test_numpy_numbers_of_the_wrong_length_are_stand_ins() -> None:
    right = pickle.dumps(np.float64(0.25), 2)
    assert read(right) == 0.25
    wrong = right.replace(b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00f4")
    assert wrong != right
    assert is_stand_in(read(wrong))


def test_a_few_bytes_of_file_get_no_memory_for_nothing() -> None:
    assert again(Recipe(bytearray, 2**50)) == bytearray()


def test_names_of_python_2_are_known() -> None:
    assert read(b"c__builtin__\nset\n((lp0\nI1\natR.") == {1}


def test_no_function_of_torch_is_reached_by_its_name() -> None:
    for name in ("load", "hub.load", "os", "nn", "float32x", "Tensor"):
        found = read(f"ctorch\n{name}\n.".encode())
        assert repr(found) == f"<stand-in for torch.{name}>"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"]I1\n\x85R.", "calls a list"),
        (b"ctorch\nfloat32\n)R.", "calls a dtype"),
        # Looked at for their dtype only: a call would ask for memory.
        (b"ctorch\nFloatStorage\nI9\n\x85R.", "calls a"),
        (b"ctorch.storage\nUntypedStorage\nI9\n\x85R.", "calls a"),
        (b"c__builtin__\nset\n]R.", "not a tuple"),
        (b"cpathlib\nPosixPath\nI1\n\x85R.", "not made of text"),
    ],
)
def test_calls_that_no_checkpoint_needs_are_refused(
    program: bytes, message: str
) -> None:
    with pytest.raises(pickle.UnpicklingError, match=message):
        read(program)


def test_allowed_objects_keep_no_state_from_the_file() -> None:
    """``BUILD`` would set attributes of what everybody uses."""
    program = b"ccollections\nOrderedDict\n(dS'x'\nI1\nsb."
    assert read(program) is OrderedDict
    assert not hasattr(OrderedDict, "x")


def test_tuples_nest_as_deep_as_is_allowed() -> None:
    assert read(b")" + b"\x85" * (MAX_DEPTH - 1) + b".")
    with pytest.raises(pickle.UnpicklingError, match=f"{MAX_DEPTH} deep"):
        read(b")" + b"\x85" * MAX_DEPTH + b".")
    # Side by side is not deep.
    assert len(read(b"(" + b")\x85" * 1000 + b"t.")) == 1000
