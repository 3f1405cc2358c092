"""Merging checkpoint files: read, align, prove, average, correct the statistics, write.

The first file is the reference: the others are permuted to fit it, and the output takes its names, hyper-parameters
and format.  Tensors are permuted and averaged one at a time from memory-mapped inputs; into safetensors they are also
written one at a time, into other formats at once, which takes the room of one model.  Each stage is a function of its
own, in the file that its name says.  A large merge that is killed goes on when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.checkpoints.advice import advise
from lightning_rebasin.checkpoints.align import (
    Aligned,
    align,
    load,
    prove,
)
from lightning_rebasin.checkpoints.architecture import (
    describes_network,
    network_of_folder,
)
from lightning_rebasin.checkpoints.average import average_aligned, averaged
from lightning_rebasin.checkpoints.choose import (
    Choice,
    choose,
    repeatable,
    runs_on,
)
from lightning_rebasin.checkpoints.correct import (
    Evaluate,
    correct,
    measure_models,
    own_weights,
)
from lightning_rebasin.checkpoints.fallbacks import fallbacks_of
from lightning_rebasin.checkpoints.inputs import sha256, with_names
from lightning_rebasin.checkpoints.job import Job
from lightning_rebasin.checkpoints.lazy import LazyTensors
from lightning_rebasin.checkpoints.options import MergeOptions
from lightning_rebasin.checkpoints.provenance import cosines, provenance
from lightning_rebasin.checkpoints.read import Checkpoint
from lightning_rebasin.checkpoints.report import InputFile, MergeReport
from lightning_rebasin.checkpoints.unfinished import Unfinished
from lightning_rebasin.checkpoints.write import (
    check_target,
    write_checkpoint,
)
from lightning_rebasin.merging.interpolate import (
    normalised_weights,
)
from lightning_rebasin.merging.refit.choose import Loss
from lightning_rebasin.merging.statistics import copied
from lightning_rebasin.symmetry import PermutationSpec


def merge_checkpoints(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    module: nn.Module | None = None,
    spec: PermutationSpec | None = None,
    data: Iterable[Any] | None = None,
    example: Any = None,
    evaluate: Evaluate | None = None,
    loss: Loss | None = None,
    options: MergeOptions | None = None,
    **keywords: Any,
) -> MergeReport:
    """Merge two or more checkpoint files of one architecture into one that works.

    Args:
        paths: The files; the first one is the reference that the others are permuted to fit.
        output: The file to write; see :func:`write_checkpoint` for its format.
        module: The network, a LightningModule or any other; its own weights do not matter.  With it the spec can be
            inferred, the permutation is proved before anything is written, and statistics can be corrected.  Without it
            and without a spec, a Hugging Face folder's ``config.json`` says what the network is.
        spec: What may be permuted, if there is no module, or to use another than the inferred one.
        data: Batches of training inputs, see :func:`reset_batch_norm`; iterated several times.  Where ways to merge are
            compared every pass must give the same batches, so that a loader that shuffles is read once and kept in
            memory: give a part of the data, or a loader that goes through them in order.
        example: Example input of the module (a tensor, or a tuple of arguments) if it has no
            ``example_input_array``; by default taken from ``data``.
        evaluate: Computes metrics of a network; each model, the naive average and the merged network are reported.
        loss: Given a network and a batch of ``data``, the mean loss; it decides between ways to merge where the options
            leave them open.  Without it the distance to the mean of the models' outputs decides.
        options: What to do, :class:`~lightning_rebasin.checkpoints.options.MergeOptions`.
        **keywords: Single options (``method="activation"``, ``shares=(0.3, 0.7)``, ``statistics="repair"``, ...); they
            count more than ``options``.

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
    asked = (options or MergeOptions()).changed(**keywords)
    if module is None and spec is None:
        module = _described(paths, asked, hollow=data is None)
    asked.check(
        len(paths),
        module=module is not None,
        spec=spec is not None,
        data=data is not None,
    )
    target = Path(output)
    if not asked.dry_run:
        check_target(target, force=asked.force)
    shares = normalised_weights(len(paths), asked.shares)
    job = Job(asked, _copied(module), _kept(data, asked), example, loss)
    if asked.heads == "concatenate":
        job = job.with_wide_head(paths, target)
    spec = job.spec_or_inferred(spec)
    job = replace(job, fallbacks=fallbacks_of(job.network, spec))
    job.give_room()
    files = job.read(paths, spec)
    job, spec = job.with_untied(spec)
    states = job.mixed_states(files, shares)
    spec = None if spec is None else spec.pin_identical_buffers(*states)
    states = job.in_gauge(spec, states)
    work = job.unfinished(target, files, states, spec)
    aligned, choice = _align(job, spec, states, shares, work)
    method = asked.without_data if choice is None else choice.method
    if method == "none":
        shares = (1.0, *(0.0 for _ in shares[1:]))
    one_by_one = evaluate is None and job.writes_one_by_one(target, files[0])
    merged, done, variances = _merged(
        job, states, aligned, choice, shares=shares, one_by_one=one_by_one
    )
    evaluation = measure_models(
        job.evaluation(evaluate),
        job.network,
        files,
        states=states,
        shares=shares,
        merged=merged,
    )
    inputs = _inputs(files, shares)
    dropped: tuple[str, ...] = ()
    if not asked.dry_run:
        history = provenance(
            inputs,
            method,
            done,
            aligned,
            spec,
            heads=job.heads,
            untied=job.untied,
        )
        dropped = _write(target, files[0], merged, history, job=job, work=work)
    report = MergeReport(
        inputs=inputs,
        output=None if asked.dry_run else target,
        method=method,
        statistics=done,
        permutations=aligned.permutations,
        matches=aligned.matches,
        many=aligned.many,
        errors=aligned.errors,
        cosines=tuple(
            cosines(job.trunks(states), aligned, progress=asked.progress)
        ),
        evaluation=evaluation,
        variances=variances,
        batch_norms=sum(n.endswith(".running_var") for n in states[0]),
        dropped=dropped,
        spec=spec,
        seconds=time.perf_counter() - begin,
        data=asked.sources,
        heads=job.heads,
        untied=job.untied,
    )
    if choice is not None:
        report = _with_choice(report, choice)
    return replace(report, advice=advise(report))


