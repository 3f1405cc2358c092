"""Tensors that are computed when they are asked for, and described before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor


def _ignore(name: str) -> None:
    """Nobody counts."""


@final
@dataclass(frozen=True, eq=False)
class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, none of which is in memory before its turn has come.

    Args:
        plan: A tensor of the right shape and dtype for every name, on the meta device (or the tensor itself).
        make: Computes one.
        skip: Told about each one that nobody needs to compute, because an earlier process did.

    Example:
        >>> import torch
        >>> plan = {"a": torch.empty(2, device="meta"), "b": torch.empty(3, device="meta")}
        >>> tensors = LazyTensors(plan, lambda name: torch.ones(plan[name].shape))
        >>> tensors.part(["b"])["b"], sum(t.nbytes for t in tensors.plan.values())
        (tensor([1., 1., 1.]), 20)
    """

    plan: Mapping[str, Tensor]
    make: Callable[[str], Tensor]
    skip: Callable[[str], None] = _ignore

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LazyTensors:
        """Any mapping of tensors; one that is lazy already stays what it is."""
        if isinstance(tensors, LazyTensors):
            return tensors
        return cls(tensors, tensors.__getitem__)

    def part(self, names: Iterable[str]) -> LazyTensors:
        """Some of them."""
        plan = {name: self.plan[name] for name in names}
        return LazyTensors(plan, self.make, self.skip)

    def renamed(self, names: Mapping[str, str]) -> LazyTensors:
        """The same under new names, where ``names`` has one."""
        old = {names.get(name, name): name for name in self.plan}
        return LazyTensors(
            {new: self.plan[name] for new, name in old.items()},
            lambda new: self.make(old[new]),
            lambda new: self.skip(old[new]),
        )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.plan:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.plan

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)
