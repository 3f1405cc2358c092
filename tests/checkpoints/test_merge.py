import hashlib
import json

import pytest
import torch
from helpers.checkpoint_files import X, build, loaded
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.models import randomise

from lightning_rebasin.checkpoints import (
    job,
    merge_checkpoints,
    read_checkpoint,
)
from lightning_rebasin.errors import (
    EquivalenceError,
    OutputError,
)
from lightning_rebasin.merging import (
    average,
    interpolate,
)
from lightning_rebasin.symmetry import (
    Permutation,
    PermutationSpec,
)


def test_a_planted_permutation_is_undone(tmp_path, planted):
    net, _, hidden = planted
    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        module=net,
        example=X,
    )
    merged = loaded(tmp_path / "out.pt")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(merged[name], tensor)
    assert report.matches[0].permutation == hidden.inverse()
    assert report.errors[0] < 1e-12
    assert report.cosines[0][1] == pytest.approx(1)
    assert "same function" in str(report)
    history = merged.lightning_rebasin
    assert [file["sha256"] for file in history["inputs"]] == [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("a.pt", "b.pt")
    ]
    stored = PermutationSpec.from_dict(json.loads(history["spec"]))
    assert Permutation(stored, history["permutations"][1]) == hidden.inverse()
    assert history["objectives"][0][1] == report.matches[0].objective


def test_a_spec_alone_is_enough_and_says_so(tmp_path, planted):
    net, spec, _ = planted
    spec.save(tmp_path / "spec.json")
    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        spec=PermutationSpec.load(tmp_path / "spec.json"),
    )
    torch.testing.assert_close(
        loaded(tmp_path / "out.pt")["0.weight"], net.state_dict()["0.weight"]
    )
    assert any("not proved" in sentence for sentence in report.advice)


def test_a_wrong_spec_is_caught_by_the_gate_before_anything_is_written(
    tmp_path, planted
):
    net, _, _ = planted
    state = net.state_dict()
    wrong = PermutationSpec.from_table(
        {"0.weight": ("h", None), "2.weight": (None, "h")}, state
    )  # the bias is forgotten
    with pytest.raises(EquivalenceError):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / "out.pt",
            module=net,
            spec=wrong,
            example=X,
        )
    assert not (tmp_path / "out.pt").exists()


def test_plain_average_and_weights(tmp_path, planted):
    net, _, _ = planted
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", method="average", shares=[3, 1]
    )
    expected = average([loaded(p) for p in paths], [3, 1])
    assert all(
        torch.equal(t, expected[n])
        for n, t in loaded(tmp_path / "out.pt").items()
    )
    assert report.matches == ()
    assert any("--method weight" in sentence for sentence in report.advice)
    torch.save(
        interpolate(loaded(paths[0]), loaded(paths[1]), 0.01),
        tmp_path / "c.pt",
    )
    close = merge_checkpoints(
        [paths[0], tmp_path / "c.pt"], tmp_path / "o.pt", module=net, example=X
    )
    assert any(
        "already" in sentence and "--method average" in sentence
        for sentence in close.advice
    )
    done = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "c.pt"],
        tmp_path / "e.pt",
        method="average",
    )
    assert not any("--method" in sentence for sentence in done.advice)


def test_dry_run_writes_nothing(tmp_path, planted):
    before = sorted(tmp_path.iterdir())
    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        module=planted[0],
        example=X,
        dry_run=True,
    )
    assert sorted(tmp_path.iterdir()) == before
    assert report.output is None
    assert "dry run" in str(report)
    json.dumps(report.to_dict())


def test_half_precision_in_and_out(tmp_path, planted):
    net, _, hidden = planted
    half = {n: t.half() for n, t in net.state_dict().items()}
    torch.save(half, tmp_path / "a.pt")
    torch.save(hidden.apply(half), tmp_path / "b.pt")
    merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        module=net,
        example=X,
    )
    got = loaded(tmp_path / "out.pt")
    assert all(torch.equal(got[n], t) for n, t in half.items())


def test_lightning_checkpoints_from_training_to_test(tmp_path):
    import warnings

    from lightning.pytorch import Trainer, seed_everything

    quiet = (
        "logger",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
    )
    options = {"accelerator": "cpu", **dict.fromkeys(quiet, False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in (0, 1):
            seed_everything(seed, verbose=False)
            trainer = Trainer(
                max_epochs=3, default_root_dir=tmp_path, **options
            )
            trainer.fit(Classifier(hidden=16, batch_norm=True), train_loader())
            trainer.save_checkpoint(tmp_path / f"{seed}.ckpt")
        data = list(train_loader())
        report = merge_checkpoints(
            [tmp_path / "0.ckpt", tmp_path / "1.ckpt"],
            tmp_path / "merged.ckpt",
            module=Classifier(hidden=16, batch_norm=True),
            data=data,
            statistics="repair",
        )
        assert report.dropped == ()
        module = Classifier.load_from_checkpoint(tmp_path / "merged.ckpt")
        assert module.hparams.hidden == 16
        scores = Trainer(**options).validate(
            module,
            val_loader(),
            ckpt_path=tmp_path / "merged.ckpt",
            verbose=False,
        )
    assert scores[0]["val_acc"] > 0.5


def test_the_output_is_refused_before_any_work(tmp_path, planted, monkeypatch):
    monkeypatch.setattr(
        job,
        "read_inputs",
        lambda *a, **k: pytest.fail("read the files first"),
    )
    with pytest.raises(OutputError):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / "no" / "o.pt",
            method="average",
        )


def test_method_none_changes_the_format(tmp_path, planted):
    pytest.importorskip("safetensors")
    merge_checkpoints(
        [tmp_path / "b.pt"], tmp_path / "b.safetensors", method="none"
    )
    got = read_checkpoint(tmp_path / "b.safetensors")
    assert all(
        torch.equal(got.state_dict[n], t)
        for n, t in loaded(tmp_path / "b.pt").items()
    )


def test_the_same_seed_gives_the_same_file(tmp_path):
    net = build()
    for seed, name in enumerate("ab"):
        torch.save(randomise(net, seed).state_dict(), tmp_path / f"{name}.pt")
    merged = []
    for name in ("x.pt", "y.pt"):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / name,
            module=net,
            example=X,
            seed=3,
        )
        merged.append(loaded(tmp_path / name))
    assert all(torch.equal(t, merged[1][n]) for n, t in merged[0].items())


class Positioned(torch.nn.Module):
    """The same sinusoids in every model, tied to the columns of the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = (
            torch.nn.Linear(*shape) for shape in ((3, 6), (6, 8), (8, 2))
        )
        self.register_buffer("table", torch.arange(24.0).reshape(4, 6).sin())

    def forward(self, z):
        return self.head(torch.relu(self.inner(self.embed(z) + self.table)))


@pytest.mark.parametrize("count", [2, 3])
def test_a_table_that_the_models_share_comes_out_as_it_was(tmp_path, count):
    paths = []
    for seed in range(count):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(Positioned().state_dict(), paths[-1])
    z = torch.randn(2, 4, 3)
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", module=Positioned(), example=z
    )
    assert torch.equal(
        loaded(tmp_path / "out.pt")["table"], Positioned().table
    )
    assert "is the same in the models" in report.spec.explain("embed.weight")
    assert [g.size for g in report.spec.groups.values()] == [8] and max(
        report.errors
    ) < 1e-12
