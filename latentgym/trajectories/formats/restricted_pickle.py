"""Loading of ``.npy`` files that are pickles, with nothing in them executed.

CALVIN keeps its annotations as pickled dictionaries in ``.npy`` files. A pickle is a program: it may name any function
and call it. Here a handful of names are known, each stands for a small object of ours that rebuilds numeric arrays
(or bytes, or a set) and checks what it is given, and everything else is refused. The result is made of plain containers
only.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latentgym.errors import CorruptDataError
from latentgym.trajectories.npz import header_size, parse_array, parse_header

_KINDS = "biufcSU"
_ATOMS = (bool, int, float, complex, str, bytes, type(None))


class _Refused(Exception):
    """The pickle holds what is not admitted; becomes a `CorruptDataError` that names the file."""


class _Dtype:
    """Stands for a `numpy.dtype` while a pickle is read: only kind, size and byte order can be told to it.

    NumPy's own ``dtype.__setstate__`` believes offsets and flags that it is given, which is not safe.
    """

    __slots__ = ("value",)

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or text[:1] not in _KINDS + "O?":
            raise _Refused(f"the dtype {text!r}")
        self.value: np.dtype[Any] = np.dtype(text)
        if self.value.names or self.value.subdtype or (self.value.hasobject and self.value.kind != "O"):
            raise _Refused(f"the dtype {text!r}")

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 4 or any(field is not None for field in state[2:5]):
            raise _Refused("a structured dtype")
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for a `numpy.ndarray`; holds a numeric array, or the items of an array of objects."""

    __slots__ = ("items", "value")

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None
        self.items: tuple[tuple[int, ...], list[Any]] | None = None

    def fill(self, data: object, dtype: object, shape: object, *, fortran: bool) -> None:
        """Take ``data``: bytes of a numeric array, or a list of objects."""
        if not isinstance(dtype, _Dtype) or not _is_shape(shape) or not dtype.value.itemsize:
            raise _Refused("an array without a plain shape and dtype")
        assert isinstance(shape, tuple)
        kind = dtype.value
        if kind.hasobject:
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise _Refused("an array of objects whose length is not its shape's")
            self.items = shape, data
            return
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(raw, bytes | bytearray) or len(raw) != math.prod(shape) * kind.itemsize:
            raise _Refused("an array whose length is not its shape's")
        self.value = np.frombuffer(bytes(raw), kind).copy().reshape(shape, order="F" if fortran else "C")

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise _Refused("an array of an unknown layout")
        shape, dtype, fortran, data = state[-4:]
        self.fill(data, dtype, shape, fortran=bool(fortran))


class _Name:
    """What a name in the pickle stands for: called, or only passed on. It has no attributes that could be changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused("a change to a function")

    def __call__(self, *arguments: Any) -> Any:
        function = object.__getattribute__(self, "_function")
        if function is None:
            raise _Refused("a direct call of numpy.ndarray")
        return function(*arguments)


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _array_from_buffer(data: object, dtype: object, shape: object, order: object = "C", *_: Any) -> _Array:
    array = _Array()
    array.fill(bytes(data) if isinstance(data, pickle.PickleBuffer) else data, dtype, shape, fortran=order == "F")
    return array


def _scalar(dtype: object, data: object = None) -> Any:
    array = _Array()
    array.fill(data, dtype, (), fortran=False)
    if array.value is None:
        raise _Refused("a scalar that is an object")
    return array.value[()]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How Python 2's protocols carry bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("encoded text")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """How Python 2's protocols write ``b""``."""
    return b""


def _set(items: object = ()) -> set[Any]:
    """How the protocols before the fourth write a set."""
    if not isinstance(items, list | tuple):
        raise _Refused("a set that is not made of a list")
    return set(items)


_CORE = ("numpy.core", "numpy._core")
_BUILTINS = ("builtins", "__builtin__")
_NAMES = {
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _Name(lambda text=None, *_: _Dtype(text)),
    ("_codecs", "encode"): _Name(_encode),
    **{(builtins, "bytes"): _Name(_empty_bytes) for builtins in _BUILTINS},
    **{(builtins, "set"): _Name(_set) for builtins in _BUILTINS},
    **{(f"{core}.multiarray", "_reconstruct"): _Name(_empty_array) for core in _CORE},
    **{(f"{core}.multiarray", "scalar"): _Name(_scalar) for core in _CORE},
    **{(f"{core}.numeric", "_frombuffer"): _Name(_array_from_buffer) for core in _CORE},
}


# What pickles of plain data consist of. No persistent ids, extension codes, classes called by other means than REDUCE.
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD
"""


def _load_bytearray(unpickler: Any) -> None:
    """BYTEARRAY8 as the file has it; the library's own makes room for the size that is claimed."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(size)))


class _Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python with fewer opcodes and names.

    Not the one in C: that one makes room for as many remembered objects as a pickle claims to have, so that six bytes
    can take all memory.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES.split())},
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def load_npy(path: Path) -> Any:
    """The array of a ``.npy`` file; a pickled one is rebuilt from numeric arrays and plain containers only.

    Args:
        path: the file.

    Returns:
        A numeric array; for a pickled array without dimensions (how CALVIN stores dictionaries) its content; for
        another pickled array a nested list. Containers are ``dict``, ``list``, ``tuple`` and ``set``.

    Raises:
        CorruptDataError: if the file is missing, damaged, or holds anything else; nothing of it is executed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read ({error.strerror}); copy or download it again") from error
    start = header_size(data, str(path))
    try:
        dtype = parse_header(data[:start])[2]
        if dtype.kind != "O":
            return parse_array(data, str(path))
        loaded = _plain(_Unpickler(io.BytesIO(data[start:])).load(), {})
    except _Refused as error:
        raise CorruptDataError(
            f"{path} holds {error}, where only NumPy arrays and plain containers are admitted; it was not loaded. A "
            "pickle can run any code: get the file from a source that you trust"
        ) from None
    except CorruptDataError:
        raise
    # A damaged pickle may fail in any of these ways, deep inside the unpickler.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            RecursionError, OverflowError, MemoryError, UnicodeError, struct.error) as error:  # fmt: skip
        raise CorruptDataError(f"{path} is truncated or damaged ({error}); copy or download it again") from error
    return loaded


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and all(type(side) is int and side >= 0 for side in value)


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """``value`` with stand-ins replaced; each object once, so that shared ones stay shared and small."""
    if isinstance(value, _ATOMS) or (isinstance(value, np.generic) and not value.dtype.hasobject):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, _Array):
        plain = _filled(value, done)
    elif type(value) in (list, tuple, set, frozenset):
        plain = type(value)([_plain(item, done) for item in value])
    elif type(value) is dict:
        plain = {_plain(key, done): _plain(item, done) for key, item in value.items()}
    else:
        raise _Refused(f"an object of type {type(value).__name__.strip('_')}")
    # The original is kept as well: an id is taken again once its object is gone.
    done[id(value)] = value, plain
    return plain


def _filled(array: _Array, done: dict[int, Any]) -> Any:
    if array.items is not None:
        shape, items = array.items
        return _nested([_plain(item, done) for item in items], shape)
    if array.value is None:
        raise _Refused("an array without content")
    return array.value


def _nested(items: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return items[0]
    if not items:
        return []
    size = math.prod(shape[1:])
    return [_nested(items[size * row : size * (row + 1)], shape[1:]) for row in range(shape[0])]
