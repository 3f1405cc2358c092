"""Reading pickled checkpoints without running anything that is in them.

A pickle is a small program: it imports names and calls them.  :class:`RestrictedUnpickler` lets it call only a dozen
functions that rebuild tensors and plain containers.  Every other name becomes a *stand-in*, an inert class that
remembers what it was called with and does nothing: the optimizer class, loss function or callback that somebody kept in
the hyper-parameters no longer stops their weights from being read.

The pure-Python unpickler of the standard library is the base.  It is slower than the C one, but a checkpoint's pickle
holds no numbers, only the description of the tensors, and its opcodes can be overridden one by one: the ones that call,
instantiate or set attributes only do so on stand-ins and on the names allowed here.
"""

from __future__ import annotations

import collections
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

#: Deeper nesting is not a checkpoint: hashing deeply nested tuples would overflow the interpreter's own stack.
MAX_DEPTH = 200


class _StandInType(type):
    """Lets the inert classes say in whose place they are."""

    origin = "?"

    def __repr__(cls) -> str:
        return f"<stand-in for {cls.origin}>"


class StandIn(metaclass=_StandInType):
    """An object of a file whose class is not known to be safe: inert, but it remembers what the file said.

    Subclasses are made on the fly, one per name in the file; ``origin`` is that name.
    """

    origin = "?"
    #: Asked for by torch's reader of very old files; a true value would make it write a file.
    dump_patches = False

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        self.arguments = args
        self.keywords = kwargs
        self.state: Any = None
        self.mapping: dict[Any, Any] = {}
        self.sequence: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.mapping[key] = value

    def append(self, value: Any) -> None:
        """Remember an item of a list-like object."""
        self.sequence.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        """Remember items of a list-like object."""
        self.sequence.extend(values)

    def add(self, value: Any) -> None:
        """Remember a member of a set-like object."""
        self.sequence.append(value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> StandIn:
        """Calling the result of a call: another object that does nothing."""
        return type(self)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<stand-in for {self.origin}>"


def stand_in_class(module: str, name: str) -> type[StandIn]:
    """A fresh inert class that stands for ``module.name``."""
    made: Any = _StandInType(
        "StandIn", (StandIn,), {"origin": f"{module}.{name}"}
    )
    return cast(type[StandIn], made)


def is_stand_in(value: object) -> bool:
    """Whether ``value`` is a stand-in object, or the stand-in of a class or function itself."""
    return isinstance(value, StandIn) or (
        isinstance(value, type) and issubclass(value, StandIn)
    )


def _rebuild_tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *_: Any,
) -> Tensor:
    """The file's ``requires_grad`` and backward hooks are dropped."""
    # What torch.load calls itself; PyTorch leaves it without annotations.
    return torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call,no-any-return]


def _rebuild_tensor_v3(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *_: Any,
) -> Tensor:
    return torch.empty((0,), dtype=dtype).set_(
        storage._untyped_storage, offset, size, stride
    )


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _rebuild_from_type(
    function: Callable[..., Any],
    _type: Any,
    args: tuple[Any, ...],
    _state: Any,
) -> Any:
    """A tensor subclass, or a tensor with attributes: the plain tensor inside."""
    if function not in _CALLABLE:
        return stand_in_class("torch._tensor", "_rebuild_from_type_v2")(args)
    return function(*args)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _path(*parts: str) -> str:
    """Paths are kept as text: another system's path class could not even be made here."""
    if not all(isinstance(part, str) for part in parts):
        raise pickle.UnpicklingError("a path in the file is not made of text")
    return "/".join(parts)


def _bytearray(*data: bytes) -> bytearray:
    """Never ``bytearray(n)``: a few bytes of file would ask for any amount of memory."""
    return bytearray(*(item for item in data if isinstance(item, bytes)))


class _NumpyType(StandIn):
    """A NumPy dtype, of which only the code (``f8``) and the byte order are needed."""

    origin = "numpy.dtype"

    @property
    def code(self) -> str:
        text = self.arguments[0] if self.arguments else ""
        order = (
            self.state[1]
            if isinstance(self.state, tuple) and len(self.state) > 1
            else "<"
        )
        return f"{'>' if order == '>' else '<'}{text}"


