"""Which inputs of a labelled set become pairs: two of one class each, the classes in turn."""

from __future__ import annotations

from torch import Tensor

from lightning_rebasin.errors import DataError


def within_classes(classes: Tensor, count: int) -> tuple[list[int], list[int]]:
    """Numbers of inputs that make pairs within classes, no input twice.

    Args:
        classes: The class of every input, integers of shape ``(n,)``.
        count: How many pairs are wanted at most.

    Returns:
        The numbers of the first ends and of the second ends; the first inputs of every class come first, one pair of
        each class after the other.

    Raises:
        DataError: No class has two inputs, or the classes are not integers in a row.

    Example:
        >>> import torch
        >>> within_classes(torch.tensor([5, 7, 5, 5, 7, 5]), 3)
        ([0, 1, 3], [2, 4, 5])
    """
    if classes.ndim != 1 or classes.is_floating_point():
        raise DataError(
            f"pairs within classes need one class, an integer, for each input, got labels of shape "
            f"{tuple(classes.shape)} and dtype {classes.dtype}"
        )
    members: dict[int, list[int]] = {}
    for number, label in enumerate(classes.tolist()):
        members.setdefault(label, []).append(number)
    # Of class 5 above the inputs are 0, 2, 3, 5: its first pair is (0, 2), its second (3, 5).
    ordered: list[tuple[int, int, int]] = []
    for label in sorted(members):
        own = members[label]
        for turn in range(len(own) // 2):
            ordered.append((turn, own[2 * turn], own[2 * turn + 1]))
    # A stable sort: all first pairs, then all second ones.
    ordered.sort(key=lambda row: row[0])
    chosen = ordered[:count]
    if not chosen:
        raise DataError(
            f"no class has two of the {len(classes)} inputs, so there is no pair within a class"
        )
    return [a for _, a, _ in chosen], [b for _, _, b in chosen]
