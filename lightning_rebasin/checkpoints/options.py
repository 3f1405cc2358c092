"""What a merge is asked to do: one value, filled by keywords in Python and by the command line."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, final, get_args

from lightning_rebasin.checkpoints.align import Many, Method
from lightning_rebasin.errors import ConfigurationError

Heads = Literal["average", "concatenate"]
Statistics = Literal["auto", "none", "reset", "repair", "refit"]
HEADS = get_args(Heads)
METHODS = get_args(Method)
STATISTICS = get_args(Statistics)


@final
@dataclass(frozen=True)
class MergeOptions:
    """The options of :func:`~lightning_rebasin.merge_checkpoints`.

    Args:
        method: ``"weight"``, ``"activation"`` (inner products) or ``"correlation"`` (of activations) matching;
            ``"average"`` averages the models as they are (right for fine-tunes of one base); ``"none"`` keeps the first
            model (to correct its statistics or change its format); ``"auto"`` measures which is best if there are a
            network and data, and matches by weights otherwise.
        many: How three or more models are matched by weights: each in turn to the mean of the others, or all at once
            (C²M³).
        shares: Share of each model (the λ-mix); equal if omitted.
        statistics: ``"reset"`` re-estimates batch-norm statistics, ``"repair"`` also corrects all other layers,
            ``"refit"`` solves the layers by least squares (and falls back to what measures better), ``"auto"``
            measures which is best if there are data, ``"none"`` corrects nothing.
        heads: ``"average"`` merges the heads like every other layer; ``"concatenate"`` puts them side by side, for
            classifiers of different label sets.
        kinds: Which kinds of symmetry to look for, as in :func:`~lightning_rebasin.infer_spec`; with others than
            permutations all models are put into canonical gauge first.
        untie: Give a tied weight that stands in the way of larger kinds a tensor for each of its uses; the output then
            needs a network that is untied as well, see :func:`~lightning_rebasin.untie`.
        select: Which weights of the files, as ``weights`` of :func:`read_checkpoint`.
        prefix: What to do with prefixes, see :func:`read_checkpoint`.
        unsafe: Unpickle in full what torch's safe loader refuses.
        seed: Seeds the matching.
        sources: What the data are called, for the report.
        dry_run: Do everything but write.
        force: Overwrite an existing output.
        progress: Show progress bars.

    Raises:
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> MergeOptions(shares=(0.3, 0.7)).changed(seed=1).seed
        1
    """

    method: Method = "auto"
    many: Many = "merge_many"
    shares: Sequence[float] | None = None
    statistics: Statistics = "auto"
    heads: Heads = "average"
    kinds: str | tuple[str, ...] = "permutation"
    untie: bool = False
    select: str = "state_dict"
    prefix: str | Mapping[str, str] | None = None
    unsafe: bool = False
    seed: int = 0
    sources: tuple[str, ...] = ()
    dry_run: bool = False
    force: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        choices_of = (
            ("method", METHODS),
            ("statistics", STATISTICS),
            ("heads", HEADS),
            ("many", get_args(Many)),
        )
        for name, known in choices_of:
            value = getattr(self, name)
            if value not in known:
                choices = ", ".join(repr(choice) for choice in known)
                raise ConfigurationError(
                    f"{name} must be one of {choices}, got {value!r}"
                )

    @property
    def matches(self) -> bool:
        """Whether the models are aligned by matching."""
        return self.method not in ("average", "none")

    @property
    def decisive(self) -> dict[str, Any]:
        """The options on which the result depends, by name."""
        irrelevant = ("progress", "force", "dry_run", "sources")
        return {n: v for n, v in vars(self).items() if n not in irrelevant}

    @property
    def without_data(self) -> Method:
        """The method, where there is nothing to choose by."""
        return "weight" if self.method == "auto" else self.method

    @property
    def runs_network(self) -> bool:
        """Whether the network has to be run on data."""
        corrected = self.statistics not in ("auto", "none")
        return self.method in ("activation", "correlation") or corrected

    @property
    def measures(self) -> bool:
        """Whether ways to merge are compared, given a network and data to measure with: something is left open."""
        undecided = "auto" in (self.method, self.statistics)
        fallible = self.statistics == "refit"
        several = self.method != "none"
        return (undecided or fallible) and several

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
        least = 1 if self.method == "none" else 2
        if files < least:
            wanted = "merging needs two or more"
            if least == 1:
                wanted = "method 'none' needs the one to keep"
            number = "no file" if not files else f"{files} file"
            raise ConfigurationError(f"{number} given: {wanted}")
        if self.statistics == "refit" and self.method == "none":
            raise ConfigurationError(
                "a refit merges several models, and method 'none' keeps one: choose another --method, or --statistics "
                "reset or repair"
            )
        if self.matches and not (module or spec):
            raise ConfigurationError(
                f"method {self.method!r} needs to know what may be permuted: give the module (--module or --config) or "
                "a spec (--spec)"
            )
        if self.runs_network:
            self._check_run(module=module, data=data)
        if self.untie:
            self._check_untie(spec=spec)
        if self.heads == "concatenate":
            self._check_heads(module=module, spec=spec)

    def _check_run(self, *, module: bool, data: bool) -> None:
        """Refuse to run a network that is not there, or on nothing."""
        if not module:
            raise ConfigurationError(
                "activation matching, reset, repair and refit run the network: give the module (--module)"
            )
        if not data:
            raise ConfigurationError(
                "activation matching, reset, repair and refit need data (--data)"
            )

    def _check_untie(self, *, spec: bool) -> None:
        """Refuse to untie where nothing can come of it."""
        if not self.matches:
            raise ConfigurationError(
                f"untie lets models be matched better, and method {self.method!r} matches none: leave untie (--untie) "
                "out"
            )
        # A spec says itself which kinds it has.
        if self.kinds == "permutation" and not spec:
            raise ConfigurationError(
                "untie lets a stream be rotated, and permutations alone were asked for: add kinds='all' (--kinds all)"
            )

    def _check_heads(self, *, module: bool, spec: bool) -> None:
        """Refuse what heads side by side cannot go with."""
        if not module:
            raise ConfigurationError(
                "heads='concatenate' runs the network to find its head: give the module (--module)"
            )
        if self.kinds != "permutation":
            raise ConfigurationError(
                "heads='concatenate' goes with permutations only: leave kinds (--kinds) out"
            )
        if spec:
            raise ConfigurationError(
                "heads='concatenate' makes a network of another shape, whose spec is inferred: leave the spec (--spec) "
                "out"
            )
        if self.method == "none" or 0 in (self.shares or ()):
            raise ConfigurationError(
                "heads='concatenate' needs a part of every model: neither method 'none' nor a share of 0"
            )
