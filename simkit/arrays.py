"""Arrays of any framework -> :class:`Matrix` ``[n, p]``. The one door: what is wrong with an input is said here.

No framework is imported: a torch tensor proves by existing that torch is loaded. Nothing is copied where the layout
allows (any strides; float16, bfloat16, float32, float64), from a CUDA device neither. Integers and booleans are cast
exactly, on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .devices import DeviceView, device_view, dlpack_device, on_device

FloatArray: TypeAlias = npt.NDArray[np.float64]

_FLOATS = ("float16", "float32", "float64")
_EXACT_IN_FLOAT32 = ("bool", "int8", "uint8", "int16", "uint16")
_MAX_EXACT = 2**53
COPIED = ", copied to the host"
_NO_NUMBERS = {"O": "Python objects", "S": "bytes", "U": "text", "T": "text", "M": "dates", "m": "time differences"}


@dataclass(frozen=True)
class Matrix:
    """A representation ``[n, p]``: n samples by p features, on the host (:class:`DeviceMatrix`: on a CUDA device).

    ``values`` is the array itself (no copy where possible, never written to). Half types stay as they are:
    bfloat16 is held as its 16 bits in uint16, and ``dtype`` says so. ``origin`` names where the data came from.
    """

    name: str
    values: npt.NDArray[Any]
    dtype: str
    origin: str = "numpy"

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.values.shape[0])

    @property
    def p(self) -> int:
        """Number of features."""
        return int(self.values.shape[1])

    @property
    def precision(self) -> str:
        """The precision products are formed in: half types are widened to float32."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    @property
    def mapped(self) -> bool:
        """Whether the values are pages of a file that may be dropped after use: a memory map that is not private."""
        base: Any = self.values
        while base is not None:
            if isinstance(base, np.memmap):
                return base.mode in ("r", "r+", "w+")
            base = getattr(base, "base", None)
        return False

    def float64(self, rows: slice = slice(None)) -> FloatArray:
        """The values as a fresh float64 array ``[rows, p]``, C-contiguous."""
        part = self.values[rows]
        if self.dtype == "bfloat16":
            part = (part.astype(np.uint32) << 16).view(np.float32)
        return np.array(part, dtype=np.float64, order="C")

    def column_slice(self, start: int, stop: int) -> Matrix:
        """A view of columns ``start:stop``."""
        return Matrix(self.name, self.values[:, start:stop], self.dtype, self.origin)

    def row_slice(self, start: int, stop: int) -> Matrix:
        """A view of rows ``start:stop``, on the host."""
        return Matrix(self.name, self.values[start:stop], self.dtype, self.origin)

    def renamed(self, name: str) -> Matrix:
        """The same values under another name."""
        return Matrix(name, self.values, self.dtype, self.origin)

    @property
    def device(self) -> int | None:
        """The ordinal of the CUDA device that the values lie on; None: the host."""
        return None

    def on_host(self) -> Matrix:
        """The same values on the host; ``origin`` says so where they are copied."""
        return self if self.device is None else Matrix(self.name, self.values, self.dtype, f"{self.origin}{COPIED}")


class DeviceMatrix(Matrix):
    """A representation on a CUDA device. ``values`` is a copy on the host, made when it is first asked for."""

    view: DeviceView

    def __init__(self, name: str, view: DeviceView, origin: str, whole: DeviceMatrix | None = None) -> None:
        fields = {"name": name, "view": view, "dtype": view.dtype, "origin": origin}
        self.__dict__.update(fields, _whole=whole, _columns=slice(None))

    @property
    def values(self) -> npt.NDArray[Any]:
        """The values ``[n, p]`` on the host; bfloat16 as its bits."""
        held: dict[str, Any] = self.__dict__
        if "_host" not in held:
            whole: DeviceMatrix | None = held["_whole"]
            held["_host"] = _from_device(self.view.array, self) if whole is None else whole.values[:, held["_columns"]]
        host: npt.NDArray[Any] = held["_host"]
        return host

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.view.shape[0]

    @property
    def p(self) -> int:
        """Number of features."""
        return self.view.shape[1]

    @property
    def mapped(self) -> bool:
        """Never: these are no pages of a file."""
        return False

    def column_slice(self, start: int, stop: int) -> Matrix:
        """A view of columns ``start:stop``."""
        part = DeviceMatrix(self.name, self.view.columns(start, stop), self.origin, self)
        part.__dict__["_columns"] = slice(start, stop)
        return part

    def renamed(self, name: str) -> Matrix:
        """The same values under another name."""
        return DeviceMatrix(name, self.view, self.origin, self)

    @property
    def device(self) -> int | None:
        """The ordinal of the device."""
        return self.view.device