def _described(
    paths: Sequence[str | Path], options: MergeOptions, *, hollow: bool
) -> nn.Module | None:
    """The network of the first Hugging Face folder, if that is what the first file is."""
    needed = bool(paths) and options.matches
    if not needed or not describes_network(Path(paths[0])):
        return None
    # Other kinds of symmetry are proved with weights before any file is read.
    bare = hollow and options.kinds == "permutation"
    return network_of_folder(Path(paths[0]), hollow=bare)


def _copied(module: nn.Module | None) -> nn.Module | None:
    """A private copy of the network, whose weights the stages overwrite."""
    return None if module is None else copied(module)


def _kept(
    data: Iterable[Any] | None, options: MergeOptions
) -> Iterable[Any] | None:
    """Batches that are the same each time, if ways to merge are compared on them."""
    if data is None or not options.measures:
        return data
    return repeatable(data)


def _with_choice(report: MergeReport, choice: Choice) -> MergeReport:
    """What was tried, and how the layers were refitted if a refit won."""
    report = replace(report, trials=choice.trials, criterion=choice.criterion)
    fit = choice.refit
    if fit is None or report.statistics != "refit":
        return report
    return replace(report, fits=fit.layers, left=fit.left)


def _align(
    job: Job,
    spec: PermutationSpec | None,
    states: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    work: Unfinished | None,
) -> tuple[Aligned, Choice | None]:
    """Match and prove, if that was asked for; by measurement where a choice was left."""
    options, choice = job.options, None
    network, data = job.network, job.data
    if network is not None and data is not None and options.measures:
        load(network, states[0])
        measured = runs_on(network, data)
    else:
        measured = False
    if measured and network is not None and data is not None:
        choice = choose(
            network,
            spec,
            states,
            data,
            options=options,
            shares=shares,
            loss=job.loss,
        )
        aligned = choice.aligned
    elif options.matches and spec is not None:
        aligned = align(
            spec,
            states,
            options.without_data,
            options.many,
            shares,
            network=network,
            data=data,
            seed=options.seed,
            progress=options.progress,
            journal=None if work is None else work.journal,
        )
    else:
        return Aligned((None,) * len(states)), None
    errors = prove(network, states, aligned.permutations, data, job.example)
    job.give_room()
    return replace(aligned, errors=errors), choice


def _merged(
    job: Job,
    states: Sequence[Mapping[str, Tensor]],
    aligned: Aligned,
    choice: Choice | None,
    *,
    shares: Sequence[float],
    one_by_one: bool,
) -> tuple[Mapping[str, Tensor], str, tuple[float, float] | None]:
    """The merged weights, what was done to them, and REPAIR's variance ratios."""
    if one_by_one:
        shown = job.options.progress and not job.options.dry_run
        lazy = averaged(states, aligned.permutations, shares, progress=shown)
        return lazy, "none", None
    merged = average_aligned(
        states, aligned.permutations, shares, progress=job.options.progress
    )
    statistics: str = job.options.statistics
    if choice is not None:
        if choice.correction == "refit" and choice.refit is not None:
            return own_weights(choice.refit.module, merged), "refit", None
        statistics = choice.correction
    return correct(
        job.network,
        merged,
        states,
        aligned,
        shares,
        statistics=statistics,
        data=job.data,
    )


def _inputs(
    files: Sequence[Checkpoint], shares: Sequence[float]
) -> tuple[InputFile, ...]:
    found = []
    for file, share in zip(files, shares, strict=True):
        digest = sha256(file.path)
        found.append(
            InputFile(file.path, digest, file.format, share, file.filled)
        )
    return tuple(found)


def _write(
    target: Path,
    first: Checkpoint,
    merged: Mapping[str, Tensor],
    history: Mapping[str, Any],
    *,
    job: Job,
    work: Unfinished | None,
) -> tuple[str, ...]:
    """Write the output in the names and format of the first file; returns what of its metadata was dropped."""
    # Files may lack the second name of a tied weight; an untied one is written under both.
    like = with_names(first, job.untied, job.fallbacks)
    kept = [name for name in merged if name in like.names]
    dropped = write_checkpoint(
        target,
        LazyTensors.of(merged).part(kept),
        like=like,
        provenance=history,
        force=job.options.force,
        build_in=None if work is None else work.output,
        untied=bool(job.untied),
    )
    if work is not None:
        work.remove()
    return dropped
