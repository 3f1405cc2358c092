"""Which rule is responsible for which operation: every operation has at most one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import final

from lightning_rebasin.errors import RebasinError
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.trace.tape import Node

#: What one writes: labels of the results of an operation.
RuleBody = Callable[[Context, Operation], Results]
#: What the registry holds and a pass calls.
Rule = Callable[[Context, Node], Sequence[Label]]


class DuplicateRuleError(RebasinError, ValueError):
    """Two rules were registered for one operation."""


@final
class Registry(Mapping[str, Rule]):
    """Rules by the names of their operations; a rule is never replaced.

    Example:
        >>> rules = Registry()
        >>> rules.add("relu", lambda ctx, op: [op.label()])
        >>> list(rules)
        ['aten.relu']
        >>> rules.add("relu", lambda ctx, op: op.fixed_results())
        Traceback (most recent call last):
            ...
        lightning_rebasin.symmetry.permutations.rules.registry.DuplicateRuleError: aten.relu has a rule already: ...
    """

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def __getitem__(self, name: str) -> Rule:
        return self._rules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def add(self, names: str, body: RuleBody) -> None:
        """Register a rule.

        Args:
            names: Operations, separated by spaces, without overload and in-place underscore.  Those without a dot are
                ATen's.
            body: The rule.

        Raises:
            DuplicateRuleError: One of the operations has a rule.
        """

        @wraps(body)
        def on_node(ctx: Context, node: Node) -> Sequence[Label]:
            return body(ctx, Operation(ctx, node))

        grown = dict(self._rules)
        for name in _full_names(names):
            if name in grown:
                old = grown[name]
                raise DuplicateRuleError(
                    f"{name} has a rule already: {old.__name__} in {old.__module__}; remove the name there "
                    f"or from {body.__name__} in {body.__module__}"
                )
            grown[name] = on_node
        # Only now, so that a refused call leaves nothing behind.
        self._rules = grown

    @contextmanager
    def added(self, names: str, body: RuleBody) -> Iterator[None]:
        """Register a rule for the length of a ``with`` block; arguments and errors are those of :meth:`add`."""
        self.add(names, body)
        try:
            yield
        finally:
            for name in _full_names(names):
                del self._rules[name]


def _full_names(names: str) -> list[str]:
    return [name if "." in name else f"aten.{name}" for name in names.split()]


#: All rules of the package.
RULES = Registry()


def rule(*names: str) -> Callable[[RuleBody], RuleBody]:
    """Register the function below as a rule.

    Args:
        *names: Operations, as in :meth:`Registry.add`.
    """

    def register(body: RuleBody) -> RuleBody:
        RULES.add(" ".join(names), body)
        return body

    return register
