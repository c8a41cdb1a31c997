"""What the pickle in a ``torch.save`` file describes, without running anything and without the tensors' bytes.

A pickle is a program for a machine with a stack. Here its instructions are followed for dictionaries, lists, numbers, strings
and tensors; every other class or function is a name that nothing is done with. So no file, however damaged or malicious, calls
anything, and none takes more memory than its pickle is long.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

# Longer than any name or number of a state dict.
_LONGEST_PIECE = 2**26
# More than any tensor has.
_MOST_DIMENSIONS = 64

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Named:
    """A class or function that the pickle names, or what it would have made."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A stretch of bytes outside the pickle.

    Attributes:
        key: Its name in the file.
        dtype: Of its elements.
        count: Of its elements.
    """

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage, in elements of ``dtype``."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Bounded:
    """A file in which no piece that is asked for is longer than any that a state dict has: a length may be damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell

    def readline(self) -> bytes:
        line = self._file.readline(_LONGEST_PIECE)
        if b"\\" in line:  # of a name there is none, and other text pickles of tensors do not have
            raise ValueError("an escaped character in the pickle")
        return line

    def read(self, count: int) -> bytes:
        if count > _LONGEST_PIECE:
            raise ValueError(f"a piece of {count:,} bytes in the pickle")
        return self._file.read(count)


def unpickle(file: BinaryIO) -> Any:
    """The object that a pickle describes; the file is left at the byte after it.

    Raises:
        ValueError: It is damaged, or has instructions that pickles of tensors do not have.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(_Bounded(file)):  # type: ignore[arg-type]
            machine.follow(instruction.name, argument)
        return machine.stack.pop()
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


def unpickle_bytes(data: bytes) -> Any:
    """The object that a pickle in memory describes.

    >>> import pickle
    >>> from lookaround.averaging.soups.pickles import unpickle_bytes
    >>> unpickle_bytes(pickle.dumps({"epoch": 3, "rate": 0.1, "sizes": (1, [2])}))
    {'epoch': 3, 'rate': 0.1, 'sizes': (1, [2])}

    Raises:
        ValueError: As :func:`unpickle`.
    """
    return unpickle(io.BytesIO(data))


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        else:
            _INSTRUCTIONS[name](self, argument)

    def items(self) -> list[Any]:
        """What was pushed since the last mark."""
        start = self._marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], Named):
            self.stack[-1].extend(values)

    def dictionary(self, _: Any) -> None:
        pairs = self.items()
        self.stack.append({})
        self.set_items(pairs)

    def set_items(self, pairs: list[Any]) -> None:
        if not isinstance(self.stack[-1], Named):
            self.stack[-1].update(zip(map(_key, pairs[::2]), pairs[1::2], strict=True))

    def two(self) -> list[Any]:
        second, first = self.stack.pop(), self.stack.pop()
        return [first, second]

    def put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def persistent(self, _: Any) -> None:
        reference = self.stack.pop()
        if reference[0] == "module":  # of a whole model, saved with its class
            self.stack.append(reference[1])
            return
        kind, storage, key, _device, count, *view = reference
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError(f"a reference to {kind!r} outside the pickle, or a part of a storage")
        self.stack.append(Storage(str(key), _storage_dtype(storage), _count(count)))

    def reduce(self, _: Any) -> None:
        function, arguments = self.two()
        self.stack.append(_made(function, arguments))

    def nothing(self, _: Any) -> None:
        """PROTO, FRAME and STOP change nothing."""


_PUSHED = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Named("set"),
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "STOP": _Machine.nothing,
    "MARK": _Machine.mark,
    "POP": lambda m, _: m.stack.__delitem__(-1),
    "POP_MARK": lambda m, _: m.items().clear(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.items())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.stack.append(m.items()),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.items()),
    "ADDITEMS": lambda m, _: m.items().clear(),
    "FROZENSET": lambda m, _: m.stack.append(Named("frozenset") if m.items() is not None else None),
    "DICT": _Machine.dictionary,
    "SETITEM": lambda m, _: m.set_items(m.two()),
    "SETITEMS": lambda m, _: m.set_items(m.items()),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda m, name: m.stack.append(Named(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: m.stack.append(Named(".".join(m.two()))),
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "BUILD": lambda m, _: m.stack.__delitem__(-1),  # attributes beside the items, such as a state dict's version
}


def _made(function: Any, arguments: Any) -> Any:
    """What a function of torch's makes of its arguments; for others, the name alone."""
    name = function.name if isinstance(function, Named) else type(function).__name__
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (pairs,):
            return _moved(pairs)
        case "torch.Size", (sizes,):
            return _sizes(sizes)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
            return data
        case "torch._tensor._rebuild_from_type_v2", (
            inner,
            Named("torch.Tensor" | "torch.nn.parameter.Parameter"),
            given,
            *_,
        ):
            return _made(inner, given)
        case (
            ("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2"),
            (storage, offset, shape, strides, *rest),
        ):
            return _tensor(storage, offset, shape, strides, storage.dtype, rest[2:])
        case "torch._utils._rebuild_tensor_v3", (storage, offset, shape, strides, _, _, dtype, *rest):
            return _tensor(storage, offset, shape, strides, _dtype(dtype), rest)
        case _:
            return Named(name)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype, metadata: list[Any]) -> Any:
    if any(metadata):
        return Named("a conjugated or negated view")
    sizes, steps = _sizes(shape), _sizes(strides)
    if not isinstance(storage, Storage) or len(sizes) != len(steps):
        raise ValueError("a tensor without a storage, or with as many strides as it has dimensions")
    return StoredTensor(storage, _count(offset), sizes, steps, dtype)


def _key(value: Any) -> Any:
    """A key of a dictionary: what is nested could be nested so deep that its hash overflows the stack."""
    if not isinstance(value, str | int | float | bytes | Named | None):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _moved(pairs: Any) -> dict[Any, Any]:
    """A dictionary of a list of pairs, which is empty then: a list that is used again and again must not be copied each time."""
    found = {_key(key): value for key, value in pairs}
    pairs.clear()
    return found


def _sizes(values: Any) -> tuple[int, ...]:
    if len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(values):,} dimensions")
    return tuple(map(_count, values))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a count is expected")
    return value


def _storage_dtype(storage: Any) -> torch.dtype:
    kind = storage.name.rpartition(".")[2]
    if kind not in _STORAGES:
        raise ValueError(f"a storage of unknown kind {storage.name!r}")
    return _STORAGES[kind]


def _dtype(named: Any) -> torch.dtype:
    dtype = getattr(torch, named.name.rpartition(".")[2], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"an unknown dtype {named.name!r}")
    return dtype
