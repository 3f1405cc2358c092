"""Merging checkpoint files: read, align, prove, average, correct the statistics, write.

The first file is the reference: the others are permuted to fit it, and the output takes its names, hyper-parameters
and format.  Tensors are permuted and averaged one at a time from memory-mapped inputs, so that the merge itself needs
room for one model, the result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_rebasin.checkpoints.advice import MERGED, NAIVE, advise
from lightning_rebasin.checkpoints.align import (
    Aligned,
    Many,
    Method,
    align,
    average_aligned,
    example_input,
    load,
    permuted,
    prove,
    release,
)
from lightning_rebasin.checkpoints.inputs import read_inputs, sha256
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.checkpoints.report import InputFile, MergeReport
from lightning_rebasin.checkpoints.write import check_target, write_checkpoint
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.objective import inner_product
from lightning_rebasin.merging.interpolate import (
    average,
    check_alike,
    normalised_weights,
)
from lightning_rebasin.merging.repair import repair
from lightning_rebasin.merging.statistics import (
    batch_norms,
    copied,
    reset_batch_norm,
)
from lightning_rebasin.symmetry import PermutationSpec, infer_spec
from lightning_rebasin.version import __version__

Statistics = Literal["auto", "none", "reset", "repair"]
#: Metrics of a network by name.
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def merge_checkpoints(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    module: nn.Module | None = None,
    spec: PermutationSpec | None = None,
    method: Method = "weight",
    many: Many = "merge_many",
    weights: Sequence[float] | None = None,
    data: Iterable[Any] | None = None,
    example: Any = None,
    statistics: Statistics = "auto",
    evaluate: Evaluate | None = None,
    select: str = "state_dict",
    prefix: str | Mapping[str, str] | None = None,
    unsafe: bool = False,
    seed: int = 0,
    dry_run: bool = False,
    force: bool = False,
    progress: bool = False,
) -> MergeReport:
    """Merge two or more checkpoint files of one architecture into one that works.

    Args:
        paths: The files; the first one is the reference that the others are permuted to fit.
        output: The file to write; see :func:`write_checkpoint` for its format.
        module: The network, a LightningModule or any other; its own weights do not matter.  With it the spec can be
            inferred, the permutation is proved before anything is written, and statistics can be corrected.
        spec: What may be permuted, if there is no module, or to use another than the inferred one.
        method: ``"weight"`` or ``"activation"`` matching; ``"average"`` averages the models as they are (right for
            fine-tunes of one base); ``"none"`` keeps the first model (to correct its statistics or change its format).
        many: How three or more models are matched by weights: each in turn to the mean of the others, or all at once
            (C²M³).
        weights: Share of each model; equal if omitted.
        data: Batches of training inputs, see :func:`reset_batch_norm`; iterated several times.
        example: Example input of the module (a tensor, or a tuple of arguments) if it has no
            ``example_input_array``; by default taken from ``data``.
        statistics: ``"reset"`` re-estimates batch-norm statistics, ``"repair"`` also corrects all other layers,
            ``"auto"`` resets if there are batch norms and data.
        evaluate: Computes metrics of a network; each model, the naive average and the merged network are reported.
        select: Which weights of the files, as ``weights`` of :func:`read_checkpoint`.
        prefix: What to do with prefixes, see :func:`read_checkpoint`.
        unsafe: Unpickle in full what torch's safe loader refuses.
        seed: Seeds the matching.
        dry_run: Do everything but write.
        force: Overwrite an existing output.
        progress: Show progress bars.

    Returns:
        The report, with advice.

    Raises:
        CheckpointError: A file cannot be read.
        StateDictError: The models do not have the same tensors.
        NonFiniteError: A model holds NaN or infinity.
        EquivalenceError: A permuted model computes another function; nothing was written.
        ConfigurationError: Something needed is missing, or options contradict each other.
        OutputError: The output exists or cannot be written.
    """
    begin = time.perf_counter()
    output = Path(output)
    _check_options(
        paths, method, statistics, module=module, spec=spec, data=data
    )
    if not dry_run:
        check_target(output, force=force)
    shares = normalised_weights(len(paths), weights)
    network = None if module is None else copied(module)
    spec = _spec(network, spec, method, example, data)
    if network is not None:
        release(
            network
        )  # until its weights are needed: matching and averaging need the room
    expected = (
        spec.tensors
        if spec is not None
        else None
        if network is None
        else network.state_dict()
    )
    files = read_inputs(
        paths,
        expected,
        weights=select,
        prefix=prefix,
        unsafe=unsafe,
        progress=progress,
    )
    states = [file.state_dict for file in files]
    _check_states(files, spec)
    spec = None if spec is None else spec.pin_identical_buffers(*states)

    aligned = Aligned((None,) * len(files))
    if method in ("weight", "activation"):
        assert spec is not None
        aligned = align(
            spec,
            states,
            method,
            many,
            shares,
            network=network,
            data=data,
            seed=seed,
            progress=progress,
        )
        aligned = replace(
            aligned,
            errors=prove(network, states, aligned.permutations, data, example),
        )
        if network is not None:
            release(network)
    shares_used = (
        shares if method != "none" else (1.0, *(0.0 for _ in shares[1:]))
    )
    merged = average_aligned(
        states, aligned.permutations, shares_used, progress=progress
    )
    merged, done, variances = _correct(
        network,
        merged,
        states,
        aligned,
        shares_used,
        statistics=statistics,
        data=data,
    )
    evaluation = _evaluate(evaluate, network, files, shares_used, merged)

    inputs = tuple(
        InputFile(file.path, sha256(file.path), file.format, share)
        for file, share in zip(files, shares_used, strict=True)
    )
    dropped: tuple[str, ...] = ()
    if not dry_run:
        kept = {
            name: tensor
            for name, tensor in merged.items()
            if name in files[0].names
        }
        provenance = _provenance(inputs, method, done, aligned, spec)
        dropped = write_checkpoint(
            output, kept, like=files[0], provenance=provenance, force=force
        )
    report = MergeReport(
        inputs=inputs,
        output=None if dry_run else output,
        method=method,
        statistics=done,
        permutations=aligned.permutations,
        matches=aligned.matches,
        many=aligned.many,
        errors=aligned.errors,
        cosines=tuple(_cosines(states, aligned)),
        evaluation=evaluation,
        variances=variances,
        batch_norms=sum(name.endswith(".running_var") for name in states[0]),
        dropped=dropped,
        spec=spec,
        seconds=time.perf_counter() - begin,
    )
    return replace(report, advice=advise(report))


def _check_options(
    paths: Sequence[str | Path],
    method: str,
    statistics: str,
    *,
    module: nn.Module | None,
    spec: PermutationSpec | None,
    data: Iterable[Any] | None,
) -> None:
    if method not in ("weight", "activation", "average", "none"):
        raise ConfigurationError(
            f"method must be 'weight', 'activation', 'average' or 'none', got {method!r}"
        )
    if statistics not in ("auto", "none", "reset", "repair"):
        raise ConfigurationError(
            f"statistics must be 'auto', 'none', 'reset' or 'repair', got {statistics!r}"
        )
    if len(paths) < (1 if method == "none" else 2):
        raise ConfigurationError(
            f"{len(paths)} file given: merging needs two or more"
        )
    if method in ("weight", "activation") and module is None and spec is None:
        raise ConfigurationError(
            f"method {method!r} needs to know what may be permuted: give the module (--module or --config) or a spec "
            "(--spec)"
        )
    if module is None and (
        method == "activation" or statistics in ("reset", "repair")
    ):
        raise ConfigurationError(
            "activation matching, reset and repair run the network: give the module (--module)"
        )
    if data is None and (
        method == "activation" or statistics in ("reset", "repair")
    ):
        raise ConfigurationError(
            "activation matching, reset and repair need data (--data)"
        )


def _spec(
    network: nn.Module | None,
    spec: PermutationSpec | None,
    method: Method,
    example: Any,
    data: Iterable[Any] | None,
) -> PermutationSpec | None:
    if spec is not None or method not in ("weight", "activation"):
        return spec
    assert network is not None
    return infer_spec(network, *example_input(network, example, data))


def _check_states(
    files: Sequence[Checkpoint], spec: PermutationSpec | None
) -> None:
    check_alike(
        [file.state_dict for file in files], [str(file.path) for file in files]
    )
    if spec is not None:
        for file in files:
            spec.check_state(file.state_dict, str(file.path), finite=True)


def _correct(
    network: nn.Module | None,
    merged: dict[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    aligned: Aligned,
    shares: Sequence[float],
    *,
    statistics: Statistics,
    data: Iterable[Any] | None,
) -> tuple[dict[str, Tensor], str, tuple[float, float] | None]:
    """Weights with corrected statistics, what was done, and the variance ratios."""
    if network is None or data is None or statistics == "none":
        return merged, "none", None
    load(network, merged)
    if statistics == "repair":
        ends = [
            {name: permuted(state, name, permutation) for name in state}
            for state, permutation in zip(
                states, aligned.permutations, strict=True
            )
        ]
        repaired = repair(network, ends, data, weights=shares)
        return (
            _weights(repaired.module, merged),
            "repair",
            repaired.variance_ratio,
        )
    if not batch_norms(network):
        return merged, "none", None
    return _weights(reset_batch_norm(network, data), merged), "reset", None


def _weights(
    module: nn.Module, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The module's weights in the precision of the files."""
    state = module.state_dict()
    return {
        name: state[name].to(tensor.dtype) for name, tensor in like.items()
    }


