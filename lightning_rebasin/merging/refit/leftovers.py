"""What keeps its average, and why: every parameter that no solution is written to is named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from lightning_rebasin.merging.refit.fitted import FittedLayer, LeftLayer
from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.merging.refit.slots import Slots, StateUses
from lightning_rebasin.symmetry.trace.contractions import CONTRACTIONS


@final
class Reasons:
    """Why weights are left, collected while a plan is made.

    Example:
        >>> reasons = Reasons()
        >>> reasons.add("a", "it is used twice")
        >>> reasons.add("a", "it is a table")
        >>> reasons.left()
        (LeftLayer(name='a', reason='it is used twice; it is a table'),)
    """

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, name: str, reason: str) -> None:
        """One more reason; said once however many uses have it."""
        reasons = self._found.setdefault(name, [])
        if reason not in reasons:
            reasons.append(reason)

    def left(self) -> tuple[LeftLayer, ...]:
        """Each name once, in the order in which they were found."""
        return tuple(
            LeftLayer(name, "; ".join(reasons))
            for name, reasons in self._found.items()
        )

    def name_rest(
        self, name: str, fitted: Iterable[FittedLayer], flow: Flow
    ) -> None:
        """Name a parameter unless a solution is written to it or it is named already."""
        written = any(name in layer.written for layer in fitted)
        if written or name in self._found:
            return
        gains = (gain for layer in fitted for gain in layer.gains)
        if any(gain.name == name for gain in gains):
            self.add(name, "the layer in front is fitted through this gain")
        else:
            self.add(name, _reason_of_operations(flow, name))


def reason_of_use(uses: StateUses, slots: Slots) -> str:
    """Why a weight's place in the pass forbids to solve for it; empty if it does not."""
    if uses.exclusive(slots):
        return ""
    count = uses.uses(slots)
    if count > 1:
        return f"its weight is used {count} times in one pass"
    return "one number of its weight stands in several places"


def _reason_of_operations(flow: Flow, name: str) -> str:
    """Why none of the operations that see a parameter is a layer."""
    operations = flow.uses.operations(name)
    if not operations:
        return "the pass does not use it"
    if operations <= frozenset(CONTRACTIONS):
        return "the layer that adds it is left"
    if operations <= {"aten.add"}:
        return "it is only added, and its average adds the average of the ends"
    return f"{', '.join(sorted(operations))} is not solved"