def as_matrix(x: object, *, name: str = "x") -> Matrix:
    """Admit ``x`` as a representation ``[n, p]``; ``[n, ...]`` is flattened to ``[n, p]``.

    Accepts NumPy arrays, torch tensors, CuPy and JAX arrays, anything with DLPack or ``__array__``, nested lists.
    CUDA arrays of floats stay where they are (:class:`DeviceMatrix`); what else lies on a device is copied to the
    host, and ``origin`` says so.

    Raises:
        TypeError: complex, object, sparse, masked or otherwise non-numeric input.
        ValueError: fewer than two dimensions, no samples, no features, integers beyond 2^53.
    """
    return _admitted(
        x, name, "a representation is [n, p], n samples by p features", "write x[:, None] for a single feature"
    )


def as_filters(weight: object) -> Matrix:
    """Admit a layer's weights as filters ``[filters, weights]``; ``[filters, ...]`` is flattened.

    Accepts and raises as :func:`as_matrix`.
    """
    return _admitted(
        weight, "weight", "a layer's weights are [filters, weights]", "write weight[:, None] for one weight a filter"
    )


def on_host(values: object, name: str) -> npt.NDArray[Any]:
    """An array's values on the host, in its own type but for bfloat16: what there is one of a unit, and so little.

    Raises:
        TypeError: a masked array, or one that cannot be read.
    """
    plain = isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray)
    if plain or not (hasattr(values, "__array__") or on_device(values)):
        return np.asarray(values)
    array, dtype, _ = _host_array(values, name)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array


def _admitted(x: object, name: str, expected: str, advice: str) -> Matrix:
    """``x`` as a :class:`Matrix`; the errors say the ``expected`` shape, and ``advice`` to who has one dimension."""
    if isinstance(x, Matrix):
        return x.renamed(name)
    view = device_view(x)
    if view is not None:
        return DeviceMatrix(name, view, f"{type(x).__module__.partition('.')[0]} cuda:{view.device}")
    values, dtype, origin = _host_array(x, name)
    if values.dtype.kind in "OSUTV":  # no shape would make them a representation
        raise TypeError(f"{name} {_no_numbers(values.dtype)}: numbers are needed")
    if values.ndim < 2:
        more = f"; {advice}" if values.ndim == 1 else ""
        raise ValueError(f"{name} has shape {values.shape}: {expected}{more}")
    if values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}: it is empty")
    values = values.reshape(values.shape[0], -1)
    if dtype == "bfloat16" or dtype in _FLOATS:
        return Matrix(name, _native_order(values), dtype, origin)
    return _cast(values, name, dtype, origin)


def as_matrices(layers: Mapping[str, object] | Sequence[object], *, what: str = "layers") -> tuple[Matrix, ...]:
    """Admit a mapping ``{name: array}`` of representations that share their samples.

    Raises:
        TypeError: not a mapping. ValueError: no layers, keys that are one name as text (``1`` and ``"1"``), or
            different numbers of samples.
    """
    if not isinstance(layers, Mapping):
        raise TypeError(f"{what} must be a mapping of names to arrays, not {type(layers).__name__}")
    if not layers:
        raise ValueError(f"{what} is empty: give at least one named array")
    keys: dict[str, str] = {}  # as typed; what comes may be any hashable
    for key in layers:
        first = keys.setdefault(str(key), key)
        if first is not key:
            raise ValueError(f"{what} has the keys {first!r} and {key!r}, which are one name, {str(key)!r}, as text")
    matrices = tuple(as_matrix(layers[key], name=name) for name, key in keys.items())
    same_samples(matrices)
    return matrices


def same_samples(matrices: Sequence[Matrix]) -> int:
    """The common number of samples, or ValueError naming the two that differ."""
    first = matrices[0]
    for other in matrices[1:]:
        if other.n != first.n:
            raise ValueError(
                f"{first.name} has {first.n} samples and {other.name} has {other.n}: "
                "similarity needs the same samples in the same order"
            )
    return first.n


def enough_samples(n: int, needed: int, why: str) -> None:
    """Raise ValueError unless there are ``needed`` samples."""
    if n < needed:
        raise ValueError(f"{why} needs at least {needed} samples, not {n}")


