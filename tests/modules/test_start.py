"""Where a MergeModule starts: spec, example inputs, first permutation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from helpers.merging import State, fit, held_out, in_setup, make, train_data
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.errors import (
    ConfigurationError,
    NonFiniteError,
    SpecError,
)
from lightning_rebasin.matching import match_activations
from lightning_rebasin.modules import MergeModule
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.start import Start
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


class StepOnly(Classifier):
    """Its forward takes what is in no batch, so only its steps can be run on one."""

    def forward(self, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        logits: Tensor = self.net(x) * scale
        return logits

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        return cross_entropy(self(batch[0], 2.0), batch[1])

    def validation_step(
        self,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.log("val_loss", cross_entropy(self(batch[0], 2.0), batch[1]))


def test_a_module_without_usable_forward_is_traced_and_proved_through_its_step(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    model = StepOnly(hidden=16)
    model.example_input_array = None
    module = MergeModule(model, *ends)
    fit(module, tmp_path, max_epochs=1)
    assert [group.size for group in module.spec.groups.values()] == [16]
    module.export(tmp_path / "merged.ckpt")
    merged = torch.load(tmp_path / "merged.ckpt", weights_only=True)[
        "state_dict"
    ]
    assert torch.equal(
        merged["net.fc1.weight"], module.merged_state_dict()["net.fc1.weight"]
    )


class Offset(Classifier):
    """Adds a fixed table to the hidden units: shared by all models, so it must not move."""

    def __init__(self) -> None:
        super().__init__(hidden=16)
        self.register_buffer("table", torch.arange(16.0).sin())

    table: Tensor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net[2](torch.relu(self.net[0](x) + self.table))
        return logits


def test_buffers_that_both_ends_share_stay(tmp_path: Path) -> None:
    states = [copy.deepcopy(Offset().state_dict()) for _ in range(2)]
    full = infer_spec(Offset(), torch.zeros(2, FEATURES))
    assert "table" in full.maps
    start = Permutation.random(full, torch.Generator().manual_seed(0))
    module = MergeModule(Offset(), *states, spec=full, init=start)
    fit(module, tmp_path, max_epochs=1)
    assert not module.spec.groups
    assert torch.equal(module.merged_state_dict()["table"], states[0]["table"])
    other = {**states[1], "table": states[1]["table"] + 1}
    assert [
        g.size
        for g in MergeModule(
            Offset(), states[0], other, spec=full
        ).spec.groups.values()
    ] == [16]


def first_start(module: MergeModule, folder: Path) -> Permutation:
    """Where the first projection of one epoch starts."""
    starts = []
    real = module._free_parameters.project

    def spy(start: Permutation, free: Any, step: int, device: Any) -> Any:
        starts.append(start)
        return real(start, free, step, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._free_parameters, "project", spy)
        fit(module, folder, max_epochs=1)
    return starts[0]


def test_starts_from_a_given_permutation(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    start = Permutation.random(spec, torch.Generator().manual_seed(0))
    module = make(ends, init=start, spec=spec)
    assert first_start(module, tmp_path) == start


def test_starts_from_activations(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    """All six batches are fewer than the twenty that are looked at, so the order of the samples does not matter."""
    module = make(ends, init="activations")
    start = first_start(module, tmp_path)
    reference, source = Classifier(hidden=16), Classifier(hidden=16)
    reference.load_state_dict(ends[0])
    source.load_state_dict(ends[1])
    match = match_activations(module.spec, reference, source, train_data())
    assert start == match.permutation
    assert not start.is_identity


def begin(
    ends: tuple[State, State],
    model: Classifier | None = None,
    *,
    spec: PermutationSpec | str | Path | None = None,
    init: Any = "identity",
) -> Start:
    model = model or Classifier(hidden=16)
    return Start(model, Endpoints(model, *ends), spec, init)


@pytest.mark.parametrize("init", ["random", None, 3])
def test_an_unknown_init_is_named(
    ends: tuple[State, State], init: Any
) -> None:
    with pytest.raises(ConfigurationError, match=f"init={init!r} is unknown"):
        make(ends, init=init)


def test_broken_weights_are_named_before_anything_is_matched(
    ends: tuple[State, State],
) -> None:
    bias = torch.full_like(ends[0]["net.fc1.bias"], torch.nan)
    broken = {**ends[0], "net.fc1.bias": bias}
    for given, role in (
        ((broken, ends[1]), "reference"),
        ((ends[1], broken), "source"),
    ):
        # A spec that is given cannot fail by itself.
        spec = Classifier(hidden=16).spec()
        with pytest.raises(
            NonFiniteError, match=rf"the {role}.*net\.fc1\.bias"
        ):
            _ = begin(given, spec=spec).spec


def test_without_example_inputs_the_spec_must_be_given(
    ends: tuple[State, State],
) -> None:
    model = Classifier(hidden=16)
    model.example_input_array = None
    message = "no example inputs of Classifier: set example_input_array"
    with pytest.raises(ConfigurationError, match=message):
        _ = begin(ends, model).spec
    given = model.spec()
    assert begin(ends, model, spec=given).spec == given


def test_a_spec_file_that_cannot_be_read_is_named_at_once(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.json"):
        begin(ends, spec=tmp_path / "nowhere.json")


def loader_of(*shape: int) -> DataLoader[tuple[Tensor, ...]]:
    """Four samples of ones."""
    data = TensorDataset(torch.ones(4, *shape), torch.zeros(4).long())
    return DataLoader(data, batch_size=4)


def test_real_inputs_replace_an_example_that_looks_the_same(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    start = begin(ends)
    assert not start.example[0][0].any(), "example_input_array holds zeros"
    in_setup(start.look_at_data, loader_of(FEATURES), tmp_path)
    assert torch.equal(start.example[0][0], torch.ones(4, FEATURES))
    # Batch sizes may differ; anything else is not the input that was meant.
    in_setup(start.look_at_data, loader_of(FEATURES, 1), tmp_path)
    assert start.example[0][0].shape == (4, FEATURES)


def test_the_first_batch_is_the_example_where_there_is_none(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    model = Classifier(hidden=16)
    model.example_input_array = None
    start = begin(ends, model)
    in_setup(start.look_at_data, train_data(shuffle=False), tmp_path)
    with pytest.raises(ConfigurationError, match="no example inputs"):
        _ = begin(ends, model).example
    assert [group.size for group in start.spec.groups.values()] == [16]


def first(start: Start, folder: Path, *, ckpt_path: str | None = None) -> Any:
    """The first permutation, asked for in ``setup``."""
    found = []

    def action(trainer: Trainer) -> None:
        trainer.ckpt_path = ckpt_path
        found.extend(start.transforms(trainer))
        trainer.ckpt_path = None

    in_setup(action, train_data(shuffle=False), folder)
    return found[0]


def test_a_resumed_run_does_not_match_activations_again(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    """What was saved is read only after ``setup``, and takes the place of the identity."""
    start = begin(ends, init="activations")
    assert not first(start, tmp_path).is_identity
    resumed = begin(ends, init="activations")
    assert first(resumed, tmp_path, ckpt_path="half.ckpt").is_identity


def test_activations_need_training_data(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    class Tested(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            start = begin(ends, init="activations")
            start.transforms(self.trainer)

    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    with pytest.raises(ConfigurationError, match="needs training data"):
        trainer.test(Tested(), held_out(), verbose=False)
