"""Which groups have signs or scales: one unknown exponent for each value.

Multiply what writes a unit by c.  Then every value that carries the unit is multiplied by a power of c, and every
operation says how the powers of its results follow from those of its operands: copies keep them, products add them,
summands must have the same, a contraction must cancel them, ``relu`` keeps them for c > 0 and ``tanh`` for c = −1, and
what is neither forces them to be 0.  These are linear equations, over the rational numbers for scales and modulo 2 for
signs; their solutions on the tensors of the state are the symmetries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Literal, final

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.carrying import Carrying
from lightning_rebasin.symmetry.continuous.operations import Step, steps_of
from lightning_rebasin.symmetry.continuous.systems import Equations, Key
from lightning_rebasin.symmetry.spec.values import Group
from lightning_rebasin.symmetry.trace.tape import Tape

NumberKind = Literal["sign", "scale"]
#: ``f(c·x) = c·f(x)`` for c > 0.
HOMOGENEOUS = ops.names(
    "relu leaky_relu abs threshold max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d",
    "adaptive_max_pool2d _adaptive_avg_pool2d mkldnn_max_pool2d max_pool2d amax amin max min maximum minimum",
    "upsample_nearest2d upsample_bilinear2d prelu _prelu_kernel rrelu adaptive_avg_pool2d",
)
#: ``f(−x) = −f(x)``.
ODD = ops.names(
    "tanh sin asin atan asinh sinh erf sign tan avg_pool2d avg_pool3d _adaptive_avg_pool2d adaptive_avg_pool2d",
    "upsample_nearest2d upsample_bilinear2d",
)
#: ``f(−x) = f(x)``.
EVEN = ops.names("abs cos cosh")
#: Exponents of units that are raised to a power, by operation.
POWERS = {
    "aten.square": Fraction(2),
    "aten.sqrt": Fraction(1, 2),
    "aten.rsqrt": Fraction(-1, 2),
    "aten.reciprocal": Fraction(-1),
}


@final
class ExponentWalk:
    """One group on its way through all tapes.

    Args:
        group: The group.
        kind: Whether its units are multiplied by −1 or by a positive number.
    """

    def __init__(self, group: Group, kind: NumberKind) -> None:
        self._group = group
        self._sign = kind == "sign"
        self._equations = Equations(2 if self._sign else 0)
        self._tensors: dict[str, None] = {}
        #: The first operation that forces an exponent to be 0.
        self.limit = ""

    def walk(
        self, tapes: Sequence[tuple[Tape, Carrying]]
    ) -> list[dict[str, Fraction]]:
        """Go through all tapes.

        Returns:
            For each independent symmetry the exponent of every tensor that changes.
        """
        for step in steps_of(tapes, self._group.id, self._group.size):
            self._meet(step)
        names: list[Key] = list(self._tensors)
        found = []
        for solution in self._equations.solutions(names):
            found.append({str(name): e for name, e in solution.items() if e})
        return [solution for solution in found if solution]

    def _key(self, step: Step, value: int) -> Key:
        tensor = step.value(value)
        if tensor.origin == "state":
            self._tensors[tensor.name] = None
            return tensor.name
        return (step.number, value)

    def _meet(self, step: Step) -> None:
        op = step.node.op
        if any(not self._whole(step, value) for value in step.carriers):
            self._nothing(step)
            return
        handler = _HANDLERS.get(op)
        if handler is not None:
            handler(self, step)
        elif op in POWERS or op == "aten.pow":
            self._raised(step)
        elif op in (ODD if self._sign else HOMOGENEOUS):
            self._kept(step)
        elif self._sign and op in EVEN:
            # Whatever the sign was, it is gone.
            self._zero(step, step.results)
        else:
            self._nothing(step)

    def _whole(self, step: Step, value: int) -> bool:
        seat = step.seat(value)
        return seat is None or seat.axes == 1

    # ---- equations

    def _zero(self, step: Step, values: Iterable[int]) -> None:
        for value in values:
            self.limit = self.limit or step.name
            self._equations.zero(self._key(step, value))

    def _nothing(self, step: Step) -> None:
        """The operation is neither odd nor homogeneous."""
        self._zero(step, (*step.carriers, *step.results))

    def _equal(self, step: Step, values: Sequence[int]) -> None:
        keys = [self._key(step, value) for value in values]
        for key in keys[1:]:
            if key != keys[0]:
                self._equations.add({keys[0]: 1, key: -1})

    def _kept(self, step: Step) -> None:
        """What comes out changes as what went in; units that are summed away must not change."""
        if step.carriers and not step.results:
            self._zero(step, step.carriers)
            return
        self._equal(step, (*step.carriers, *step.results))

    def _added(self, step: Step) -> None:
        beside = step.others and step.node.op not in ("aten.cat", "aten.stack")
        if beside or step.has_added_number():
            self._nothing(step)
            return
        self._kept(step)

    def _multiplied(self, step: Step) -> None:
        """Exponents add; those of a divisor are subtracted."""
        row: dict[Key, int | Fraction] = {}
        divisor = step.ref("other") if step.node.op == "aten.div" else None
        first = step.ref("self")
        for value in (first, step.ref("other")):
            if value is None or step.seat(value) is None:
                continue
            key = self._key(step, value)
            sign = -1 if value == divisor and value != first else 1
            row[key] = row.get(key, 0) + sign
        for value in step.results:
            self._equations.add({**row, self._key(step, value): -1})

    def _raised(self, step: Step) -> None:
        exponent = POWERS.get(step.node.op)
        if exponent is None:
            given = step.number_argument("exponent", 0)
            whole = (
                isinstance(given, int | float) and float(given).is_integer()
            )
            exponent = Fraction(int(given)) if whole and given else None
        odd_denominator = exponent is None or exponent.denominator % 2
        if exponent is None or (self._sign and not odd_denominator):
            self._nothing(step)
            return
        key = self._key(step, step.carriers[0])
        for value in step.results:
            self._equations.add({key: exponent, self._key(step, value): -1})

    def _contracted(self, step: Step) -> None:
        left, right, added = ops.CONTRACTED[step.node.op]
        pair = [
            self._key(step, value)
            for value in (step.carried(left), step.carried(right))
            if value is not None
        ]
        addend = step.carried(added)
        row: dict[Key, int | Fraction] = {}
        for key in pair:
            row[key] = row.get(key, 0) + 1
        if not step.results:
            self._equations.add(row)
            return
        plain_addend = step.ref(added) is not None and addend is None
        if plain_addend:
            self._nothing(step)
            return
        for value in step.results:
            self._equations.add({**row, self._key(step, value): -1})
        if addend is not None:
            self._equal(step, (addend, *step.results))

    def _attended(self, step: Step) -> None:
        pair = [step.carried("query"), step.carried("key")]
        row: dict[Key, int | Fraction] = {}
        for value in pair:
            if value is not None:
                key = self._key(step, value)
                row[key] = row.get(key, 0) + 1
        self._equations.add(row)
        given = step.carried("value")
        if given is None:
            self._zero(step, step.results)
        else:
            self._equal(step, (given, *step.results))

    def _batch_normed(self, step: Step) -> None:
        """ε stands beside the variance, so the input must not change; the affine part may."""
        value = step.carried("input")
        affine = [step.carried(name) for name in ("weight", "bias")]
        written = [number for number in affine if number is not None]
        fixed = [n for n in step.carriers if n not in written]
        self._zero(step, fixed)
        # Behind the first result stand statistics.
        result = [n for n in step.results if n == step.node.outputs[0]]
        rest = [n for n in step.results if n not in result]
        self._zero(step, rest)
        if value is None or len(written) < 2:
            self._zero(step, (*written, *result))
            return
        self._equal(step, (*written, *result))


Handler = Callable[[ExponentWalk, Step], None]


def _handlers() -> dict[str, Handler]:
    families: list[tuple[Iterable[str], Handler]] = [
        (ops.COPIES, ExponentWalk._kept),
        (ops.REDUCTIONS, ExponentWalk._kept),
        (ops.SUMS, ExponentWalk._added),
        (ops.PRODUCTS, ExponentWalk._multiplied),
        (ops.CONTRACTED, ExponentWalk._contracted),
        (ops.ATTENTION, ExponentWalk._attended),
        (ops.BATCH_NORMS, ExponentWalk._batch_normed),
    ]
    found: dict[str, Handler] = {}
    for names, handler in families:
        found.update(dict.fromkeys(names, handler))
    return found


_HANDLERS = _handlers()
