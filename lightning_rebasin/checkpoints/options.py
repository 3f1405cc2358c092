"""What a merge is asked to do: one value, filled by keywords in Python and by the command line."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, final

from lightning_rebasin.checkpoints.align import Many, Method
from lightning_rebasin.errors import ConfigurationError

Statistics = Literal["auto", "none", "reset", "repair"]
_METHODS = ("weight", "activation", "average", "none")
_STATISTICS = ("auto", "none", "reset", "repair")


@final
@dataclass(frozen=True)
class MergeOptions:
    """The options of :func:`~lightning_rebasin.merge_checkpoints`.

    Args:
        method: ``"weight"`` or ``"activation"`` matching; ``"average"`` averages the models as they are (right for
            fine-tunes of one base); ``"none"`` keeps the first model (to correct its statistics or change its format).
        many: How three or more models are matched by weights: each in turn to the mean of the others, or all at once
            (C²M³).
        shares: Share of each model (the λ-mix); equal if omitted.
        statistics: ``"reset"`` re-estimates batch-norm statistics, ``"repair"`` also corrects all other layers,
            ``"auto"`` resets if there are batch norms and data.
        select: Which weights of the files, as ``weights`` of :func:`read_checkpoint`.
        prefix: What to do with prefixes, see :func:`read_checkpoint`.
        unsafe: Unpickle in full what torch's safe loader refuses.
        seed: Seeds the matching.
        dry_run: Do everything but write.
        force: Overwrite an existing output.
        progress: Show progress bars.

    Raises:
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> MergeOptions(shares=(0.3, 0.7)).changed(seed=1).seed
        1
    """

    method: Method = "weight"
    many: Many = "merge_many"
    shares: Sequence[float] | None = None
    statistics: Statistics = "auto"
    select: str = "state_dict"
    prefix: str | Mapping[str, str] | None = None
    unsafe: bool = False
    seed: int = 0
    dry_run: bool = False
    force: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ConfigurationError(
                f"method must be 'weight', 'activation', 'average' or 'none', got {self.method!r}"
            )
        if self.statistics not in _STATISTICS:
            raise ConfigurationError(
                f"statistics must be 'auto', 'none', 'reset' or 'repair', got {self.statistics!r}"
            )

    @property
    def matches(self) -> bool:
        """Whether the models are aligned by matching."""
        return self.method in ("weight", "activation")

    @property
    def runs_network(self) -> bool:
        """Whether the network has to be run on data."""
        return self.method == "activation" or self.statistics in (
            "reset",
            "repair",
        )

    def changed(self, **options: Any) -> Self:
        """The same with some options changed; ``weights`` is the old name of ``shares``.

        Raises:
            ConfigurationError: There is no such option.
        """
        if "weights" in options:
            warnings.warn(
                "weights= (the share of each model) is called shares= now",
                DeprecationWarning,
                stacklevel=3,
            )
            options["shares"] = options.pop("weights")
        unknown = sorted(set(options) - set(self.__dataclass_fields__))
        if unknown:
            known = ", ".join(self.__dataclass_fields__)
            raise ConfigurationError(
                f"merging has no option {unknown[0]!r}; it has {known}"
            )
        return replace(self, **options)

    def check(
        self, files: int, *, module: bool, spec: bool, data: bool
    ) -> None:
        """Refuse what cannot work with what was given.

        Args:
            files: How many files.
            module: Whether there is a network to run.
            spec: Whether it is known what may be permuted.
            data: Whether there are batches.

        Raises:
            ConfigurationError: Something that the options need is missing.
        """
        if files < (1 if self.method == "none" else 2):
            raise ConfigurationError(
                f"{files} file given: merging needs two or more"
            )
        if self.matches and not (module or spec):
            raise ConfigurationError(
                f"method {self.method!r} needs to know what may be permuted: give the module (--module or --config) or "
                "a spec (--spec)"
            )
        if self.runs_network and not module:
            raise ConfigurationError(
                "activation matching, reset and repair run the network: give the module (--module)"
            )
        if self.runs_network and not data:
            raise ConfigurationError(
                "activation matching, reset and repair need data (--data)"
            )
