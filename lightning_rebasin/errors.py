"""Every exception and warning of the package.

One base class, :class:`RebasinError`, catches all of them.  Each class says which kind of thing was wrong; each message
names the culprit (tensor, file or option) and what to do about it.
"""


class RebasinError(Exception):
    """Base class of every error that this package raises on purpose."""


class SpecError(RebasinError, ValueError):
    """A permutation spec is malformed, or does not belong to what it was used with."""


class TraceError(RebasinError, RuntimeError):
    """The model could not be run on the example input, so its symmetries could not be inferred."""


class EquivalenceError(RebasinError, ValueError):
    """A permuted network does not compute the same function; nothing was written."""


class TransformError(RebasinError, ValueError):
    """A tensor is not an element of its symmetry group, its kind is unknown, or it belongs to another spec."""


class PermutationError(TransformError):
    """An index tensor is not a permutation, or belongs to another spec."""


class StateDictError(RebasinError, ValueError):
    """Two sets of weights (or weights and a spec) do not fit: missing, extra or differently shaped tensors."""


class NonFiniteError(RebasinError, ValueError):
    """A tensor holds NaN or infinity where a finite number is needed."""


class AssignmentError(RebasinError, ValueError):
    """A linear assignment problem was ill-posed (not square, empty, unknown solver)."""


class DataError(RebasinError, ValueError):
    """A data set or data loader is missing, empty or malformed."""


class CheckpointError(RebasinError, ValueError):
    """A checkpoint file cannot be read: missing, truncated, foreign or hostile."""


class OutputError(RebasinError, OSError):
    """A result cannot be written: the folder is missing or read-only, or the file exists already."""


class ConfigurationError(RebasinError, ValueError):
    """An option has a value that cannot work, alone or together with another."""


class MissingExtraError(RebasinError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""


class InternalError(RebasinError, RuntimeError):
    """This package contradicts itself: a bug of ours, to be reported, never swallowed."""


class RebasinWarning(UserWarning):
    """Base class of every warning of this package."""


class UntracedWarning(RebasinWarning):
    """A parameter was not touched by the traced forward pass, or an operation has no rule; it stays pinned."""


class DeclarationWarning(RebasinWarning):
    """A module declares a symmetry that its function does not have, or that cannot be proved; it stays pinned."""


class UnsafeLoadWarning(RebasinWarning):
    """A file was read with full unpickling because the user asked for it."""


class OptimizerStateWarning(RebasinWarning):
    """A part of an optimizer's state has no exact rule under a symmetry and was left out."""


class BarrierWarning(RebasinWarning):
    """A measured barrier needs a caveat (statistics not re-estimated, partial data, and so on)."""
