"""Which kinds of symmetry somebody asked for: the ``kinds`` argument, wherever it is taken."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.actions.action import registered_kinds

#: Every kind has its room inside or beside permutations, so these are always looked for.
PERMUTATION = "permutation"


def chosen_kinds(kinds: str | Iterable[str]) -> frozenset[str]:
    """The kinds that a request names.

    Args:
        kinds: ``"all"``, the name of one kind, or several names.

    Returns:
        The names; permutations are always among them.

    Raises:
        SpecError: A name is not a kind.

    Example:
        >>> import lightning_rebasin
        >>> sorted(chosen_kinds("permutation"))
        ['permutation']
    """
    known = registered_kinds()
    if kinds == "all":
        return known
    names = {kinds} if isinstance(kinds, str) else set(kinds)
    unknown = sorted(names - known)
    if unknown:
        listed = ", ".join(map(repr, sorted(known)))
        raise SpecError(
            f"{unknown[0]!r} is not a kind of symmetry; use 'all' or some of {listed}"
        )
    return frozenset(names | {PERMUTATION})
