"""Lightning under its old name.

The packages ``lightning`` and ``pytorch_lightning`` hold the same code twice.  Their classes are not related, so that
what asks for a LightningModule of one of them overlooks those of the other, and would measure nothing without a word.
"""

from __future__ import annotations

from lightning_rebasin.errors import ConfigurationError

_OTHER = "pytorch_lightning"


def refuse_other_lightning(thing: object) -> None:
    """Raise if a module or trainer comes from the package ``pytorch_lightning``.

    Args:
        thing: A module, a trainer, or anything else.

    Raises:
        ConfigurationError: It does; the message says which import to change.

    Example:
        >>> refuse_other_lightning("not of any Lightning")
    """
    for kind in type(thing).__mro__:
        package = kind.__module__.partition(".")[0]
        if package == _OTHER:
            raise ConfigurationError(
                f"{type(thing).__name__} comes from the package pytorch_lightning, and lightning_rebasin works with "
                "the package lightning: import lightning.pytorch as pl instead of pytorch_lightning; the code "
                "is the same, and checkpoints stay valid"
            )