def _native_order(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.isnative and values.flags.aligned:
        return values
    return values.astype(values.dtype.newbyteorder("="))


def _cast(values: npt.NDArray[Any], name: str, dtype: str, origin: str) -> Matrix:
    if np.iscomplexobj(values):
        raise _complex(name, dtype)
    if dtype in _EXACT_IN_FLOAT32:
        return Matrix(name, values.astype(np.float32), "float32", origin)
    if values.dtype.kind in "iu":
        largest = max(abs(int(values.max())), abs(int(values.min())))
        if largest > _MAX_EXACT:
            raise ValueError(f"{name} holds the integer {largest}, which float64 cannot represent exactly")
        return Matrix(name, values.astype(np.float64), "float64", origin)
    if values.dtype.kind == "f":
        raise TypeError(f"{name} has dtype {dtype}: float64 is the widest supported; convert it yourself")
    raise TypeError(f"{name} {_no_numbers(values.dtype)}: numbers are needed")


def _complex(name: str, dtype: str) -> TypeError:
    return TypeError(f"{name} has dtype {dtype}: similarity of complex features is not defined here")


def _no_numbers(dtype: np.dtype[Any]) -> str:
    """What an array holds that is no numbers, in words rather than NumPy's names (``str96``)."""
    found = "records" if dtype.names else _NO_NUMBERS.get(dtype.kind)
    return f"holds {found}" if found else f"has dtype {dtype}"


def _host_array(x: object, name: str) -> tuple[npt.NDArray[Any], str, str]:
    """(array, dtype name, origin) with bfloat16 as uint16 bits."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill or drop its masked entries first")
    if isinstance(x, np.ndarray):
        return _numpy(x, "numpy")
    root = type(x).__module__.partition(".")[0]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _torch(x, torch, name)
    if hasattr(x, "toarray") and hasattr(x, "nnz"):
        raise TypeError(f"{name} is a sparse {type(x).__name__}: pass a dense array (x.toarray())")
    if hasattr(x, "get") and on_device(x):  # CuPy
        return _numpy(np.asarray(x.get()), f"{root} device {dlpack_device(x)[1]}{COPIED}")
    if hasattr(x, "__array__") or isinstance(x, list | tuple):
        try:
            return _numpy(np.asarray(x), root if hasattr(x, "__array__") else "list")
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name} cannot be read as an array: {error}") from None
    if on_device(x):
        raise TypeError(f"{name} lies on a device, and has neither get() nor __array__() to copy it to the host")
    if hasattr(x, "__dlpack__"):
        return _numpy(np.from_dlpack(x), root)
    raise TypeError(f"{name} is a {type(x).__name__}: an array [n, p] is needed")


def _from_device(array: Any, matrix: Matrix) -> npt.NDArray[Any]:
    """A device array's values on the host."""
    values, dtype, _ = _host_array(array, matrix.name)
    if dtype != matrix.dtype:
        raise TypeError(f"{matrix.name} has dtype {matrix.dtype} on its device and {dtype} on the host")
    return values.reshape(matrix.n, matrix.p)


def _numpy(x: npt.NDArray[Any], origin: str) -> tuple[npt.NDArray[Any], str, str]:
    name = x.dtype.name
    return (x.view(np.uint16) if name == "bfloat16" else x), name, origin  # ml_dtypes', which JAX uses


def _torch(x: Any, torch: Any, name: str) -> tuple[npt.NDArray[Any], str, str]:
    if x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"{name} is a {x.layout if not x.is_quantized else 'quantized'} tensor: pass a dense one")
    if x.is_nested:
        raise TypeError(f"{name} is a nested tensor, whose rows differ in length: pass a dense one")
    if x.is_meta:
        raise TypeError(f"{name} is a meta tensor of shape {tuple(x.shape)}: it has no values")
    if x.is_complex():
        raise _complex(name, str(x.dtype).removeprefix("torch."))  # NumPy has no complex32
    origin = "torch"
    x = x.detach()
    if x.device.type != "cpu":
        origin = f"torch {x.device}{COPIED}"
        x = x.cpu()
    x = x.resolve_conj().resolve_neg()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy(), "bfloat16", origin
    if str(x.dtype).startswith("torch.float8"):
        raise TypeError(f"{name} has dtype {x.dtype}: widen it to float16 or float32 first")
    try:
        return _numpy(x.numpy(), origin)
    except (TypeError, RuntimeError) as error:  # a type that NumPy lacks, or a tensor that only stands for values
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TypeError(f"{name}, a {type(x).__name__} of {x.dtype}, cannot be read as an array: {reason}") from None
