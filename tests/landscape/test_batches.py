import torch

from lightning_rebasin.landscape.batches import clone_batch


def test_batches_are_copied_with_their_containers():
    batch = {"x": torch.zeros(2), "more": [torch.ones(1), "text"]}
    copy = clone_batch(batch)
    copy["x"].add_(1)
    copy["more"].clear()
    assert float(batch["x"].sum()) == 0
    assert len(batch["more"]) == 2