#: How ``struct`` calls NumPy's codes.
_STRUCT = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"} | {
    f"{kind}{size}": code
    for kind, codes in (("i", "bhiq"), ("u", "BHIQ"))
    for size, code in zip((1, 2, 4, 8), codes, strict=True)
}


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    """A NumPy number as a Python number."""
    if isinstance(dtype, _NumpyType) and isinstance(data, bytes):
        order, code = dtype.code[0], dtype.code[1:]
        if code in _STRUCT and struct.calcsize(order + _STRUCT[code]) == len(
            data
        ):
            return struct.unpack(order + _STRUCT[code], data)[0]
    return stand_in_class("numpy", "scalar")(dtype)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("numpy", "dtype"): _NumpyType,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    **{
        (module, name): _path
        for module in ("pathlib", "pathlib._local")
        for name in (
            "Path",
            "PosixPath",
            "WindowsPath",
            "PurePath",
            "PurePosixPath",
            "PureWindowsPath",
        )
    },
}
_CALLABLE = frozenset(_ALLOWED.values())
#: Only looked at for their dtype, in files of the first torch versions; calling them is refused.
_STORAGES = frozenset(
    name
    for name in dir(torch)
    if name.endswith("Storage") and hasattr(getattr(torch, name), "_dtype")
)
_DTYPE = re.compile(
    r"(float|bfloat|complex|int|uint|bool)[0-9a-z_]*|half|double|long|short"
)


#: The standard library's unpickler in Python, whose opcodes can be overridden; its stubs show only the C one.
_Base: Any = pickle._Unpickler


# mypy cannot look into a base class that is Any.
class RestrictedUnpickler(_Base):  # type: ignore[misc]
    """Unpickler that makes tensors and plain values, and stand-ins for everything else.

    Args:
        file: Binary file to read from.
        **options: As for :class:`pickle.Unpickler`.
    """

    dispatch = dict(_Base.dispatch)  # noqa: RUF012  the base class's own name

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._classes: dict[tuple[str, str], type[StandIn]] = {}
        self._depths: dict[int, tuple[int, tuple[Any, ...]]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The allowed thing of that name, otherwise one inert class per name."""
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (
            module == "torch"
            and _DTYPE.fullmatch(name)
            and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return getattr(torch, name)
        if module == "torch" and name in _STORAGES:
            return getattr(torch, name)
        if (module, name) == ("torch.storage", "UntypedStorage"):
            # Under tensors of newer dtypes (uint16, float8), which have no storage class of their own.
            return torch.UntypedStorage
        return self._classes.setdefault(
            (module, name), stand_in_class(module, name)
        )

    def load_tuple(self) -> None:
        """``TUPLE``: any number of items."""
        self._append_tuple(tuple(self.pop_mark()))

    dispatch[pickle.TUPLE[0]] = load_tuple

    def _load_short_tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        del self.stack[-length:]
        self._append_tuple(items)

    dispatch[pickle.TUPLE1[0]] = lambda self: self._load_short_tuple(1)
    dispatch[pickle.TUPLE2[0]] = lambda self: self._load_short_tuple(2)
    dispatch[pickle.TUPLE3[0]] = lambda self: self._load_short_tuple(3)

    def _append_tuple(self, items: tuple[Any, ...]) -> None:
        depth = 1 + max(
            (
                self._depths.get(id(i), (1, ()))[0]
                for i in items
                if type(i) is tuple
            ),
            default=0,
        )
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(
                f"tuples are nested more than {MAX_DEPTH} deep"
            )
        if depth > 1:
            self._depths[id(items)] = (
                depth,
                items,
            )  # kept alive, so that its id stays its own
        self.append(items)

    def load_reduce(self) -> None:
        """``REDUCE``: call an allowed function or a stand-in."""
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        """``NEWOBJ``: make an object of an allowed class or a stand-in."""
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        """``NEWOBJ_EX``: the same with keywords."""
        keywords = self.stack.pop()
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments, keywords)

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _instantiate(self, klass: Any, arguments: Any) -> None:
        """``INST`` and ``OBJ``, the oldest protocols' way to make objects."""
        self.append(_call(klass, tuple(arguments)))

    def get_extension(self, code: int) -> None:
        """``EXT1`` to ``EXT4``: numbers that only the writing process could resolve."""
        self.append(self.find_class("copyreg", f"extension_{code}"))

    def load_build(self) -> None:
        """``BUILD``: give a stand-in its state; nothing else has any that matters."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def _call(function: Any, arguments: Any, keywords: Any = None) -> Any:
    if not isinstance(arguments, tuple) or not isinstance(
        keywords or {}, dict
    ):
        raise pickle.UnpicklingError("the arguments of a call are not a tuple")
    if is_stand_in(function):
        return function(*arguments, **(keywords or {}))
    if callable(function) and function in _CALLABLE:
        return function(*arguments, **(keywords or {}))
    raise pickle.UnpicklingError(f"the file calls a {type(function).__name__}")


def _load(file: BinaryIO, **options: Any) -> Any:
    return RestrictedUnpickler(file, **options).load()


#: What ``torch.load(pickle_module=...)`` wants: torch keeps the handling of storages, we decide about the objects.
restricted_pickle = SimpleNamespace(
    __name__="lightning_rebasin.checkpoints.unpickle",
    Unpickler=RestrictedUnpickler,
    load=_load,
)
