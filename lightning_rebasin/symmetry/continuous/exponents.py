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


#: Coefficients of exponents that add up to 0.
Row = dict[Key, int | Fraction]


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
        op = step.op
        for value in step.carriers:
            if not self._whole(step, value):
                self._nothing(step)
                return
        keeping = ODD if self._sign else HOMOGENEOUS
        handler = _HANDLERS.get(op)
        if handler is not None:
            handler(self, step)
        elif op in POWERS or op == "aten.pow":
            self._raised(step)
        elif op in keeping:
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
        if not step.carriers or not step.results:
            # Units that are made of integers, or of constants, cannot change either.
            self._zero(step, (*step.carriers, *step.results))
            return
        self._equal(step, (*step.carriers, *step.results))

    def _added(self, step: Step) -> None:
        beside = step.others and step.op not in ("aten.cat", "aten.stack")
        if beside or step.has_added_number():
            self._nothing(step)
            return
        self._kept(step)

    def _multiplied(self, step: Step) -> None:
        """Exponents add; those of a divisor are subtracted."""
        first, second = step.carried("self"), step.carried("other")
        row: Row = {}
        if first is not None:
            self._count(row, step, first, 1)
        if second is not None:
            divides = step.op == "aten.div" and second != first
            sign = -1 if divides else 1
            self._count(row, step, second, sign)
        self._results_have(step, row)

    def _count(
        self, row: Row, step: Step, value: int, coefficient: int
    ) -> None:
        """Add a value's exponent to a row."""
        key = self._key(step, value)
        before = row.get(key, 0)
        row[key] = before + coefficient

    def _results_have(self, step: Step, row: Row) -> None:
        """Every result has the exponent that a row adds up to."""
        for value in step.results:
            key = self._key(step, value)
            self._equations.add({**row, key: -1})

    def _raised(self, step: Step) -> None:
        exponent = POWERS.get(step.op)
        if exponent is None:
            given = step.number_argument("exponent", 0)
            exponent = _whole_power(given)
        if exponent is None:
            self._nothing(step)
            return
        # A square root has no sign.
        even_root = exponent.denominator % 2 == 0
        if self._sign and even_root:
            self._nothing(step)
            return
        base = step.carriers[0]
        key = self._key(step, base)
        self._results_have(step, {key: exponent})

    def _contracted(self, step: Step) -> None:
        left, right, added = ops.CONTRACTED[step.op]
        row = self._product(step, (left, right))
        if not step.results:
            self._equations.add(row)
            return
        addend = step.carried(added)
        given = step.ref(added)
        if given is not None and addend is None:
            # A bias that does not change beside a product that does.
            self._nothing(step)
            return
        self._results_have(step, row)
        if addend is not None:
            self._equal(step, (addend, *step.results))

    def _product(self, step: Step, arguments: Sequence[str]) -> Row:
        """The exponents of some arguments, added up."""
        row: Row = {}
        for name in arguments:
            value = step.carried(name)
            if value is not None:
                self._count(row, step, value, 1)
        return row

    def _attended(self, step: Step) -> None:
        scores = self._product(step, ("query", "key"))
        # A softmax follows: they must not change.
        self._equations.add(scores)
        given = step.carried("value")
        if given is None:
            self._zero(step, step.results)
        else:
            self._equal(step, (given, *step.results))

    def _batch_normed(self, step: Step) -> None:
        """ε stands beside the variance, so the input must not change; the affine part may."""
        gain, shift = step.carried("weight"), step.carried("bias")
        affine = {gain, shift}
        for value in step.carriers:
            if value not in affine:
                self._zero(step, (value,))
        output = step.node.outputs[0]
        scaled = []
        for value in step.results:
            if value == output:
                scaled.append(value)
            else:
                # Behind the first result stand statistics.
                self._zero(step, (value,))
        written = [value for value in (gain, shift) if value is not None]
        changing = (*written, *scaled)
        normalised = step.carried("input") is not None
        if normalised and len(written) == 2:
            self._equal(step, changing)
        else:
            self._zero(step, changing)

    def _weight_normed(self, step: Step) -> None:
        """``g·v / |v|``, one length for each position along a dimension."""
        direction, gain = step.carried("v"), step.carried("g")
        weight, length = step.node.outputs
        if direction is None:
            self._nothing(step)
            return
        if gain is None and not self._sign:
            # The units stand along what the length is a sum over.
            self._nothing(step)
            return
        # The length of the direction cancels, its sign does not.
        factors = ("v", "g") if self._sign else ("g",)
        row = self._product(step, factors)
        self._equations.add({**row, self._key(step, weight): -1})
        if length in step.results and not self._sign:
            self._equal(step, (direction, length))


def _whole_power(given: object) -> Fraction | None:
    """An exponent as a whole number other than 0; ``None`` if it is something else."""
    if not isinstance(given, int | float):
        return None
    number = float(given)
    if not number.is_integer() or number == 0:
        return None
    return Fraction(int(number))


Handler = Callable[[ExponentWalk, Step], None]
_HANDLERS: dict[str, Handler] = ops.by_operation(
    [
        (ops.COPIES, ExponentWalk._kept),
        (ops.REDUCTIONS, ExponentWalk._kept),
        (ops.SUMS, ExponentWalk._added),
        (ops.PRODUCTS, ExponentWalk._multiplied),
        (ops.CONTRACTED, ExponentWalk._contracted),
        (ops.ATTENTION, ExponentWalk._attended),
        (ops.BATCH_NORMS, ExponentWalk._batch_normed),
        (ops.WEIGHT_NORMS, ExponentWalk._weight_normed),
    ]
)
