import pickle
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.checkpoint_files import same
from helpers.shared import shared_path

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.errors import (
    CheckpointError,
    RebasinError,
    UnsafeLoadWarning,
)


@pytest.mark.parametrize(
    "wrapper", [None, "state_dict", "model_state_dict", "model", "generator"]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_bare_and_wrapped_in_both_formats(
    tmp_path, state, wrapper, zipped
):
    payload = (
        state
        if wrapper is None
        else {
            "epoch": 3,
            wrapper: state,
            "optimizer": {"state": {}, "lr": 0.1},
        }
    )
    torch.save(
        payload, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    c = read_checkpoint(tmp_path / "a.pt")
    assert same(c.state_dict, state)
    assert (c.format, c.wrapper) == ("torch", wrapper)
    assert (c.metadata.get("epoch") == 3) == (wrapper is not None)
    with pytest.raises(TypeError):
        c.state_dict["0.bias"] = None


def test_every_shared_lightning_file_loads_without_running_anything():
    folder = shared_path("data/lightning")
    before = set(sys.modules)
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) == 15
    for file in files:
        c = read_checkpoint(file)
        assert c.format == "lightning"
        assert file.name.startswith(
            f"v{c.metadata['pytorch-lightning_version']}"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = _trusting_load(file)
        assert same(c.state_dict, oracle["state_dict"])
    assert not {
        m
        for m in set(sys.modules) - before
        if m.startswith("pytorch_lightning")
    }


def _trusting_load(file):
    """An independent reader: the C unpickler with every foreign name replaced by a dummy (these files are trusted)."""

    class Dummy:
        def __init__(self, *args):
            pass

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return (
                super().find_class(module, name)
                if module.split(".")[0] in ("torch", "collections")
                else Dummy
            )

    module = SimpleNamespace(
        Unpickler=Unpickler,
        load=lambda f, **k: Unpickler(f, **k).load(),
        __name__="x",
    )
    return torch.load(
        file, map_location="cpu", weights_only=False, pickle_module=module
    )


def test_every_other_shared_checkpoint_loads():
    files = [
        f
        for f in sorted(shared_path("data/checkpoints").glob("*/*"))
        if f.suffix in (".pt", ".th")
    ]
    assert len(files) == 23
    for file in files:
        c = read_checkpoint(file)
        assert c.state_dict
        assert not any(name.startswith("module.") for name in c.state_dict)
        assert all(
            t.device.type == "cpu" and not t.requires_grad
            for t in c.state_dict.values()
        )


def test_averaged_and_live_weights(tmp_path, state):
    live = {n: t + 1 for n, t in state.items()}
    payload = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "current_model_state": live,
    }
    torch.save(payload, tmp_path / "a.ckpt")
    assert same(read_checkpoint(tmp_path / "a.ckpt").state_dict, state)
    assert same(
        read_checkpoint(tmp_path / "a.ckpt", weights="current").state_dict,
        live,
    )
    torch.save({"ema": live, "raw": state}, tmp_path / "b.pt")
    assert same(
        read_checkpoint(tmp_path / "b.pt", weights="ema").state_dict, live
    )
    with pytest.raises(CheckpointError, match=r"'ema', 'raw'.*--weights"):
        read_checkpoint(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="WeightAveraging"):
        read_checkpoint(tmp_path / "b.pt", weights="current")


def test_files_saved_on_cuda_map_to_the_cpu(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(raw)
    for extra in ({}, {"refused": print}):
        buffer = _saved_as_cuda({**state, **extra})
        (tmp_path / "b.pt").write_bytes(buffer)
        assert same(read_checkpoint(tmp_path / "b.pt").state_dict, state)


def _saved_as_cuda(payload):
    """A legacy file whose storages say that they live on cuda:0 (names of equal length, so that offsets hold)."""
    import io

    buffer = io.BytesIO()
    torch.save(
        payload,
        buffer,
        _use_new_zipfile_serialization=False,
        pickle_protocol=2,
    )
    raw = buffer.getvalue()
    tag = b"X\x03\x00\x00\x00cpu"
    assert tag in raw
    return raw.replace(tag, b"X\x06\x00\x00\x00cuda:0")


def test_large_zip_files_are_mapped_not_read(tmp_path, state, monkeypatch):
    from lightning_rebasin.checkpoints import read_file

    seen = []
    original = torch.load
    monkeypatch.setattr(read_file, "_MAP_FROM_BYTES", 1)
    monkeypatch.setattr(
        read_file.torch,
        "load",
        lambda *a, **k: (seen.append(k["mmap"]), original(*a, **k))[1],
    )
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt").state_dict, state)
    torch.save({"state_dict": state, "refused": print}, tmp_path / "b.pt")
    assert same(read_checkpoint(tmp_path / "b.pt").state_dict, state)
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "c.pt").state_dict, state)
    assert seen == [True, True, True, False]


def test_unsafe_is_a_last_resort_with_a_warning(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "safe.pt")
    read_checkpoint(
        tmp_path / "safe.pt", unsafe=True
    )  # warnings are errors here
    torch.save({"state_dict": state, "counter": Path("x")}, tmp_path / "a.pt")
    with pytest.warns(UnsafeLoadWarning, match="a.pt"):
        c = read_checkpoint(tmp_path / "a.pt", unsafe=True)
    assert isinstance(c.metadata["counter"], Path)


def test_missing_files_and_sharded_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    (tmp_path / "shards.ckpt").mkdir()
    with pytest.raises(
        CheckpointError, match=r"shards\.ckpt is a folder, but neither"
    ):
        read_checkpoint(tmp_path / "shards.ckpt")
    (tmp_path / "shards.ckpt" / "latest").touch()
    with pytest.raises(RebasinError, match="deepspeed"):
        read_checkpoint(tmp_path / "shards.ckpt")


def test_safetensors(tmp_path, state, monkeypatch):
    st = pytest.importorskip("safetensors.torch")
    st.save_file(
        state, tmp_path / "a.bin", metadata={"note": "x"}
    )  # the content decides, not the name
    c = read_checkpoint(tmp_path / "a.bin")
    assert same(
        dict(sorted(c.state_dict.items())), dict(sorted(state.items()))
    )
    assert (c.format, dict(c.metadata)) == ("safetensors", {"note": "x"})
    raw = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(raw[:-3])
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        read_checkpoint(tmp_path / "a.bin")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"lightning-rebasin\[safetensors\]"):
        read_checkpoint(tmp_path / "a.bin")


def test_files_that_lightning_wrote_with_weight_averaging(tmp_path):
    from helpers.classifier import Classifier, train_loader
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EMAWeightAveraging

    quiet = (
        "logger",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
    )
    live, averaged = {}, {}

    class Watch(EMAWeightAveraging):
        def on_train_batch_end(self, trainer, module, *args):
            super().on_train_batch_end(trainer, module, *args)
            live.update({n: t.clone() for n, t in module.state_dict().items()})
            averaged.update(
                {
                    n: t.clone()
                    for n, t in self._average_model.module.state_dict().items()
                }
            )
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[Watch(decay=0.5)],
            **dict.fromkeys(quiet, False),
        )
        trainer.fit(Classifier(), train_loader())
    assert same(read_checkpoint(tmp_path / "a.ckpt").state_dict, averaged)
    assert same(
        read_checkpoint(tmp_path / "a.ckpt", weights="current").state_dict,
        live,
    )
    assert not same(live, averaged)
