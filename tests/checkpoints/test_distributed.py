"""Folders of torch.distributed.checkpoint, written by two processes of FSDP with Lightning's own code."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.sharded_training import Net, net, write_folders

from lightning_rebasin import infer_spec, merge_checkpoints
from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.checkpoints.distributed import read_index
from lightning_rebasin.checkpoints.inputs import sha256
from lightning_rebasin.checkpoints.write_distributed import alone
from lightning_rebasin.cli.main import main
from lightning_rebasin.errors import CheckpointError, OutputError
from lightning_rebasin.symmetry import Permutation

#: That there is one process only is the point of some tests.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_folders(folder)
    return folder


@pytest.fixture
def folders(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(written, tmp_path / "folders")
    return tmp_path / "folders"


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("name", "wrapper"), [("fsdp", "model"), ("parallel", "state_dict")]
)
def test_the_parts_of_all_ranks_are_put_together(
    written: Path, name: str, wrapper: str
) -> None:
    assert len(list((written / f"{name}-0.ckpt").glob("*.distcp"))) == 2
    found = read_checkpoint(written / f"{name}-0.ckpt")
    assert (found.format, found.wrapper) == ("distributed", wrapper)
    expected = net(0).state_dict()
    if name == "fsdp":
        # One step in training mode: the statistics of the norm have moved, the weights have not.
        for key in list(expected):
            if "running" in key or "num_batches" in key:
                del expected[key]
    for key, tensor in expected.items():
        assert torch.equal(found.state_dict[key], tensor)
    assert set(found.state_dict) == set(net(0).state_dict())
    assert found.metadata["hyper_parameters"] == {"units": 7}
    # Some tensor really lay in two parts.
    parts = [len(e.chunks) for e in read_index(written / f"{name}-0.ckpt")]
    assert max(parts) == 2


@pytest.mark.timeout(280)
def test_merged_and_read_by_torch_on_two_ranks(folders: Path) -> None:
    inputs = [folders / f"parallel-{seed}.ckpt" for seed in (0, 1)]
    report = merge_checkpoints(
        inputs, folders / "merged", module=net(5), example=X
    )
    assert [file.format for file in report.inputs] == ["distributed"] * 2
    assert report.errors[0] < 1e-12
    merged = read_checkpoint(folders / "merged")
    assert merged.metadata["lightning_rebasin"]["method"] == "weight"
    torch.save(dict(merged.state_dict), folders / "expected.pt")
    write_folders(folders)


def test_merged_and_consolidated_by_lightning(folders: Path) -> None:
    from lightning.fabric.utilities.load import _load_distributed_checkpoint
    from lightning.pytorch.utilities.consolidate_checkpoint import (
        _format_checkpoint,
    )

    inputs = [folders / f"fsdp-{seed}.ckpt" for seed in (0, 1)]
    merge_checkpoints(inputs, folders / "merged", module=net(5), example=X)
    expected = read_checkpoint(folders / "merged").state_dict
    whole = _format_checkpoint(
        _load_distributed_checkpoint(folders / "merged")
    )
    torch.save(whole, folders / "whole.ckpt")
    loaded = Net.load_from_checkpoint(folders / "whole.ckpt")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_an_extension_decides(folders: Path) -> None:
    source = read_checkpoint(folders / "parallel-0.ckpt")
    for name in ("one.ckpt", "one.pt", "one.safetensors"):
        write_checkpoint(folders / name, source.state_dict, like=source)
        assert (folders / name).is_file()
    loaded = Net.load_from_checkpoint(folders / "one.ckpt", weights_only=True)
    assert torch.equal(loaded.eval()(X), net(0)(X))
    # And back: a folder is made of a file if its name says so.
    single = read_checkpoint(folders / "one.ckpt")
    write_checkpoint(folders / "again.distcp", single.state_dict, like=single)
    again = read_checkpoint(folders / "again.distcp")
    assert (again.format, again.wrapper) == ("distributed", "model")
    for name, tensor in source.state_dict.items():
        assert torch.equal(again.state_dict[name], tensor)
    with pytest.raises(OutputError, match="exists already"):
        write_checkpoint(
            folders / "again.distcp", single.state_dict, like=single
        )


def test_bare_folders_of_torch_itself(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import load, save

    state = {"w": torch.randn(3, 2), "h": torch.ones(2).bfloat16()}
    save(dict(state), checkpoint_id=tmp_path / "a", **alone(save))
    found = read_checkpoint(tmp_path / "a")
    assert found.wrapper is None
    assert torch.equal(found.state_dict["w"], state["w"])
    doubled = {n: 2 * t for n, t in found.state_dict.items()}
    write_checkpoint(tmp_path / "b", doubled, like=found, provenance={"x": 1})
    back = {n: torch.zeros_like(t) for n, t in state.items()}
    load(back, checkpoint_id=tmp_path / "b", **alone(load))
    for name, tensor in state.items():
        assert torch.equal(back[name], 2 * tensor)
    assert (tmp_path / "b/lightning_rebasin.json").read_text()
    assert sha256(tmp_path / "a") != sha256(tmp_path / "b")


def test_match_and_apply_on_the_command_line(folders: Path) -> None:
    spec = infer_spec(net(5), X)
    spec.save(folders / "spec.json")
    a, b = (str(folders / f"parallel-{seed}.ckpt") for seed in (0, 1))
    order, moved = str(folders / "b-to-a.perm"), str(folders / "moved")
    words = ["match", a, b, "-o", order, "--spec", str(folders / "spec.json")]
    assert main([*words, "--no-progress"]) == 0
    assert main(["apply", order, b, "-o", moved]) == 0
    found = read_checkpoint(folders / "moved")
    assert found.format == "distributed"
    expected = Permutation.load(order).apply(net(1).state_dict())
    for name, tensor in expected.items():
        assert torch.equal(found.state_dict[name], tensor)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("/tmp/touched-by-a-checkpoint"),)  # type: ignore[return-value]


def test_nothing_in_an_index_is_run(folders: Path) -> None:
    """Torch's own reader unpickles it in full."""
    index = folders / "fsdp-0.ckpt" / ".metadata"
    index.write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(CheckpointError, match="damaged or not written by"):
        read_checkpoint(folders / "fsdp-0.ckpt")
    assert not Path("/tmp/touched-by-a-checkpoint").exists()