def _evaluate(
    evaluate: Evaluate | None,
    network: nn.Module | None,
    files: Sequence[Checkpoint],
    shares: Sequence[float],
    merged: Mapping[str, Tensor],
) -> dict[str, dict[str, float]]:
    if evaluate is None or network is None:
        return {}
    short = len({file.path.name for file in files}) == len(files)
    rows: dict[str, Mapping[str, Tensor]] = {
        file.path.name if short else str(file.path): file.state_dict
        for file in files
    }
    if len(files) > 1:
        rows[NAIVE] = average([file.state_dict for file in files], shares)
    rows[MERGED] = merged
    result = {}
    for name, state in rows.items():
        load(network, state)
        result[name] = {
            metric: float(value)
            for metric, value in evaluate(network.eval()).items()
        }
    return result


def _provenance(
    inputs: Sequence[InputFile],
    method: str,
    statistics: str,
    aligned: Aligned,
    spec: PermutationSpec | None,
) -> dict[str, Any]:
    """How the output was made: plain values and LongTensors."""
    history: dict[str, Any] = {
        "version": __version__,
        "method": method,
        "statistics": statistics,
        "inputs": [
            {
                "name": file.path.name,
                "sha256": file.sha256,
                "format": file.format,
                "weight": file.weight,
            }
            for file in inputs
        ],
    }
    if spec is not None and aligned.objectives:
        history["spec"] = json.dumps(spec.to_dict())
        history["permutations"] = [
            None if p is None else dict(p.orders) for p in aligned.permutations
        ]
        history["objectives"] = [list(pair) for pair in aligned.objectives]
    return history


def _cosines(
    states: Sequence[Mapping[str, Tensor]], aligned: Aligned
) -> list[tuple[float, float]]:
    """Cosine of each model to the first one over all floating-point weights, before and after matching."""
    names = [
        n
        for n, t in states[0].items()
        if t.is_floating_point()
        and not n.endswith(("running_mean", "running_var"))
    ]
    result = []
    for state, permutation in zip(
        states[1:], aligned.permutations[1:], strict=True
    ):
        sums = torch.zeros(4, dtype=torch.float64)
        for name in names:
            a, b = states[0][name], state[name]
            moved = permuted(state, name, permutation)
            sums += torch.tensor(
                [
                    inner_product(x, y)
                    for x, y in ((a, b), (a, moved), (a, a), (b, b))
                ]
            )
        scale = float((sums[2] * sums[3]).sqrt()) or 1.0
        result.append((float(sums[0]) / scale, float(sums[1]) / scale))
    return result
