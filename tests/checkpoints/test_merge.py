import hashlib
import json

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.models import BatchNormCNN, mlp, randomise
from lightning.pytorch import LightningModule

from lightning_rebasin.checkpoints import merge as merge_module
from lightning_rebasin.checkpoints import merge_checkpoints, read_checkpoint
from lightning_rebasin.errors import (
    CheckpointError,
    ConfigurationError,
    EquivalenceError,
    NonFiniteError,
    OutputError,
    StateDictError,
)
from lightning_rebasin.merging import (
    average,
    interpolate,
    repair,
    reset_batch_norm,
)
from lightning_rebasin.symmetry import (
    Example,
    Permutation,
    PermutationSpec,
    infer_spec,
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def build():
    return mlp(6, 12, 10, 3)


@pytest.fixture
def planted(tmp_path):
    """A network, and the same network in another order: matching must find it again."""
    net = randomise(build())
    spec = infer_spec(net, X)
    hidden = Permutation.random(spec, torch.Generator().manual_seed(1))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    torch.save(hidden.apply(net.state_dict()), tmp_path / "b.pt")
    return net, spec, hidden


def loaded(path):
    return torch.load(path, weights_only=True)


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


def test_prefixes_are_fitted_to_the_module_and_kept_in_the_output(
    tmp_path, planted
):
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


def batch_norm_files(tmp_path):
    net = BatchNormCNN(4)
    data = [
        torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        for i in range(3)
    ]
    for seed, name in enumerate("ab"):
        torch.save(randomise(net, seed).state_dict(), tmp_path / f"{name}.pt")
    return net, data, [tmp_path / "a.pt", tmp_path / "b.pt"]


def test_batch_norm_statistics(tmp_path):
    net, data, paths = batch_norm_files(tmp_path)
    plain = merge_checkpoints(
        paths,
        tmp_path / "none.pt",
        module=net,
        example=data[0],
        statistics="none",
    )
    assert any(
        "2 batch norms kept averaged" in sentence for sentence in plain.advice
    )
    report = merge_checkpoints(
        paths, tmp_path / "reset.pt", module=net, data=data
    )
    assert report.statistics == "reset"
    aligned = [
        loaded(paths[0]),
        report.matches[0].permutation.apply(loaded(paths[1])),
    ]
    net.load_state_dict(average(aligned))
    expected = reset_batch_norm(net, data).state_dict()
    got = loaded(tmp_path / "reset.pt")
    assert all(torch.equal(got[n], t) for n, t in expected.items())
    report = merge_checkpoints(
        paths,
        tmp_path / "repair.pt",
        module=net,
        data=data,
        statistics="repair",
    )
    expected = repair(net, aligned, data).module.state_dict()
    got = loaded(tmp_path / "repair.pt")
    assert all(torch.equal(got[n], t) for n, t in expected.items())
    assert report.variances[0] < report.variances[1]


def test_files_from_before_batch_counters(tmp_path):
    net, data, paths = batch_norm_files(tmp_path)
    old = {n: t for n, t in loaded(paths[0]).items() if "num_batches" not in n}
    torch.save(old, paths[0])
    merge_checkpoints(paths, tmp_path / "out.pt", module=net, data=data)
    assert list(loaded(tmp_path / "out.pt")) == list(old)
    merge_checkpoints(paths[::-1], tmp_path / "out2.pt", module=net, data=data)
    assert "bn1.num_batches_tracked" in loaded(tmp_path / "out2.pt")
    merge_checkpoints(paths, tmp_path / "out3.pt", method="average")
    net.load_state_dict(loaded(tmp_path / "out3.pt"))


def test_tied_weights_stay_tied(tmp_path, planted):
    shared = [torch.randn(4, 4) for _ in "ab"]
    for name, tensor in zip("ab", shared, strict=True):
        torch.save(
            {"e": tensor, "h": tensor, "x": torch.ones(2)},
            tmp_path / f"{name}.pt",
        )
    merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        method="average",
    )
    got = loaded(tmp_path / "out.pt")
    assert got["e"].data_ptr() == got["h"].data_ptr()
    torch.testing.assert_close(got["e"], (shared[0] + shared[1]) / 2)


