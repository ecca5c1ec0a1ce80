"""The border for foreign files: whatever is in them, one message or the arrays."""

import io
import json
import os
import re
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htnet_jax import foreign
from htnet_jax.errors import UserError, shown


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(header, values=b""):
    """An `.npy` file with any header; `values` are its bytes."""
    header = header.encode() + b" " * ((-len(header) - 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


GOOD = npz(a=np.arange(600.0).reshape(20, 30), b=np.array(["x", "yy"]), c=np.int32(3))


def refusal(path, read=foreign.read_arrays):
    start = time.process_time()
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: ") as caught:
        read(path, "test file")
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arrays_come_back(tmp_path):
    (tmp_path / "a.npz").write_bytes(GOOD)
    found = foreign.read_arrays(tmp_path / "a.npz", "test file")
    np.testing.assert_array_equal(found["a"], np.arange(600.0).reshape(20, 30))
    assert found["b"].tolist() == ["x", "yy"]
    assert found["c"].shape == () and found["c"] == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a zip"),
        (
            zipped(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,)}")),
            "0 are",
        ),
        (zipped(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")), "shape"),
        (zipped(a=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")), "object"),
        (zipped(a=npy("[" * 9000)), ""),
        (zipped(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}")), "shape"),
        (zipped(a=b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100)), ""),
        (zipped(a=b"no array"), ""),
    ],
    ids=["empty", "huge", "negative", "objects", "deep", "float", "header length", "text"],
)
def test_what_is_wrong_with_arrays(tmp_path, data, said):
    (tmp_path / "a.npz").write_bytes(data)
    assert said in refusal(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv(foreign.LIMIT_VARIABLE, "100000")
    (tmp_path / "a.npz").write_bytes(npz(a=np.zeros(10**6)))
    assert "8,000,128 bytes, more than the 100,000 that are read" in refusal(tmp_path / "a.npz")
    monkeypatch.setenv(foreign.LIMIT_VARIABLE, "1e9")
    with pytest.raises(UserError, match=foreign.LIMIT_VARIABLE):
        foreign.limit(1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_mutated_arrays(tmp_path, place, value, cut):
    data = bytearray(GOOD)
    data[place] = value
    path = tmp_path / "a.npz"
    path.write_bytes(bytes(data[:place] if cut else data))
    try:
        found = foreign.read_arrays(path, "test file")
    except UserError as error:
        assert str(error).startswith(f"{path}: damaged")
    else:  # a byte that says nothing, such as a time stamp or a name
        assert len(found) == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" * 100_000, "nested too deep"),
        # The parser takes this; what copies or writes it would not.
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deep, in more than 100 levels"),
        (b"[" * 101 + b"]" * 101, "more than 100 levels"),
        (b"1" * 5_000, "4300 digits"),
        (b"\xff\xfe", "utf-8"),
        (b"{", "Expecting"),
    ],
)
def test_what_is_wrong_with_json(tmp_path, data, said):
    (tmp_path / "a.json").write_bytes(data)
    assert said in refusal(tmp_path / "a.json", foreign.read_json)


def test_json_is_checked(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1]}))
    assert foreign.read_json(tmp_path / "a.json", "test file") == {"a": [1]}
    with pytest.raises(UserError, match=r"a\.json: damaged, or not a test file \('b'\)"):
        foreign.read_json(tmp_path / "a.json", "test file", check=lambda content: content["b"])


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "a folder"),
        (tmp_path / ("x" * 300), "cannot be read (File name too long)"),
        (tmp_path / "nowhere", "cannot be read (No such file or directory)"),
    ):
        assert said in refusal(path, foreign.read_json)
    with pytest.raises(UserError, match="without ~"):
        foreign.expanded("~nosuchuser/a")


def test_names_cannot_steer_the_terminal():
    assert shown("a\x1b[2J\u202eb\n\ud800ü") == r"a\x1b[2J\u202eb\n\ud800ü"
    assert str(UserError("a\nb\x1b[1m")) == "a\nb\\x1b[1m"


def test_json_of_the_largest_depth(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a":[' * 50 + b"]}" * 50)
    assert list(foreign.read_json(tmp_path / "a.json", "test file")) == ["a"]
