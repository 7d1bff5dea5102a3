"""The Python version of CIFAR-10: pickles, read instruction by instruction, without importing or calling anything.

Unpickling runs what the file says. Here the instructions are only walked through on a stack of plain values: a class or
a function is kept as its name, a call as its name and arguments, and any other instruction is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line
from .dataset import Bytes, Labels

_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "FLOAT", "BINFLOAT",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}


@dataclass
class Call:
    """What the pickle would call, with what, and the state it would set: never carried out."""

    function: str
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Name:
    """What the pickle would import: never imported."""

    path: str


class Mark:
    """Where a list, a tuple or a dictionary begins on the stack."""


def read_python_batch(path: Path) -> tuple[Bytes, Labels]:
    """(data [n, pixels], labels [n]) of one batch file.

    Raises:
        ValueError: no pickle, one that holds something else, or instructions that such a batch does not need.
    """
    try:
        batch = _Walk().result(path.read_bytes())
        fields = {_text(key): value for key, value in batch.items()}
        return _bytes_array(fields["data"]), np.asarray(fields["labels"], dtype=np.int64)
    except (KeyError, AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{str(path)!r} is no CIFAR-10 batch: {first_line(error)}") from error


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bytes_array(call: Any) -> Bytes:
    """The array of unsigned bytes that NumPy would rebuild from (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(call, Call) or not call.function.endswith("multiarray _reconstruct"):
        raise ValueError(f"its data is no array but {type(call).__name__}")
    _, shape, kind, fortran, content = call.state
    if not isinstance(kind, Call) or kind.function != "numpy dtype" or _text(kind.arguments[0]) not in ("u1", "uint8"):
        raise ValueError("its data are no unsigned bytes")
    raw = content.encode("latin-1") if isinstance(content, str) else bytes(content)
    if math.prod(shape) != len(raw):
        raise ValueError(f"its data promise {shape} and hold {len(raw)} bytes")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


class _Walk:
    """A stack of values and a memo, as the instructions of a pickle use them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            self._step(opcode.name, argument)
        if len(self.stack) != 1:
            raise ValueError(f"it leaves {len(self.stack)} values")
        return self.stack[0]

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name not in _IGNORED:
            action = getattr(self, f"_{name.lower()}", None)
            if action is None:
                raise ValueError(f"it holds the instruction {name}, which no batch needs")
            action(argument)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more values than there are")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _marked(self) -> list[Any]:
        taken: list[Any] = []
        while not isinstance(value := self.stack.pop(), Mark):
            taken.append(value)
        return taken[::-1]

    def _mark(self, _: Any) -> None:
        self.stack.append(Mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _append(self, _: Any) -> None:
        (value,) = self._pop(1)
        self.stack[-1].append(value)

    def _appends(self, _: Any) -> None:
        values = self._marked()
        self.stack[-1].extend(values)

    def _setitem(self, _: Any) -> None:
        key, value = self._pop(2)
        self.stack[-1][key] = value

    def _setitems(self, _: Any) -> None:
        values = self._marked()
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    _binget = _long_binget = _get

    def _global(self, path: Any) -> None:
        self.stack.append(Name(str(path)))

    def _stack_global(self, _: Any) -> None:
        module, attribute = self._pop(2)
        self.stack.append(Name(f"{module} {attribute}"))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        if function.path == "_codecs encode":  # how Python 3 writes bytes for Python 2
            self.stack.append(str(arguments[0]).encode("latin-1"))
        else:
            self.stack.append(Call(function.path, arguments))

    def _build(self, _: Any) -> None:
        target, state = self._pop(2)
        if not isinstance(target, Call):
            raise ValueError("it sets the state of what is no object")
        target.state = state
        self.stack.append(target)
