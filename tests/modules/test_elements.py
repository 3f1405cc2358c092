"""Learned elements stay in their groups, never end worse than their best start, resume, and load."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.kinds import LENGTH, VOCABULARY, Transformer, networks
from helpers.quiet import fit_quietly, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import MergeModule, infer_spec
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.modules import orders
from lightning_rebasin.modules.elements import LearnedElements
from lightning_rebasin.modules.orders import LearnedOrders
from lightning_rebasin.symmetry import Transform


class Language(LightningModule):
    """Predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer()
        self.example_input_array = torch.zeros(2, LENGTH, dtype=torch.long)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def _loss(self, tokens: Tensor) -> Tensor:
        logits = self(tokens)[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(
            logits, tokens[:, 1:].flatten()
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch[0]))


def loader(seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (32, LENGTH), generator=generator)
    return DataLoader(TensorDataset(tokens), batch_size=16)


def language(seed: int) -> Language:
    with isolated_rng():
        torch.manual_seed(seed)
        return Language()


class SavesTheFirstEpoch(Callback):
    """Writes ``half.ckpt``, as if the training had been stopped there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.folder / "half.ckpt")


def fitted(
    folder: Path,
    epochs: int = 2,
    checkpoint: Path | None = None,
    precision: Any = "32-true",
    **options: Any,
) -> MergeModule:
    a, b = language(1).state_dict(), language(2).state_dict()
    module = MergeModule(language(0), a, b, kinds="all", **options)
    trainer = quiet_trainer(
        folder,
        max_epochs=epochs,
        precision=precision,
        callbacks=[SavesTheFirstEpoch(folder)],
    )
    fit_quietly(trainer, module, loader(1), loader(2), checkpoint)
    return module


@pytest.mark.parametrize("name", ["layer norm", "rotary", "relu", "low rank"])
def test_elements_stay_in_their_groups(name: str) -> None:
    """Random latents far from 0: rotations stay orthogonal, the function of the source stays the same."""
    module, batch = networks(name)
    spec = infer_spec(module, batch, kinds="all")
    state = spec.canonicalise(module.state_dict())
    names = tuple(name for name, _ in module.named_parameters())
    identity = Transform.identity(spec)
    learned = LearnedElements(spec, identity, state, state, names)
    with torch.no_grad():
        for latent in learned.latents:
            latent.normal_(std=0.3)
    for group, element in learned.elements().items():
        if spec.groups[group].kind.startswith("orthogonal"):
            identity = torch.eye(element.shape[-1])
            product = element @ element.mT
            error = (product - identity).abs().max()
            assert error < 1e-5
    started = spec.canonicalise(module.state_dict())
    aligned = learned.transform().apply(started)
    outputs = torch.func.functional_call(module, aligned, (batch,))
    torch.testing.assert_close(outputs, module(batch), rtol=0, atol=1e-9)


def test_the_first_step_is_the_start() -> None:
    module, batch = networks("layer norm")
    spec = infer_spec(module, batch, kinds="all")
    start = Transform.random(spec, torch.Generator().manual_seed(0))
    state = spec.canonicalise(module.state_dict())
    names = tuple(name for name, _ in module.named_parameters())
    wanted = start.apply(state)
    found = LearnedElements(spec, start, state, wanted, names).transform()
    for key, tensor in found.apply(state).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=1e-9)


def test_learning_is_deterministic_resumes_and_loads(tmp_path: Path) -> None:
    for folder in ("once", "again", "half"):
        (tmp_path / folder).mkdir()
    once = fitted(tmp_path / "once").merged_state_dict()
    again = fitted(tmp_path / "again").merged_state_dict()
    resumed = fitted(tmp_path / "half", 2, tmp_path / "once" / "half.ckpt")
    for key, tensor in once.items():
        assert torch.equal(again[key], tensor), key
        torch.testing.assert_close(resumed.merged_state_dict()[key], tensor)
    language(0).load_state_dict(once, strict=True)


def rates(folder: Path, epochs: int, **options: Any) -> list[float]:
    """The step size of every step."""
    a, b = language(1).state_dict(), language(2).state_dict()
    module = MergeModule(language(0), a, b, kinds="all", **options)
    watch = SavesTheFirstEpoch(folder)
    trainer = quiet_trainer(folder, max_epochs=epochs, callbacks=[watch])
    fit_quietly(trainer, module, loader(1), loader(2))
    return watch.rates


def test_the_step_size_falls_along_half_a_cosine(tmp_path: Path) -> None:
    found = rates(tmp_path, 2)
    count = len(found)
    wanted = [
        0.005 * (1 + math.cos(math.pi * step / count)) for step in range(count)
    ]
    assert found == pytest.approx(wanted)


def test_an_optimizer_of_ones_own_keeps_its_step_size(tmp_path: Path) -> None:
    adam = partial(torch.optim.Adam, lr=0.02)
    assert set(rates(tmp_path, 2, optimizer=adam)) == {0.02}


def test_mixed_precision_does_not_round_the_elements(tmp_path: Path) -> None:
    """In bfloat16 a rotation would be off by 1e-2."""
    module = fitted(tmp_path, precision="bf16-mixed")
    assert module.elements is not None
    assert all(p.dtype == torch.float32 for p in module.learned())
    assert any(bool(latent.any()) for latent in module.elements.latents)
    source = language(2).double()
    tokens = next(iter(loader(3)))[0]
    wanted = source(tokens)
    state = module.elements.transform().apply(source.state_dict())
    source.load_state_dict(state)
    torch.testing.assert_close(source(tokens), wanted, rtol=0, atol=1e-9)


def test_learning_without_labels_brings_the_outputs_together(
    tmp_path: Path,
) -> None:
    """The network has a training step, which would raise if it were called."""

    class Unlabelled(Language):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("labels were used")

    a, b = language(1).state_dict(), language(2).state_dict()
    module = MergeModule(Unlabelled(), a, b, kinds="all", loss="outputs")
    trainer = quiet_trainer(tmp_path, max_epochs=10)
    fit_quietly(trainer, module, loader(1), loader(2))
    tokens = torch.cat([batch[0] for batch in loader(2)])
    with torch.no_grad():
        wanted = (language(1)(tokens) + language(2)(tokens)) / 2

    def off(state: dict[str, Tensor]) -> float:
        merged = language(0)
        merged.load_state_dict(state)
        with torch.no_grad():
            return float((merged(tokens) - wanted).square().sum())

    starts = module._start.transforms(trainer)
    before = min(off(module.ends.midpoint(start, 0.5)) for start in starts)
    assert off(module.merged_state_dict()) < 0.8 * before


def test_permutations_settle_in_the_middle_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the optimizer step decides, so a training that is resumed does not begin to move them again."""
    steps: list[int] = []
    project = LearnedOrders.project

    def counted(self: LearnedOrders, *given: Any) -> Any:
        steps.append(len(steps))
        return project(self, *given)

    monkeypatch.setattr(LearnedOrders, "project", counted)
    monkeypatch.setattr(orders, "SETTLED", 0.75)
    fitted(tmp_path, epochs=2)
    first = len(steps)
    fitted(tmp_path, epochs=2, checkpoint=tmp_path / "half.ckpt")
    # Two steps of the first epoch, and one of the second, which is all that is left after it.
    assert (first, len(steps) - first) == (3, 1)
