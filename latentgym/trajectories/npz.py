"""Reading single arrays of ``.npz`` files without pickle, faster than ``numpy.load``.

An ``.npz`` file is a ZIP archive of ``.npy`` files. ``numpy.load`` reads a member in pieces and parses its header as
Python source anew each time; here a member is inflated in one go (outside the interpreter lock, so that threads help)
and headers are parsed once per distinct header.
"""

from __future__ import annotations

import functools
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import CorruptDataError

SUFFIX = ".npy"
_PREAMBLE = 10


def read_arrays(source: bytes | PathLike[str], names: Sequence[str], path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` file, each checked against the archive's CRC-32.

    Args:
        source: the file's content, or its path.
        names: arrays wanted, without ``.npy``.
        path: the file, for messages.

    Raises:
        CorruptDataError: if the file is missing, truncated or altered, lacks an array or holds Python objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            return {name: parse_array(archive.read(name + SUFFIX), f"{path}, array {name!r}") for name in names}
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing; copy or download it again") from error
    except KeyError as error:
        missing = str(error.args[0]) if error.args else ""
        raise CorruptDataError(f"{path}: expected the arrays {', '.join(names)}; {missing}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise CorruptDataError(f"{path} is truncated or damaged ({error}); copy or download it again") from error


def array_names(path: Path) -> dict[str, int]:
    """Names of the arrays in an ``.npz`` file, in its order, with the CRC-32 of each.

    Raises:
        CorruptDataError: if the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.filename.removesuffix(SUFFIX): entry.CRC for entry in archive.infolist()}
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing; copy or download it again") from error
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise CorruptDataError(f"{path} is truncated or damaged ({error}); copy or download it again") from error


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Content of a compressed ``.npz`` file; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def parse_array(data: bytes, label: str) -> NDArray[Any]:
    """The array of a ``.npy`` file's content, as a writable copy.

    Raises:
        CorruptDataError: if it is no such file, its length is wrong, or it holds Python objects.
    """
    start = header_size(data, label)
    try:
        shape, fortran, dtype = parse_header(data[:start])
    except (ValueError, EOFError) as error:
        raise CorruptDataError(f"{label}: damaged .npy header ({error})") from error
    if dtype.hasobject:
        raise CorruptDataError(f"{label}: holds pickled Python objects, which are not loaded; expected plain numbers")
    if not dtype.itemsize or min(shape, default=0) < 0:
        raise CorruptDataError(f"{label}: damaged .npy header (shape {shape}, {dtype})")
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise CorruptDataError(
            f"{label}: expected {math.prod(shape) * dtype.itemsize} bytes of data for shape {shape} {dtype}, "
            f"found {len(data) - start}"
        )
    flat: NDArray[Any] = np.frombuffer(data, dtype, offset=start).copy()
    return flat.reshape(shape, order="F" if fortran else "C")


def header_size(data: bytes, label: str) -> int:
    """Length of a ``.npy`` file's magic string, version and header.

    Raises:
        CorruptDataError: if ``data`` does not begin like a ``.npy`` file.
    """
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(data[6:8], 0)
    if data[:6] != b"\x93NUMPY" or not width or len(data) < _PREAMBLE:
        raise CorruptDataError(f"{label}: not a .npy file")
    return 8 + width + int.from_bytes(data[8 : 8 + width], "little")


@functools.lru_cache(maxsize=256)
def parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype of a ``.npy`` header.

    Raises:
        ValueError: if it is damaged, or too long to be parsed safely as a literal.
    """
    file = io.BytesIO(header)
    # NumPy's readers carry no annotations.
    npy: Any = np.lib.format
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    # A header is a Python literal, and a damaged one fails in as many ways as Python's parser can.
    except (SyntaxError, tokenize.TokenError, TypeError, AttributeError, OverflowError, MemoryError,
            RecursionError) as error:  # fmt: skip
        raise ValueError(str(error)) from error
    return shape, fortran, dtype
