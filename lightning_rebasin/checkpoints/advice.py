"""Sentences that tell a person what the numbers of a merge mean.

What was measured decides; how alike the weights are only speaks where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lightning_rebasin.checkpoints.report import MergeReport
from lightning_rebasin.matching.search.policy import SAME_BASIN
from lightning_rebasin.symmetry.spec.untied import untied_names

#: Below this cosine after matching a barrier is likely.
_WEAK = 0.5
#: A loss is clearly above the ends' mean by this share of it.
_CLEAR_LOSS = 0.1
#: A refit behind which this share of the outputs' variance is missing has lost much.
_FAR = 0.5
NAIVE, MERGED, ENSEMBLE = "naive average", "merged", "ensemble"


def advise(report: MergeReport) -> tuple[str, ...]:
    """What a person should know or do, most important first."""
    parts = (
        _heads,
        _untied,
        _basin,
        _matching,
        _chosen,
        _statistics,
        _measured,
        _certainty,
        _proof,
    )
    sentences: list[str] = []
    for part in parts:
        sentences += part(report)
    return tuple(sentences)


def _heads(report: MergeReport) -> Iterator[str]:
    """Whose outputs are whose, and how to load them."""
    heads = report.heads
    if heads is None:
        return
    yield (
        f"the head {heads.layer or 'of the network'!r} has all classes ({heads.described(report.names)}): labels are "
        "numbered like the outputs"
    )
    if heads.parameter:
        yield f"the hyper-parameter {heads.parameter!r} is {heads.total} in the output, so that it loads as it is"
    else:
        yield (
            f"no hyper-parameter is known to be the number of classes: make the network with {heads.total} outputs "
            "yourself to load the output"
        )


def _untied(report: MergeReport) -> Iterator[str]:
    """Which network loads the output."""
    if report.untied:
        names = ", ".join(map(repr, report.untied))
        yield (
            f"{names} has weights of its own in the output: load it into lightning_rebasin.untie(module, "
            f"[{names}]), a tied network would overwrite one of the two (the config.json of a model folder says so)"
        )
    elif report.spec is not None and report.spec.untied is not None:
        names = ", ".join(
            map(repr, untied_names(report.spec, report.spec.untied))
        )
        yield (
            f"{names} is tied, which stands in the way of larger symmetries: untie=True (--untie) allows them, and "
            "gives it weights of its own in the output"
        )


def _silent(report: MergeReport) -> bool:
    """Whether measurements say more than the cosine of the weights can."""
    return bool(report.trials) or MERGED in report.evaluation


def _basin(report: MergeReport) -> Iterator[str]:
    if _silent(report):
        return
    first, *others = report.names
    for i, (name, (before, _)) in enumerate(
        zip(others, report.cosines, strict=True)
    ):
        found_same = i < len(report.matches) and report.matches[i].same_basin
        same = before >= SAME_BASIN or found_same
        if same and report.matched:
            yield (
                f"{name} is in the basin of {first} already (cosine {before:.2f}): plain averaging (--method average) "
                "is right, matching has nothing to win"
            )
        elif not same and report.method == "average":
            yield (
                f"{name} was not trained from the same start as {first} (cosine {before:.2f}): plain averaging will "
                "most likely break the network; use --method weight, or give data (--data) to have it measured"
            )


def _matching(report: MergeReport) -> Iterator[str]:
    weak = []
    for name, (before, after), permutation in zip(
        report.names[1:], report.cosines, report.permutations[1:], strict=True
    ):
        if before >= SAME_BASIN or permutation is None:
            continue
        groups = permutation.spec.groups.values()
        units = sum(group.members for group in groups)
        moved = sum(
            permutation.moved[group.id] * group.members for group in groups
        )
        yield (
            f"matching {name} raised its cosine from {before:.2f} to {after:.2f}, moving "
            f"{moved / max(units, 1):.0%} of the permutable units"
        )
        weak += [after] if after < _WEAK else []
    if weak and not _silent(report):
        yield (
            f"a cosine of {min(weak):.2f} is low: a barrier may remain; with data (--data) the alignment is chosen by "
            "measurement and the layers are refitted, and lightning-rebasin barrier measures what remains"
        )


def _chosen(report: MergeReport) -> Iterator[str]:
    """What the comparison decided."""
    scores = {trial.method: trial.scores for trial in report.trials}
    if report.method not in scores:
        return
    correction = "naive" if report.statistics == "none" else report.statistics
    score = scores[report.method].get(correction, math.nan)
    combinations = sum(len(row) for row in scores.values())
    yield (
        f"of {combinations} ways to merge, alignment by {report.method} with {correction} was best on held-out data "
        f"({report.criterion} {score:.3g})"
    )
    if report.criterion == "distance" and score > _FAR:
        yield (
            f"the merged network misses {score:.0%} of the variance of the models' mean outputs: it does not stand in "
            "for them"
        )
    if report.data:
        beyond = f"the data came from {' and '.join(report.data)}: what a model knows beyond them may be lost"
        if len(report.data) == 1:
            beyond += "; give --data once per model if they were trained on different data"
        yield beyond


def _statistics(report: MergeReport) -> Iterator[str]:
    uncorrected = report.batch_norms and report.statistics == "none"
    if uncorrected and not report.trials and report.method != "none":
        yield (
            f"{report.batch_norms} batch norms kept averaged running statistics, which belong to no network: give "
            "training data (--data) to have them estimated anew"
        )


def _measured(report: MergeReport) -> Iterator[str]:
    loss = _loss_name(report)
    if loss is None or MERGED not in report.evaluation:
        if not _silent(report) and report.method != "none":
            yield "no data was given, so nothing says how good the merged network is: evaluate it before you use it"
        return
    rows = {
        n: row[loss] for n, row in report.evaluation.items() if loss in row
    }
    merged = rows[MERGED]
    if not math.isfinite(merged):
        yield f"the {loss} of the merged network is {merged}: it does not work, do not use it"
        return
    ends = {
        n: rows[n]
        for n in report.names
        if math.isfinite(rows.get(n, math.nan))
    }
    if ends:
        yield from _compared(report, loss, rows, ends)


def _compared(
    report: MergeReport,
    loss: str,
    rows: Mapping[str, float],
    ends: Mapping[str, float],
) -> Iterator[str]:
    """What the merged network is worth beside the ends, whose losses are numbers."""
    merged = rows[MERGED]
    best = min(ends, key=lambda name: ends[name])
    together = ""
    if ENSEMBLE in rows:
        together = (
            f"; all models together, as an ensemble: {rows[ENSEMBLE]:.4g}"
        )
    yield f"the best single model is {best} ({loss} {ends[best]:.4g}); merged: {merged:.4g}{together}"
    if merged <= ends[best]:
        yield "the merged network is better than every single one"
        return
    mean = sum(ends.values()) / len(ends)
    if merged - mean > _CLEAR_LOSS * abs(mean):
        yield f"a barrier of {merged - mean:.3g} ({loss} above the ends' mean) remains: {_remedy(report, rows)}"
    if report.statistics == "refit":
        yield (
            f"on these data {best} alone is better than the merged network: keep it, unless the others know something "
            "that these data do not ask for"
        )


def _loss_name(report: MergeReport) -> str | None:
    """The first metric that is called a loss."""
    for row in report.evaluation.values():
        for name in row:
            if "loss" in name.lower():
                return name
    return None


def _remedy(report: MergeReport, rows: Mapping[str, float]) -> str:
    if report.statistics != "refit" and not report.trials:
        return "leave --method and --statistics at auto with --data, so that the best way is found by measurement"
    if NAIVE in rows and rows[NAIVE] < rows[MERGED]:
        return "on these data the naive average is better, --method average --statistics none keeps it"
    return (
        "no way to merge that was tried closes it; wider networks merge better"
    )


def _certainty(report: MergeReport) -> Iterator[str]:
    for name, match in zip(report.names[1:], report.matches, strict=False):
        ends = [descent.objective for descent in match.descents]
        if len(ends) < 2 or match.gain <= 0:
            continue
        near = sum(end >= match.objective - 0.01 * match.gain for end in ends)
        if near == 1:
            yield (
                f"{name}: only one of {len(ends)} restarts came within 1 % of the best gain, so a better "
                "permutation may exist; activation matching (--method correlation with --data) or another --seed may "
                "find it"
            )


def _proof(report: MergeReport) -> Iterator[str]:
    if report.matched and not report.errors:
        yield (
            "the permutation was not proved on this network, because its module was not given (--module): the spec "
            "was trusted"
        )
