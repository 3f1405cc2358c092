from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import Planted, X, batch_norm_files, loaded, same
from torch import Tensor

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.fallbacks import Fallbacks
from lightning_rebasin.checkpoints.inputs import (
    NO_FALLBACKS,
    read_inputs,
    sha256,
    with_names,
)
from lightning_rebasin.errors import (
    CheckpointError,
    NonFiniteError,
    StateDictError,
)

State = dict[str, Tensor]


def test_prefixes_are_fitted_to_the_module_and_kept_in_the_output(
    tmp_path: Path, planted: Planted
) -> None:
    net, _, _ = planted
    for name in ("a", "b"):
        state = loaded(tmp_path / f"{name}.pt")
        payload = {
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {f"model.{n}": t for n, t in state.items()},
        }
        torch.save(payload, tmp_path / f"{name}.ckpt")
    merge_checkpoints(
        [tmp_path / "a.ckpt", tmp_path / "b.pt"],
        tmp_path / "out.ckpt",
        module=net,
        example=X,
    )
    got = loaded(tmp_path / "out.ckpt")["state_dict"]
    torch.testing.assert_close(
        got["model.0.weight"], net.state_dict()["0.weight"]
    )
    assert all(name.startswith("model.") for name in got)


def test_files_from_before_batch_counters(tmp_path: Path) -> None:
    net, data, paths = batch_norm_files(tmp_path)
    old = {n: t for n, t in loaded(paths[0]).items() if "num_batches" not in n}
    torch.save(old, paths[0])
    merge_checkpoints(paths, tmp_path / "out.pt", module=net, data=data)
    assert list(loaded(tmp_path / "out.pt")) == list(old)
    merge_checkpoints(
        paths[::-1],
        tmp_path / "out2.pt",
        module=net,
        data=data,
        method="weight",
        statistics="reset",
    )
    assert "bn1.num_batches_tracked" in loaded(tmp_path / "out2.pt")
    merge_checkpoints(paths, tmp_path / "out3.pt", method="average")
    net.load_state_dict(loaded(tmp_path / "out3.pt"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda s: {**s, "0.weight": torch.zeros(13, 6)},
            StateDictError,
            r"b\.pt.*'0.weight'",
        ),
        (
            lambda s: {n: t for n, t in s.items() if n != "2.bias"},
            StateDictError,
            r"b\.pt.*lacks '2.bias'",
        ),
        (
            lambda s: {**s, "extra": torch.zeros(1)},
            StateDictError,
            r"b\.pt.*unexpected 'extra'",
        ),
        (
            lambda s: {**s, "0.bias": torch.full((12,), float("nan"))},
            NonFiniteError,
            r"b\.pt.*'0.bias'",
        ),
        (
            lambda s: {**s, "0.bias": torch.zeros(12, dtype=torch.long)},
            StateDictError,
            r"b\.pt.*'0.bias'",
        ),
        (lambda s: {"epoch": 3}, CheckpointError, r"b\.pt.*no tensors"),
    ],
)
def test_inputs_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path: Path,
    planted: Planted,
    change: Callable[[State], dict[str, Any]],
    error: type[Exception],
    message: str,
) -> None:
    torch.save(change(loaded(tmp_path / "b.pt")), tmp_path / "b.pt")
    with pytest.raises(error, match=message):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / "o.pt",
            module=planted[0],
            example=X,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_the_digest_is_that_of_the_standard(tmp_path: Path) -> None:
    """FIPS 180-2, example B.1."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_all_files_take_the_names_and_the_order_of_the_first(
    tmp_path: Path, state: State
) -> None:
    torch.save(state, tmp_path / "a.pt")
    behind = {f"module.m.{n}": state[n] + 1 for n in reversed(state)}
    torch.save(behind, tmp_path / "b.pt")
    a, b = read_inputs([tmp_path / "a.pt", tmp_path / "b.pt"])
    assert list(a.state_dict) == list(b.state_dict) == list(state)
    assert same(b.state_dict, {name: t + 1 for name, t in state.items()})
    # What they are called in their own file is not forgotten: the output may need it.
    assert b.names == {name: f"module.m.{name}" for name in state}


def test_names_that_are_asked_for_count_more_than_those_of_the_first(
    tmp_path: Path, state: State
) -> None:
    torch.save(state, tmp_path / "a.pt")
    wanted = [f"net.{name}" for name in state][::-1]
    (found,) = read_inputs([tmp_path / "a.pt"], wanted)
    assert list(found.state_dict) == wanted


def test_counters_that_a_file_lacks_are_zero_and_not_written_back(
    tmp_path: Path,
) -> None:
    counter = "bn.num_batches_tracked"
    old = {"bn.weight": torch.ones(2)}
    new = {"bn.weight": torch.ones(2), counter: torch.tensor(7)}
    torch.save(old, tmp_path / "old.pt")
    torch.save(new, tmp_path / "new.pt")
    a, b = read_inputs([tmp_path / "old.pt", tmp_path / "new.pt"])
    assert a.state_dict[counter] == 0 and b.state_dict[counter] == 7
    assert a.state_dict[counter].dtype == torch.long
    assert counter not in a.names and counter in b.names
    # The network knows of it, though no file does.
    wanted = [counter, "bn.weight"]
    (alone,) = read_inputs([tmp_path / "old.pt"], wanted)
    assert list(alone.state_dict) == wanted


def test_weights_and_prefix_are_passed_on(
    tmp_path: Path, state: State
) -> None:
    averaged = {f"x.{name}": t + 1 for name, t in state.items()}
    torch.save({"model": state, "ema": averaged}, tmp_path / "a.pt")
    (found,) = read_inputs([tmp_path / "a.pt"], weights="ema", prefix="x.")
    assert same(found.state_dict, {name: t + 1 for name, t in state.items()})


def test_the_file_that_does_not_fit_the_first_is_named(
    tmp_path: Path, state: State
) -> None:
    torch.save(state, tmp_path / "a.pt")
    torch.save({**state, "more": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(StateDictError, match=r"b\.pt.*unexpected 'more'"):
        read_inputs([tmp_path / "a.pt", tmp_path / "b.pt"])


def test_a_second_name_gets_the_prefix_of_the_first(
    tmp_path: Path, state: State
) -> None:
    torch.save({f"net.{n}": t for n, t in state.items()}, tmp_path / "a.pt")
    (found,) = read_inputs([tmp_path / "a.pt"], list(state))
    first = next(iter(state))
    fallbacks = Fallbacks({"head": (first, "head")})
    named = with_names(found, ["head", first], fallbacks)
    assert named.names == {**found.names, "head": "net.head"}
    # Without another name to go by it is stored as it is called.
    assert with_names(found, ["x"], NO_FALLBACKS).names["x"] == "x"
