"""Sentences that tell a person what the numbers of a merge mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning_rebasin.checkpoints.report import MergeReport

#: Cosine between two sets of weights above which they share a basin for all practical purposes (fine-tunes of one base
#: are above 0.99, independent trainings below 0.2).
SAME_BASIN = 0.8
_WEAK = 0.5
_CLEAR_LOSS = 1.1
NAIVE, MERGED = "naive average", "merged"


def advise(report: MergeReport) -> tuple[str, ...]:
    """What a person should know or do, most important first."""
    return tuple(
        sentence
        for part in (
            _basin,
            _matching,
            _statistics,
            _measured,
            _certainty,
            _proof,
        )
        for sentence in part(report)
    )


def _basin(report: MergeReport) -> Iterator[str]:
    for i, (file, (before, _)) in enumerate(
        zip(report.inputs[1:], report.cosines, strict=True)
    ):
        name, first = file.path.name, report.inputs[0].path.name
        same = before >= SAME_BASIN or (
            i < len(report.matches) and report.matches[i].same_basin
        )
        if same and report.matched:
            yield (
                f"{name} is in the basin of {first} already (cosine {before:.2f}): plain averaging (--method average) "
                "is right, matching has nothing to win"
            )
        elif not same and report.method == "average":
            yield (
                f"{name} was not trained from the same start as {first} (cosine {before:.2f}): plain averaging will "
                "most likely break the network; use --method weight"
            )


def _matching(report: MergeReport) -> Iterator[str]:
    weak = []
    for file, (before, after), permutation in zip(
        report.inputs[1:], report.cosines, report.permutations[1:], strict=True
    ):
        if before >= SAME_BASIN or permutation is None:
            continue
        units = sum(
            group.members for group in permutation.spec.groups.values()
        )
        moved = sum(
            permutation.moved[group.id] * group.members
            for group in permutation.spec.groups.values()
        )
        yield (
            f"matching {file.path.name} raised its cosine from {before:.2f} to {after:.2f}, moving "
            f"{moved / max(units, 1):.0%} of the permutable units"
        )
        weak += [after] if after < _WEAK else []
    if weak:
        yield (
            f"a cosine of {min(weak):.2f} is low: a barrier may remain; wider networks merge better, and "
            "lightning-rebasin barrier measures it"
        )


def _statistics(report: MergeReport) -> Iterator[str]:
    if (
        report.batch_norms
        and report.statistics == "none"
        and report.method != "none"
    ):
        yield (
            f"{report.batch_norms} batch norms kept averaged running statistics, which belong to no network: give "
            "training data (--data) to have them estimated anew"
        )


def _measured(report: MergeReport) -> Iterator[str]:
    loss = _loss_name(report)
    if loss is None or MERGED not in report.evaluation:
        if not report.evaluation and report.method != "none":
            yield "no data was given, so nothing says how good the merged network is: evaluate it before you use it"
        return
    rows = {}
    ends = {}
    for name, row in report.evaluation.items():
        if loss in row:
            rows[name] = row[loss]
            if name not in (NAIVE, MERGED):
                ends[name] = row[loss]
    merged = rows[MERGED]
    best = min(ends, key=lambda name: ends[name])
    yield f"the best single model is {best} ({loss} {ends[best]:.4g}); merged: {merged:.4g}"
    mean = sum(ends.values()) / len(ends)
    if merged <= ends[best]:
        yield "the merged network is better than every single one"
    elif merged > _CLEAR_LOSS * mean:
        yield f"a barrier of {merged - mean:.3g} ({loss} above the ends' mean) remains: {_remedy(report, rows)}"


def _loss_name(report: MergeReport) -> str | None:
    """The first metric that is called a loss."""
    for row in report.evaluation.values():
        for name in row:
            if "loss" in name.lower():
                return name
    return None


def _remedy(report: MergeReport, rows: Mapping[str, float]) -> str:
    if report.method == "average":
        return "match the models first (--method weight)"
    if report.batch_norms and report.statistics == "none":
        return "estimate the batch-norm statistics anew (--data)"
    if report.statistics != "repair":
        return "try --statistics repair"
    worse = NAIVE in rows and rows[NAIVE] < rows[MERGED]
    return (
        "matching did harm here, keep the better end"
        if worse
        else "the networks are too narrow; keep the better end"
    )


def _certainty(report: MergeReport) -> Iterator[str]:
    for file, match in zip(report.inputs[1:], report.matches, strict=False):
        ends = [descent.objective for descent in match.descents]
        if len(ends) < 2 or match.gain <= 0:
            continue
        near = sum(end >= match.objective - 0.01 * match.gain for end in ends)
        if near == 1:
            yield (
                f"{file.path.name}: only one of {len(ends)} restarts came within 1 % of the best gain, so a better "
                "permutation may exist; activation matching (--method activation with --data) or another --seed may "
                "find it"
            )


def _proof(report: MergeReport) -> Iterator[str]:
    if report.matched and not report.errors:
        yield (
            "the permutation was not proved on this network, because its module was not given (--module): the spec "
            "was trusted"
        )
