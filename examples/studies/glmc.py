"""The setting of GLMC (Theus et al., NeurIPS 2025): two GPT-2s on tiny Shakespeare, merged in their own architecture.

    python examples/studies/glmc.py                       # a GPU, a quarter of an hour
    python examples/studies/glmc.py --smoke               # tiny networks, a few steps, any machine
    python examples/studies/glmc.py --tokens tokens.npy   # other tokens than characters

Six layers of 256 with 4 heads and a context of 256, AdamW 3e-4 with weight decay 0.01, batches of 32, two seeds; then
the barrier of the validation loss over 11 λ (chord): naive, permutations, all kinds by weights, by activations, and
learned at λ ~ U(.4, .6).  Published: 2.02 naive, 1.43 by activations, 0.34 by weights, 0.02 learned, in an architecture
with joined query and key maps.  Theirs are pieces of GPT-2's vocabulary, which has to be fetched; here a token is a
character unless ``--tokens`` names a file of NumPy integers.  Writes numbers.json to examples/results/studies/glmc.

This was written on a machine without a GPU and has been run there with ``--smoke`` only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, State, shared_path, write
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import (
    MergeModule,
    infer_spec,
    match_activations,
    match_weights,
    measure_barrier,
)

SEEDS, POINTS = (0, 1), 11


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        layers: Blocks of the network.
        width: Of the residual stream.
        context: Tokens of a window.
        epochs: Of each training, as many windows as the text has without overlap.
        batch: Windows of a step.
        learned: Steps of learning the elements.
        windows: At most so many windows are used.
    """

    layers: int = 6
    width: int = 256
    context: int = 256
    epochs: int = 100
    batch: int = 32
    learned: int = 2500
    windows: int | None = None


SMOKE = Size(2, 32, 16, 1, 8, 4, 64)


class Gpt2(LightningModule):
    """GPT-2 of the transformers package, with a head of its own.

    Args:
        size: Its measures.
        vocabulary: Number of tokens.
    """

    def __init__(self, size: Size, vocabulary: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=size.context,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
        )
        self.network = GPT2LMHeadModel(config)
        self.example_input_array = torch.zeros(
            2, size.context, dtype=torch.long
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(batch, length, vocabulary)``."""
        return self.network(tokens, use_cache=False).logits

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Mean cross-entropy of the next token."""
        inputs, targets = batch
        return cross_entropy(self(inputs).flatten(0, 1), targets.flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        """As published."""
        return torch.optim.AdamW(self.parameters(), lr=3e-4, weight_decay=0.01)


def read_tokens(path: Path | None) -> Tensor:
    """The text as numbers: characters, or the integers of a file."""
    if path is not None:
        return torch.from_numpy(np.load(path).astype(np.int64))
    (file,) = sorted(shared_path("data/shakespeare").glob("*.txt"))
    text = file.read_text(encoding="utf-8")
    alphabet = {c: k for k, c in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[c] for c in text])


def windows(tokens: Tensor, size: Size) -> TensorDataset:
    """Windows without overlap, and the tokens that follow each."""
    count = (len(tokens) - 1) // size.context
    used = count * size.context
    inputs = tokens[:used].view(count, size.context)
    targets = tokens[1 : used + 1].view(count, size.context)
    return TensorDataset(inputs[: size.windows], targets[: size.windows])


def fit(
    module: LightningModule, train: Any, validate: Any, **more: Any
) -> None:
    """Train on whatever there is."""
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **more,
    )
    trainer.fit(module, train, validate)
    module.cpu()


def learn(
    make: Any, ends: list[State], loaders: tuple[Any, Any], size: Size
) -> list[Mapping[str, Tensor]]:
    """Both ends after learning all elements, from the better of both matchings."""
    train, validate = loaders
    module = MergeModule(
        make(),
        *ends,
        kinds="all",
        lam=(0.4, 0.6),
        loss=lambda network, batch: network.loss(batch),
        seed=0,
    )
    fit(module, train, validate, max_steps=size.learned)
    return [module.ends.reference, module.transform.apply(ends[1])]


def main() -> None:
    """Train twice, match, learn, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="tiny and quick")
    parser.add_argument("--tokens", type=Path, help="a .npy file of integers")
    parser.add_argument("--output", type=Path, default=RESULTS / "glmc")
    options = parser.parse_args()
    size = SMOKE if options.smoke else Size()
    tokens = read_tokens(options.tokens)
    make = partial(Gpt2, size, int(tokens.max()) + 1)
    border = len(tokens) * 9 // 10
    loader = partial(DataLoader, batch_size=size.batch)
    train = loader(windows(tokens[:border], size), shuffle=True)
    validate = loader(windows(tokens[border:], size))
    ends: list[State] = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        module = make()
        fit(module, train, validate, max_epochs=size.epochs)
        ends.append(module.state_dict())
    rows = []
    for name, pair in ways(make, ends, (train, validate), size).items():
        curve = measure_barrier(make(), *pair, validate, points=POINTS)
        losses = curve.values["val_loss"]
        row = {
            "way": name,
            "barrier": curve.height("val_loss", "chord"),
            "first end": losses[0],
            "second end": losses[-1],
            "midpoint": curve.midpoint("val_loss"),
        }
        rows.append(row)
    write(options.output, rows, size=vars(size), seeds=list(SEEDS))


def ways(
    make: Any, ends: list[State], loaders: tuple[Any, Any], size: Size
) -> dict[str, list[Any]]:
    """Both ends as each way of matching sees them."""
    a, b = ends
    plain, spec = infer_spec(make()), infer_spec(make(), kinds="all")
    batches = [
        batch[0] for batch, _ in zip(loaders[0], range(4), strict=False)
    ]
    networks = []
    for end in ends:
        network = make().eval()
        network.load_state_dict(end)
        networks.append(network)
    first, second = spec.canonicalise(a), spec.canonicalise(b)
    by_order = match_weights(plain, a, b).transform
    by_weights = match_weights(spec, first, second).transform
    by_activations = match_activations(spec, *networks, batches).transform
    return {
        "naive": [a, b],
        "permutations": [a, by_order.apply(b)],
        "all kinds, weights": [first, by_weights.apply(second)],
        "all kinds, activations": [first, by_activations.apply(b)],
        "learned": learn(make, ends, loaders, size),
    }


if __name__ == "__main__":
    main()