def test_evaluation_rows_and_advice(tmp_path, planted):
    net, _, _ = planted
    target = {n: t.clone() for n, t in net.state_dict().items()}

    def evaluate(network):
        return {
            "val_loss": sum(
                float((t - target[n]).abs().sum())
                for n, t in network.state_dict().items()
            )
        }

    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        module=net,
        example=X,
        evaluate=evaluate,
    )
    rows = report.evaluation
    assert list(rows) == ["a.pt", "b.pt", "naive average", "merged"]
    assert (
        rows["a.pt"]["val_loss"]
        == 0
        < rows["naive average"]["val_loss"]
        < rows["b.pt"]["val_loss"]
    )
    assert any(
        "best single model is a.pt" in sentence for sentence in report.advice
    )


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
    tmp_path, planted, change, error, message
):
    torch.save(change(loaded(tmp_path / "b.pt")), tmp_path / "b.pt")
    with pytest.raises(error, match=message):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / "o.pt",
            module=planted[0],
            example=X,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_options_that_cannot_work(tmp_path, planted):
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    merge = lambda **options: merge_checkpoints(
        paths, tmp_path / "o.pt", **options
    )
    for options, message in (
        ({}, "--module or --config"),
        ({"method": "magic"}, "method"),
        ({"method": "average", "statistics": "magic"}, "statistics"),
        ({"method": "average", "shares": [1]}, "1 weights for 2 models"),
        ({"module": planted[0], "method": "activation"}, "need data"),
        ({"spec": planted[1], "method": "activation"}, "give the module"),
        ({"module": planted[0]}, "example_input_array"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            merge(**options)
    with pytest.raises(ConfigurationError, match="two or more"):
        merge_checkpoints(paths[:1], tmp_path / "o.pt", method="average")
    (tmp_path / "o.pt").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        merge(method="average")
    assert (tmp_path / "o.pt").read_text() == "mine"


def test_the_output_is_refused_before_any_work(tmp_path, planted, monkeypatch):
    monkeypatch.setattr(
        merge_module,
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


@pytest.mark.parametrize("many", ["merge_many", "cycle_consistent"])
def test_many_models_in_one_frame(tmp_path, planted, many):
    net, spec, _ = planted
    orders = [
        Permutation.random(spec, torch.Generator().manual_seed(i))
        for i in range(4)
    ]
    noise = torch.Generator().manual_seed(7)
    for i, order in enumerate(orders):
        near = {
            n: t + 0.05 * torch.randn(t.shape, generator=noise)
            for n, t in net.state_dict().items()
        }
        torch.save(order.apply(near), tmp_path / f"{i}.pt")
    paths = [tmp_path / f"{i}.pt" for i in range(4)]
    report = merge_checkpoints(
        paths,
        tmp_path / "out.pt",
        module=net,
        example=X,
        many=many,
        shares=[4, 3, 2, 1],
        statistics="none",
    )
    for order, found in zip(orders[1:], report.permutations[1:], strict=True):
        assert found == orders[0].compose(order.inverse())
    assert max(report.errors) < 1e-12
    assert len(report.errors) == 3
    aligned = [
        orders[0].compose(o.inverse()).apply(loaded(p))
        for o, p in zip(orders, paths, strict=True)
    ]
    expected = average(aligned, [4, 3, 2, 1])
    assert all(
        torch.equal(t, expected[n])
        for n, t in loaded(tmp_path / "out.pt").items()
    )
    json.dumps(report.to_dict())


def test_activation_matching_from_files(tmp_path, planted):
    net, _, hidden = planted
    data = [torch.randn(100, 6, generator=torch.Generator().manual_seed(2))]
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", module=net, data=data, method="activation"
    )
    assert report.permutations[1] == hidden.inverse()


def test_a_constant_example_array_does_not_blind_the_gate(tmp_path, planted):
    net, _, _ = planted
    net.example_input_array = torch.zeros(2, 6)
    with torch.no_grad():
        net[0].bias.zero_()
        net[2].bias.zero_()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    torch.save(net.state_dict(), tmp_path / "b.pt")
    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "o.pt", module=net
    )
    assert report.errors == (0.0,)


class Stepwise(LightningModule):
    """No forward: the network runs in validation_step only, on batches that are dicts."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def validation_step(self, batch):
        self.log(
            "loss",
            (self.net(batch["x"]) - batch["y"][:, None]).square().mean(),
        )


def test_a_lightning_module_is_proved_through_its_validation_step(
    tmp_path, planted
):
    net, _, hidden = planted
    module = Stepwise(net)
    for name in ("a.pt", "b.pt"):
        state = torch.load(tmp_path / name, weights_only=True)
        torch.save(
            {f"net.{key}": tensor for key, tensor in state.items()},
            tmp_path / name,
        )
    g = torch.Generator().manual_seed(4)
    data = [
        {
            "x": torch.randn(20, 6, generator=g),
            "y": torch.randn(20, generator=g),
        }
    ]
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    report = merge_checkpoints(
        paths, tmp_path / "out.pt", module=module, data=data
    )
    assert (
        report.permutations[1].orders["net.0"].tolist()
        == hidden.inverse().orders["0"].tolist()
    )
    assert report.errors[0] < 1e-12
    step = Example((data[0],), method="validation_step")
    assert (
        merge_checkpoints(
            paths, tmp_path / "2.pt", module=module, example=step
        ).errors[0]
        < 1e-12
    )


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


def test_the_old_name_of_the_shares_still_works(tmp_path, planted):
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    with pytest.warns(DeprecationWarning, match="shares= now"):
        old = merge_checkpoints(
            paths, tmp_path / "old.pt", method="average", weights=[3, 1]
        )
    new = merge_checkpoints(
        paths, tmp_path / "new.pt", method="average", shares=[3, 1]
    )
    assert [f.weight for f in old.inputs] == [f.weight for f in new.inputs]


def test_an_option_that_does_not_exist_is_named(tmp_path, planted):
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    with pytest.raises(ConfigurationError, match="no option 'colour'"):
        merge_checkpoints(paths, tmp_path / "out.pt", colour="red")
