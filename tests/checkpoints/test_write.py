import subprocess
import sys
import warnings

import pytest
import torch
from helpers.models import mlp
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.checkpoints import write as write_module
from lightning_rebasin.errors import CheckpointError, OutputError


class Small(LightningModule):
    def __init__(self, hidden, loss=torch.nn.functional.mse_loss):
        super().__init__()
        self.save_hyperparameters()
        self.net = mlp(3, hidden, 2)
        self.steps = 0

    def training_step(self, batch, _):
        self.steps += 1
        return self.hparams.loss(self.net(batch[0]), batch[1])

    def test_step(self, batch, _):
        self.log("loss", self.hparams.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self):
        return DataLoader(
            TensorDataset(torch.randn(8, 3), torch.randn(8, 2)), batch_size=4
        )

    test_dataloader = train_dataloader


def trainer(tmp_path, **options):
    return Trainer(
        default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip


@pytest.fixture
def trained(tmp_path):
    t = trainer(tmp_path, max_epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t.fit(Small(5))
        t.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_lightning_accepts_what_was_written(tmp_path, trained):
    source = read_checkpoint(trained)
    weights = {name: tensor + 1 for name, tensor in source.state_dict.items()}
    dropped = write_checkpoint(
        tmp_path / "out.ckpt",
        weights,
        like=source,
        provenance={"method": "none"},
    )
    assert [d.split()[0] for d in dropped] == ["hyper_parameters.loss"]
    payload = torch.load(tmp_path / "out.ckpt", weights_only=True)
    assert payload["hyper_parameters"] == {"hidden": 5}
    assert payload["lightning_rebasin"] == {"method": "none"}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers and the like
        module = Small.load_from_checkpoint(tmp_path / "out.ckpt")
        assert all(
            torch.equal(module.state_dict()[n], t) for n, t in weights.items()
        )
        trainer(tmp_path).test(
            module, ckpt_path=tmp_path / "out.ckpt", verbose=False
        )
        again = Small(5)
        t = trainer(tmp_path, max_epochs=2)
        t.fit(again, ckpt_path=tmp_path / "out.ckpt")
        assert (again.steps, t.current_epoch) == (
            4,
            2,
        )  # two whole epochs, from the beginning


def test_command_line_entries_and_own_entries_pass_through(tmp_path):
    payload = {
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": {
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "_class_path": "a.B",
            "x": 1,
        },
        "vocabulary": ["a", "b"],
        "callbacks": {"ModelCheckpoint": {"best_model_path": "gone"}},
        "loops": {"fit_loop": {}},
        "optimizer_states": [{"state": {}}],
        "current_model_state": {"w": torch.zeros(2)},
    }
    torch.save(payload, tmp_path / "a.ckpt")
    source = read_checkpoint(tmp_path / "a.ckpt")
    assert (
        write_checkpoint(tmp_path / "b.ckpt", source.state_dict, like=source)
        == ()
    )
    got = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert got["hyper_parameters"] == payload["hyper_parameters"]
    assert got["vocabulary"] == ["a", "b"]
    assert got["optimizer_states"] == got["lr_schedulers"] == []
    assert not {
        "callbacks",
        "loops",
        "current_model_state",
        "lightning_rebasin",
    } & set(got)


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_other_formats_keep_names_and_wrapper(tmp_path, wrapper):
    state = {f"module.{n}": t for n, t in mlp(3, 4, 2).state_dict().items()}
    torch.save(
        state if wrapper is None else {wrapper: state, "epoch": 7},
        tmp_path / "a.pt",
    )
    source = read_checkpoint(tmp_path / "a.pt")
    write_checkpoint(
        tmp_path / "b.pt",
        source.state_dict,
        like=source,
        provenance={"method": "x"},
    )
    got = torch.load(tmp_path / "b.pt", weights_only=True)
    inner = got if wrapper is None else got[wrapper]
    assert list(inner) == list(state)
    assert (
        got.lightning_rebasin if wrapper is None else got["lightning_rebasin"]
    ) == {"method": "x"}
    write_checkpoint(tmp_path / "b.ckpt", source.state_dict, like=source)
    assert "pytorch-lightning_version" in torch.load(
        tmp_path / "b.ckpt", weights_only=True
    )


def test_safetensors_out_and_back(tmp_path):
    st = pytest.importorskip("safetensors")
    shared = torch.randn(3, 2)
    state = {
        "a": shared,
        "b": shared,
        "t": torch.randn(2, 3).T,
        "n": torch.tensor(3),
    }
    write_checkpoint(
        tmp_path / "a.safetensors",
        state,
        provenance={"p": torch.tensor([1, 0])},
    )
    back = read_checkpoint(tmp_path / "a.safetensors")
    assert all(torch.equal(back.state_dict[n], t) for n, t in state.items())
    with st.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "lightning_rebasin": '{"p": [1, 0]}',
        }
    write_checkpoint(tmp_path / "b.pt", back.state_dict, like=back)
    assert set(torch.load(tmp_path / "b.pt", weights_only=True)) == set(state)


def test_views_are_cut_out_and_ties_kept(tmp_path):
    big = torch.randn(100_000)
    state = {"a": big[:10], "b": big[:10], "c": big[10:20]}
    write_checkpoint(tmp_path / "a.pt", state)
    assert (tmp_path / "a.pt").stat().st_size < 5000
    got = torch.load(tmp_path / "a.pt", weights_only=True)
    assert got["a"].data_ptr() == got["b"].data_ptr() != got["c"].data_ptr()
    assert all(torch.equal(got[n], t) for n, t in state.items())


def test_nothing_is_overwritten_or_left_behind(tmp_path, monkeypatch):
    state = {"w": torch.ones(2)}
    write_checkpoint(tmp_path / "a.pt", state)
    with pytest.raises(OutputError, match="--force"):
        write_checkpoint(tmp_path / "a.pt", {"w": torch.zeros(2)})
    write_checkpoint(tmp_path / "a.pt", {"w": torch.zeros(2)}, force=True)
    assert torch.load(tmp_path / "a.pt")["w"].tolist() == [0, 0]
    with pytest.raises(OutputError, match="does not exist"):
        write_checkpoint(tmp_path / "no" / "a.pt", state)
    with pytest.raises(OutputError, match="is a folder"):
        write_checkpoint(tmp_path, state, force=True)

    def broken(payload, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module.torch, "save", broken)
    with pytest.raises(OutputError, match="No space left"):
        write_checkpoint(tmp_path / "b.pt", state)
    monkeypatch.setattr(
        write_module.torch, "save", lambda payload, file: file.write(b"half")
    )
    with pytest.raises(CheckpointError, match="was not written"):
        write_checkpoint(tmp_path / "b.pt", state)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the full disk."""
    code = (
        "import resource, sys, torch\n"
        "from lightning_rebasin.checkpoints.write import write_checkpoint\n"
        "from lightning_rebasin.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_checkpoint(sys.argv[1], {'w': torch.zeros(1_000_000)})\n"
        "except OutputError as error:\n"
        "    print('typed', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path / "a.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("typed cannot write"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_same_weights_give_the_same_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        write_checkpoint(
            tmp_path / name, {"w": torch.ones(3)}, provenance={"method": "x"}
        )
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
