"""Annotations load without pickle's powers: what is plain comes through, what could act is refused and does not act."""

from __future__ import annotations

import collections
import os
import pickle
import resource
import tracemalloc
from fractions import Fraction
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latentgym.errors import CorruptDataError
from latentgym.trajectories.formats.restricted_pickle import load_npy

ARRAYS = hnp.arrays(
    st.sampled_from(["<f4", ">f8", "<i8", "u1", "?", "<c8", "<U3", "S2"]), hnp.array_shapes(min_dims=0, min_side=0)
)
ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary()
PLAIN = st.recursive(
    ATOMS | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def save(path: Path, value: object, protocol: int = 4) -> Path:
    """What ``numpy.save`` writes for an array of one object, with any pickle protocol."""
    wrapped = np.empty((), dtype=object)
    wrapped[()] = value
    return save_bytes(path, pickle.dumps(wrapped, protocol))


def save_bytes(path: Path, data: bytes) -> Path:
    with path.open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data)
    return path


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.integers(2, 5))
def test_plain_data_comes_through_whatever_the_protocol(tmp_path_factory, value, protocol):
    path = save(tmp_path_factory.getbasetemp() / "plain.npy", value, protocol)
    loaded = load_npy(path)
    np.testing.assert_equal(loaded, value)
    assert type(loaded) is (type(value) if value is not None else type(None))


def test_arrays_of_objects_and_scalars(tmp_path):
    inner = np.empty((2, 2), dtype=object)
    inner[:] = [["a", 1], [None, np.float32(2.5)]]
    assert load_npy(save(tmp_path / "a.npy", inner)) == [["a", 1], [None, 2.5]]
    np.save(tmp_path / "b.npy", np.asfortranarray(np.arange(6).reshape(2, 3)))
    assert np.array_equal(load_npy(tmp_path / "b.npy"), np.arange(6).reshape(2, 3))


class Attack:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def nested_in_object_array(value):
    array = np.empty(2, dtype=object)
    array[0] = value
    return {"language": [array]}


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"a": [value]}, nested_in_object_array])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_is_executed(tmp_path, wrap, protocol):
    mark = tmp_path / "executed"
    for attack in (
        Attack(os.system, f"touch {mark}"),
        Attack(eval, f"open({str(mark)!r}, 'w')"),
        Attack(os.mkdir, str(mark)),
        Attack(np.load, str(mark)),
        Attack(np.fromfile, str(mark)),
        Attack(getattr, os.mkdir, "__self__"),
    ):
        with pytest.raises(CorruptDataError, match="only NumPy arrays and plain containers") as caught:
            load_npy(save(tmp_path / "evil.npy", wrap(attack), protocol))
        assert "evil.npy" in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=1),
        Path("x"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "O")]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.ma.masked_array([1, 2], [True, False]),
        np.float64,
        Fraction(1, 2),
    ],
    ids=repr,
)
def test_other_types_are_refused(tmp_path, value):
    with pytest.raises(CorruptDataError):
        load_npy(save(tmp_path / "a.npy", value))


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nndarray\n(I1\ntR.",  # a call of the class itself
        b"cnumpy\nndarray\n(I1\nt\x81.",  # its __new__
        b"cnumpy\ndtype\n(Vi4,O\ntR.",
        b"cnumpy\ndtype\n(Vf8\ntR(I3\nV<\nNNNI8\nI8\nI1\ntb.",  # flags that say that it holds objects
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRcnumpy\ndtype\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n}V__class__\nNsb.",  # a change to one of our functions
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I99\ntcnumpy\ndtype\n(Vf8\ntRI00\nVab\ntb.",
        b"Vname\nPid\n.",
        b"]q\x00h\x00a.",  # a list that holds itself
        b"",
        b"garbage",
    ],
)
def test_hand_written_programs_end_in_one_clear_error_or_in_plain_data(tmp_path, program):
    path = save_bytes(tmp_path / "a.npy", program)
    try:
        loaded = load_npy(path)
    except CorruptDataError as error:
        assert str(path) in str(error)
    else:
        assert loaded is None or type(loaded) in (dict, list, np.dtype)


def test_a_shared_object_is_rebuilt_once(tmp_path):
    """Sixty lists of two references each would be 2^60 items if they were copied apart."""
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    assert load_npy(save(tmp_path / "a.npy", value))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_never_gives_another_error(tmp_path_factory, data):
    content = {"a": np.arange(5.0), "b": [("x", 1)], "c": np.float32(1)}
    path = save(tmp_path_factory.getbasetemp() / "damaged.npy", content)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        load_npy(path)
    except CorruptDataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_cut_off_anywhere_is_named(tmp_path, protocol):
    content = [{"a": np.arange(3.0), "b": 70000, "c": 2**70}, b"x" * 30, np.float32(1), {"s"}]
    whole = pickle.dumps(content, protocol)
    for size in range(len(whole)):
        with pytest.raises(CorruptDataError, match=r"a\.npy"):
            load_npy(save_bytes(tmp_path / "a.npy", whole[:size]))


@pytest.mark.parametrize(
    "program",
    [
        b"]r\xff\xff\xff\x7f.",  # room for two thousand million remembered objects
        b"\x96\xff\xff\xff\xff\x7f\x00\x00\x00.",  # a bytearray of half a terabyte
        b"\x96\x00\x00\x00\x20\x00\x00\x00\x00.",  # and one of half a gigabyte, which there might be
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I999999999999\ntcnumpy\ndtype\n(VS0\ntRI00\nV\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I999999999999\nI0\ntcnumpy\ndtype\n(VO8\ntRI00\n]tb.",
    ],
)
def test_a_few_bytes_cannot_take_all_memory(tmp_path, program):
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    tracemalloc.start()
    try:
        assert load_npy(save_bytes(tmp_path / "a.npy", program)) == []
    except CorruptDataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert peak < 2**24


@pytest.mark.parametrize(("descr", "shape", "data"), [("|S0", (10**12,), b""), ("<f8", (-1, -1), bytes(8))])
def test_a_header_that_no_array_has(tmp_path, descr, shape, data):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(data)
    with pytest.raises(CorruptDataError, match="damaged"):
        load_npy(tmp_path / "a.npy")


def test_a_missing_file(tmp_path):
    with pytest.raises(CorruptDataError, match="cannot be read"):
        load_npy(tmp_path / "nothing.npy")
