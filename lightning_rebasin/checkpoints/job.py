"""What all stages of a merge share: options, network, data, and the files once they are read."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from lightning_rebasin.checkpoints.align import example_input
from lightning_rebasin.checkpoints.correct import Evaluate
from lightning_rebasin.checkpoints.fallbacks import Fallbacks
from lightning_rebasin.checkpoints.folder import find_model_folder
from lightning_rebasin.checkpoints.head_layer import different_heads
from lightning_rebasin.checkpoints.heads import Heads, join_heads
from lightning_rebasin.checkpoints.inputs import NO_FALLBACKS, read_inputs
from lightning_rebasin.checkpoints.options import MergeOptions
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.checkpoints.unfinished import Unfinished, unfinished
from lightning_rebasin.checkpoints.write import output_format
from lightning_rebasin.errors import ConfigurationError, StateDictError
from lightning_rebasin.merging.interpolate import (
    check_alike,
)
from lightning_rebasin.merging.refit.choose import Loss
from lightning_rebasin.symmetry import PermutationSpec, infer_spec
from lightning_rebasin.symmetry.run.hollow import release
from lightning_rebasin.symmetry.run.untie import separate
from lightning_rebasin.symmetry.spec.untied import (
    untied_names,
    with_own_tensors,
)


@dataclass(frozen=True, eq=False)
class Job:
    """What all stages share.

    Args:
        options: What to do.
        network: A private copy of the network, whose weights the stages overwrite.
        data: Batches.
        example: Example input.
        loss: Mean loss of a network on a batch.
        heads: How the heads stand side by side, if they do.
        files: The files, where their heads had to be looked at before anything else.
        fallbacks: What stands in for tensors that a file may lack.
        untied: Tied names that have tensors of their own in the output.
    """

    options: MergeOptions
    network: nn.Module | None
    data: Iterable[Any] | None
    example: Any
    loss: Loss | None
    heads: Heads | None = None
    files: tuple[Checkpoint, ...] = ()
    fallbacks: Fallbacks = NO_FALLBACKS
    untied: tuple[str, ...] = ()

    def with_wide_head(self, paths: Sequence[str | Path], target: Path) -> Job:
        """The same with a network that has the outputs of all models."""
        network = self.network
        assert network is not None
        files = self._files(paths, network.state_dict())
        heads = join_heads(
            network,
            example_input(network, self.example, self.data),
            files,
            keeps_arguments=output_format(target, files[0]) == "lightning",
        )
        heads.widen(network)
        return replace(self, heads=heads, files=heads.files(files))

    def mixed_states(
        self, files: Sequence[Checkpoint], shares: Sequence[float]
    ) -> Sequence[Mapping[str, Tensor]]:
        """The weights of the models as they are mixed."""
        states = [file.state_dict for file in files]
        if self.heads is None:
            return states
        return self.heads.scaled(states, shares)

    def trunks(
        self, states: Sequence[Mapping[str, Tensor]]
    ) -> Sequence[Mapping[str, Tensor]]:
        """The part of the models that can be alike."""
        return states if self.heads is None else self.heads.trunks(states)

    def evaluation(self, evaluate: Evaluate | None) -> Evaluate | None:
        """How networks are evaluated."""
        if evaluate is None or self.heads is None:
            return evaluate
        return self.heads.checked(evaluate)

    def spec_or_inferred(
        self, spec: PermutationSpec | None
    ) -> PermutationSpec | None:
        """What may be permuted, if that matters."""
        if spec is not None or not self.options.matches:
            return spec
        assert self.network is not None
        inputs = example_input(self.network, self.example, self.data)
        return infer_spec(self.network, *inputs, kinds=self.options.kinds)

    def with_untied(
        self, spec: PermutationSpec | None
    ) -> tuple[Job, PermutationSpec | None]:
        """The same with an untied network and its spec, if that was asked for; the files are read before.

        Raises:
            ConfigurationError: There is nothing that untying would allow.
        """
        if not self.options.untie or spec is None:
            return self, spec
        if spec.untied is None:
            raise ConfigurationError(
                "no tied weight stands in the way of a larger symmetry: leave untie (--untie) out"
            )
        names = untied_names(spec, spec.untied)
        if self.network is not None:
            separate(self.network, names)
        return replace(self, untied=names), spec.untied

    def in_gauge(
        self,
        spec: PermutationSpec | None,
        states: Sequence[Mapping[str, Tensor]],
    ) -> Sequence[Mapping[str, Tensor]]:
        """The weights in canonical gauge, where the spec has other kinds than permutations: the same functions.

        Weights of two networks may only be averaged in one gauge, whatever the alignment.
        """
        if spec is None or not any(
            group.kind != "permutation" for group in spec.groups.values()
        ):
            return states
        own = [with_own_tensors(state, self.untied) for state in states]
        return [spec.canonicalise(state) for state in own]

    def unfinished(
        self,
        target: Path,
        files: Sequence[Checkpoint],
        states: Sequence[Mapping[str, Tensor]],
        spec: PermutationSpec | None,
    ) -> Unfinished | None:
        """Where a large merge keeps what it has, in case that the process dies."""
        if self.options.dry_run:
            return None
        paths = [file.path for file in files]
        asked = self.options.decisive
        work = unfinished(target, paths, states, spec, asked)
        if work is not None and work.found and self.options.progress:
            tqdm.write(
                f"going on where an earlier merge was stopped ({work.folder})",
                file=sys.stderr,
            )
        return work

    def writes_one_by_one(self, target: Path, like: Checkpoint) -> bool:
        """Whether nobody needs all merged weights at once: they are not corrected, and the format takes them singly."""
        kind = output_format(target, like)
        model = find_model_folder(like.path)
        safe = kind == "folder" and model is not None and model.safe
        corrected = self.network is not None and self.data is not None
        return not corrected and (safe or kind == "safetensors")

    def give_room(self) -> None:
        """Matching and averaging need the room that the network's weights take."""
        if self.network is not None:
            release(self.network)

    def read(
        self, paths: Sequence[str | Path], spec: PermutationSpec | None
    ) -> tuple[Checkpoint, ...]:
        """The files, checked against one another and against what is known of the network."""
        expected: Any = None
        if spec is not None:
            expected = spec.tensors
        elif self.network is not None:
            expected = self.network.state_dict()
        files = self.files or self._files(paths, expected)
        names = [str(file.path) for file in files]
        _check_alike([file.state_dict for file in files], names)
        if spec is not None:
            for file, name in zip(files, names, strict=True):
                spec.check_state(file.state_dict, name, finite=True)
        return files

    def _files(
        self, paths: Sequence[str | Path], expected: Collection[str] | None
    ) -> tuple[Checkpoint, ...]:
        """The files as they are, under the names that are expected."""
        return read_inputs(
            paths,
            expected,
            weights=self.options.select,
            prefix=self.options.prefix,
            unsafe=self.options.unsafe,
            fallbacks=self.fallbacks,
            progress=self.options.progress,
        )


def _check_alike(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> None:
    """Models of one architecture; if only their heads differ, say what merges those."""
    try:
        check_alike(states, names)
    except StateDictError as error:
        layer = different_heads(states)
        if not layer:
            raise
        raise StateDictError(
            f"{error}; if {layer!r} is the head of classifiers of different label sets, heads='concatenate' "
            "(--heads concatenate) keeps all their classes"
        ) from error