def _edited(folder: Path, old: bytes, new: bytes) -> None:
    """The index with some bytes replaced by as many others."""
    index = folder / ".metadata"
    content = index.read_bytes()
    assert len(old) == len(new) and old in content
    index.write_bytes(content.replace(old, new))


def test_an_index_must_not_point_out_of_its_folder(folders: Path) -> None:
    _edited(folders / "fsdp-0.ckpt", b"__0_0.distcp", b"../../secret")
    with pytest.raises(CheckpointError, match="not the name of a file beside"):
        read_checkpoint(folders / "fsdp-0.ckpt")


def test_a_missing_rank(folders: Path) -> None:
    (folders / "fsdp-0.ckpt" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp, which is not"):
        read_checkpoint(folders / "fsdp-0.ckpt")


def test_a_truncated_rank(folders: Path) -> None:
    part = folders / "fsdp-0.ckpt" / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"__1_0.distcp is too short"):
        read_checkpoint(folders / "fsdp-0.ckpt")


def test_a_rank_with_other_bytes(folders: Path) -> None:
    part = folders / "fsdp-0.ckpt" / "__1_0.distcp"
    part.write_bytes(b"\x00" * part.stat().st_size)
    with pytest.raises(CheckpointError, match=r"at byte \d+ is damaged"):
        read_checkpoint(folders / "fsdp-0.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_index(folders: Path, share: float) -> None:
    index = folders / "fsdp-0.ckpt" / ".metadata"
    content = index.read_bytes()
    index.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        CheckpointError, match=r"metadata is (empty|truncated)"
    ):
        read_checkpoint(folders / "fsdp-0.ckpt")


def test_what_lightning_keeps_may_be_damaged(folders: Path) -> None:
    (folders / "fsdp-0.ckpt" / "meta.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"meta\.pt"):
        read_checkpoint(folders / "fsdp-0.ckpt")
    torch.save([1], folders / "fsdp-1.ckpt" / "meta.pt")
    with pytest.raises(CheckpointError, match="the dict that Lightning"):
        read_checkpoint(folders / "fsdp-1.ckpt")


def test_a_part_too_few(tmp_path: Path) -> None:
    """As if a rank of four had not written its index: the parts do not cover the tensor."""
    from torch.distributed.checkpoint import save

    save({"w": torch.ones(300)}, checkpoint_id=tmp_path / "a", **alone(save))
    # 300 = 0x012c, little endian after BININT2 (M): the chunk's and the whole's length are the same number.
    index = tmp_path / "a" / ".metadata"
    content = index.read_bytes()
    first = content.index(b"M\x2c\x01")
    index.write_bytes(content[:first] + b"M\x90\x01" + content[first + 3 :])
    with pytest.raises(CheckpointError, match=r"hold|too short"):
        read_checkpoint(tmp_path / "a")
