"""The network of the demo: its layers, its loss and its metrics, each against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.trainers import trainer_in
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.demo.model import Classifier


def small() -> Classifier:
    torch.manual_seed(0)
    return Classifier(features=5, width=7, depth=2, classes=3)


def data(samples: int = 11) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 5, generator=generator)
    return TensorDataset(images, torch.arange(samples) % 3)


def by_hand(model: Classifier, images: Tensor) -> Tensor:
    """Logits from the weights alone: relu(x W + b) twice, then x W + b."""
    state = {name: t.double() for name, t in model.state_dict().items()}
    x = images.double()
    for layer in (0, 2):
        x = x @ state[f"network.{layer}.weight"].T
        x = (x + state[f"network.{layer}.bias"]).clamp(min=0)
    x = x @ state["network.4.weight"].T
    logits: Tensor = x + state["network.4.bias"]
    return logits


def test_the_logits_are_those_of_a_perceptron() -> None:
    model = small()
    images = data().tensors[0]
    torch.testing.assert_close(
        model(images).double(), by_hand(model, images), rtol=1e-5, atol=1e-6
    )


def test_784_inputs_and_width_512_make_the_network_of_the_paper() -> None:
    model = Classifier(features=784, width=512)
    shapes = [
        (layer.in_features, layer.out_features)
        for layer in model.network
        if isinstance(layer, nn.Linear)
    ]
    assert shapes == [(784, 512), (512, 512), (512, 512), (512, 10)]
    count = sum(p.numel() for p in model.parameters())
    assert count == 784 * 512 + 512 + 2 * (512 * 512 + 512) + 512 * 10 + 10


@pytest.mark.parametrize("stage", ["val", "test"])
def test_loss_and_accuracy_are_logged_over_all_samples(
    stage: str, tmp_path: Path
) -> None:
    model = small()
    # Batches of 4, 4 and 3 samples: a mean over batches would be another number.
    loader = DataLoader(data(11), batch_size=4)
    trainer = trainer_in(tmp_path)
    measure = trainer.validate if stage == "val" else trainer.test
    (metrics,) = measure(model, loader, verbose=False)
    images, labels = data(11).tensors
    logits = by_hand(model, images)
    loss = -logits.log_softmax(1)[torch.arange(11), labels].mean()
    accuracy = (logits.argmax(1) == labels).double().mean()
    assert metrics == pytest.approx(
        {f"{stage}_loss": float(loss), f"{stage}_accuracy": float(accuracy)},
        rel=1e-5,
    )


def one_step(model: Classifier, folder: Path) -> Trainer:
    """Train on one batch that holds all samples."""
    loader = DataLoader(data(), batch_size=11)
    trainer = trainer_in(folder, max_steps=1)
    trainer.fit(model, loader, loader)
    return trainer


def test_one_step_of_training_is_one_of_adam(tmp_path: Path) -> None:
    model = small()
    model.learning_rate = 0.25
    before = model.state_dict()["network.4.bias"].double()
    images, labels = data().tensors
    logits = by_hand(model, images)
    loss = -logits.log_softmax(1)[torch.arange(11), labels].mean()
    trainer = one_step(model, tmp_path)
    logged = float(trainer.callback_metrics["train_loss"])
    assert logged == pytest.approx(float(loss), rel=1e-5)
    # The gradient of cross entropy by the last bias is softmax - one-hot.
    chances = logits.softmax(1)
    gradient = (chances - nn.functional.one_hot(labels, 3)).mean(0)
    # Adam's first step is the learning rate against the sign of the gradient.
    expected = before - 0.25 * gradient.sign()
    after = model.state_dict()["network.4.bias"].double()
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)


def test_a_checkpoint_knows_its_sizes(tmp_path: Path) -> None:
    model = Classifier(
        features=5, width=7, depth=1, classes=3, learning_rate=0.5
    )
    path = tmp_path / "model.ckpt"
    one_step(model, tmp_path).save_checkpoint(path)
    again = Classifier.load_from_checkpoint(path)
    assert again.learning_rate == 0.5
    state, stored = model.state_dict(), again.state_dict()
    assert list(stored) == list(state)
    assert all(torch.equal(stored[name], t) for name, t in state.items())
    example = again.example_input_array
    assert isinstance(example, Tensor)
    assert tuple(example.shape) == (2, 5)
