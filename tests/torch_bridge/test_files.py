import argparse
import errno
import json
import os
import pickle
import resource
import time
import warnings
import zipfile

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import files, htnet

ENDINGS = (".safetensors", ".pth", ".pt")
BITS = np.array([0x80000000, 1, 0x807FFFFF, 0x3F800000, 0x7F7FFFFF, 0x4048F5C3], np.uint32)


def tensors():
    return {
        "a.weight": torch.from_numpy(BITS.view("f4").reshape(2, 3).copy()),
        "b": torch.arange(5.0),
    }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(
            found[name].numpy().view("u4"), tensor.numpy().view("u4"), err_msg=name
        )


def refusal(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def saved(value, path, **options):
    torch.save(value, path, **options)
    return path


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip(tmp_path, ending):
    path = tmp_path / "new" / "folder" / f"weights{ending}"
    metadata = {"format": "pt", "key": '{"a": "ü"}'}
    files.write(path, tensors(), metadata)
    found = files.read(str(path))
    assert_same_bits(found.state_dict, tensors())
    assert all(tensor.device.type == "cpu" for tensor in found.state_dict.values())
    assert found.metadata == (metadata if ending == ".safetensors" else {})
    assert found.notes == []
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_safetensors_can_be_read_by_the_library(tmp_path):
    path = tmp_path / "weights.safetensors"
    files.write(path, tensors(), {"key": "value"})
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"key": "value"}
        assert_same_bits({name: file.get_tensor(name) for name in file.keys()}, tensors())  # noqa: SIM118


@pytest.mark.parametrize("ending", [".pth", ".pt"])
def test_pth_is_a_bare_dict_that_a_model_takes(tmp_path, ending):
    module = HTNet(dim=6, heads=2, image_size=14, num_hierarchies=2, block_repeats=(1, 1))
    state_dict = htnet.build(module).state_dict()
    path = tmp_path / f"weights{ending}"
    files.write(path, state_dict, {"key": "value"})
    loaded = torch.load(path, weights_only=True)
    assert type(loaded) is dict
    other = htnet.build(module)
    assert not torch.equal(other.state_dict()["mlp_head.2.weight"], loaded["mlp_head.2.weight"])
    other.load_state_dict(loaded, strict=True)
    assert_same_bits(other.state_dict(), state_dict)


def test_file_that_a_training_script_wrote(tmp_path):
    checkpoint = {
        "epoch": 2,
        "state_dict": {f"module.{name}": tensor for name, tensor in tensors().items()},
        "optimizer": {"state": {}},
    }
    found = files.read(saved(checkpoint, tmp_path / "checkpoint.pth"))
    assert_same_bits(found.state_dict, tensors())
    assert "'epoch', 'optimizer'" in found.notes[0]
    assert "'module.'" in found.notes[1]


def test_legacy_torch_format(tmp_path):
    path = saved(tensors(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_same_bits(files.read(path).state_dict, tensors())


def test_parameters_and_ordered_dicts(tmp_path):
    layer = torch.nn.Linear(2, 3)
    path = saved(dict(layer.named_parameters()), tmp_path / "parameters.pth")
    assert torch.equal(files.read(path).state_dict["weight"], layer.weight)
    path = saved(layer.state_dict(), tmp_path / "ordered.pth")
    assert torch.equal(files.read(path).state_dict["bias"], layer.bias)


# --- notes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_values_that_are_not_finite_are_noted(tmp_path, ending):
    state_dict = tensors()
    state_dict["b"][1] = float("nan")
    state_dict["b"][2] = float("-inf")
    path = tmp_path / f"w{ending}"
    files.write(path, state_dict, {})
    found = files.read(path)
    assert found.notes == ["warning: b has 2 values that are NaN or infinite"]
    assert_same_bits(found.state_dict, state_dict)


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_types_are_noted(tmp_path, ending):
    path = tmp_path / f"w{ending}"
    state_dict = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1)}
    files.write(path, {**state_dict, "c": torch.zeros(1, dtype=torch.bfloat16)}, {})
    found = files.read(path)
    assert found.state_dict["a"].dtype == torch.float64
    (note,) = found.notes
    assert note == "warning: torch.bfloat16, torch.float64 becomes float32"


# --- files that cannot be read --------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_file(tmp_path, ending):
    path = tmp_path / f"nowhere{ending}"
    assert refusal(files.read, path) == f"{path}: no such file"


def test_folder_instead_of_a_file(tmp_path):
    path = tmp_path / "folder.pth"
    path.mkdir()
    assert refusal(files.read, path) == f"{path}: is a folder; give a .safetensors or .pth file"


@pytest.mark.parametrize("name", ["weights.npz", "weights", "weights.pth.zip", "weights.PTH"])
def test_wrong_ending(tmp_path, name):
    path = tmp_path / name
    message = f"{path}: the name must end in .safetensors, .pth or .pt"
    assert refusal(files.write, path, tensors(), {}) == message
    assert not path.exists()
    path.write_bytes(b"x")
    assert refusal(files.read, path) == message


KINDS = ("safetensors", "zip", "legacy")


def file_of(kind, folder):
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        files.write(path, tensors(), {"key": "value"})
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", ["0", "10", "half", "all but 1"])
def test_truncated_file(tmp_path, kind, length):
    path = file_of(kind, tmp_path)
    data = path.read_bytes()
    count = {"half": len(data) // 2, "all but 1": len(data) - 1}.get(length)
    path.write_bytes(data[: int(length) if count is None else count])
    assert refusal(files.read, path).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_anywhere(tmp_path, kind):
    path = file_of(kind, tmp_path)
    data = path.read_bytes()
    wrong = {}
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        try:
            files.read(path)
            wrong[length] = "no error"
        except UserError as error:
            if not str(error).startswith(f"{path}: "):
                wrong[length] = str(error)
        except Exception as error:
            wrong[length] = repr(error)
    assert wrong == {}


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=60), ending=st.sampled_from(ENDINGS))
def test_random_bytes(tmp_path_factory, data, ending):
    path = tmp_path_factory.getbasetemp() / f"garbage{ending}"
    path.write_bytes(data)
    assert refusal(files.read, path).startswith(f"{path}: ")


# The first bytes of a pickle, as random bytes seldom are: cut, of an unknown protocol, popping from
# an empty stack, with a length that runs past the end.
@pytest.mark.parametrize(
    "data", [b"\x80", b"\x80\x02", b"\x80\x5d.", b"0", b"X\x05\x00", b"\x80\x02X"]
)
def test_bytes_that_begin_a_pickle(tmp_path, data):
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    assert refusal(files.read, path).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_changed_byte_is_never_a_traceback(tmp_path, kind):
    path = file_of(kind, tmp_path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    wrong = {}
    for _ in range(300):
        damaged = bytearray(data)
        place, value = int(rng.integers(len(data))), int(rng.integers(256))
        damaged[place] = value
        path.write_bytes(bytes(damaged))
        try:
            files.read(path)  # a change among the values cannot be noticed
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
        except Exception as error:
            wrong[place, value] = repr(error)
    assert wrong == {}


def test_plain_pickle_is_read_or_refused_without_a_warning(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"a": [1.0, 2.0]}))
    assert refusal(files.read, path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("value", "named"),
    [([torch.zeros(2)], "a list"), (torch.zeros(2), "a Tensor"), (3, "a int"), (None, "NoneType")],
)
def test_file_that_holds_no_dict(tmp_path, value, named):
    path = saved(value, tmp_path / "w.pth")
    message = refusal(files.read, path)
    assert message.startswith(f"{path}: ")
    assert named in message
    assert "not a state_dict" in message


def test_file_without_a_state_dict_lists_its_keys(tmp_path):
    path = saved({"epoch": 1, "history": [1.0]}, tmp_path / "w.pth")
    message = refusal(files.read, path)
    assert message.startswith(f"{path}: no state_dict found; there is 'epoch', 'history'")


def test_empty_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    files.write(path, {}, {"format": "pt"})
    assert refusal(files.read, path).startswith(f"{path}: no state_dict found; there is nothing")


# --- files that would run code --------------------------------------------------------------------


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("bare", [True, False], ids=["alone", "beside tensors"])
def test_code_in_a_file_is_not_run(tmp_path, zipped, bare):
    mark = tmp_path / "mark"
    value = Malicious(str(mark)) if bare else {"a": torch.zeros(1), "b": Malicious(str(mark))}
    path = saved(value, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(files.read, path)
    assert not mark.exists()
    assert message.startswith(f"{path}: holds a pickled ")
    assert "mkdir" in message
    assert "state_dict()" in message
    # The file is what it is meant to be: without the guard it runs.
    with warnings.catch_warnings(action="ignore"):
        torch.load(path, weights_only=False)
    assert mark.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Malicious(str(mark)), protocol=2))
    assert refusal(files.read, path).startswith(f"{path}: ")
    assert not mark.exists()


def test_settings_beside_the_weights_are_named(tmp_path):
    value = {"state_dict": tensors(), "args": argparse.Namespace(lr=0.1)}
    path = saved(value, tmp_path / "w.pth")
    message = refusal(files.read, path)
    assert message.startswith(f"{path}: holds a pickled argparse.Namespace.")
    assert "torch.save(model.state_dict()" in message


def test_whole_model_is_refused(tmp_path):
    path = saved(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    message = refusal(files.read, path)
    assert message.startswith(f"{path}: holds a pickled torch.nn.modules.linear.Linear.")


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_existing_output(tmp_path, ending):
    path = tmp_path / f"w{ending}"
    path.write_bytes(b"mine")
    message = refusal(files.write, path, tensors(), {})
    assert message.startswith(f"{path}: exists already")
    assert "--overwrite" in message
    assert path.read_bytes() == b"mine"
    files.write(path, tensors(), {}, overwrite=True)
    assert_same_bits(files.read(path).state_dict, tensors())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_is_a_folder(tmp_path, overwrite):
    path = tmp_path / "w.pth"
    path.mkdir()
    (path / "file").write_text("mine")
    message = refusal(files.write, path, tensors(), {}, overwrite=overwrite)
    assert message.startswith(f"{path}: exists already")
    assert (path / "file").read_text() == "mine"


@pytest.mark.parametrize("ending", ENDINGS)
def test_file_in_the_way_of_the_folder(tmp_path, ending):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / f"w{ending}", tmp_path / "file" / "deeper" / f"w{ending}"):
        message = refusal(files.write, path, tensors(), {})
        assert message.startswith(f"{path}: cannot be written")
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, ending, existing):
    path = tmp_path / f"w{ending}"
    if existing:
        path.write_bytes(b"mine")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(files.write, path, tensors(), {}, overwrite=True)
    assert message.startswith(f"{path}: cannot be written")
    assert "No space left" in message
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert not existing or path.read_bytes() == b"mine"


def test_torch_that_fails_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(value, file):
        file.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    path = tmp_path / "w.pth"
    message = refusal(files.write, path, tensors(), {})
    assert message.startswith(f"{path}: cannot be written (PytorchStreamWriter failed")
    assert list(tmp_path.iterdir()) == []


# --- files made to hurt ---------------------------------------------------------------------------


def pickled(folder, opcodes):
    """A `.pth` file of these opcodes."""
    with zipfile.ZipFile(folder / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + opcodes + b".")
        archive.writestr("w/version", "3\n")
    return folder / "w.pth"


def contains_itself(folder):
    value = {"state_dict": {}}
    value["state_dict"]["state_dict"] = value
    return saved(value, folder / "w.pth")


def nested_dicts(folder):
    # Not by pickle, which is recursive itself.
    return pickled(folder, b"}X\x05\x00\x00\x00model" * 100_000 + b"}" + b"s" * 100_000)


def nested_lists(folder):
    return pickled(folder, b"}X\x01\x00\x00\x00a" + b"]" * 100_000 + b"a" * 99_999 + b"s")


def many_entries(folder):
    with zipfile.ZipFile(folder / "w.pth", "w") as archive:
        for index in range(21_000):
            archive.writestr(f"archive/data/{index}", b"")
    return folder / "w.pth"


def stride_0(folder):
    return saved({"a": torch.zeros(1).expand(10**6, 10**6)}, folder / "w.pth")


def many_of_stride_0(folder):
    tensors = {f"a{i}": torch.zeros(1).expand(10**4, 10**4) for i in range(100)}
    return saved(tensors, folder / "w.pth")


def one_storage_many_times(folder):
    shared = torch.zeros(10**5)
    return saved({f"a{i}": shared for i in range(5000)}, folder / "w.pth")


def huge_storage(folder):
    path = saved({"a": torch.zeros(4)}, folder / "w.pth")
    return repacked(
        path, lambda data: data.replace(b"K\x04tq\x07", b"\x8a\x06" + LARGE + b"tq\x07")
    )


LARGE = (10**12).to_bytes(6, "little")


def huge_legacy_storage(folder):
    path = saved({"a": torch.zeros(4)}, folder / "w.pth", _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"K\x04N") == 1
    path.write_bytes(data.replace(b"K\x04N", b"\x8a\x06" + LARGE + b"N"))
    return path


def repacked(path, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            new = change(data) if name.endswith("data.pkl") else data
            archive.writestr(name, new)
    return path


def zip_bomb(folder):
    path = saved({"a": torch.zeros(10**7)}, folder / "w.pth")
    return repacked(path, bytes, zipfile.ZIP_DEFLATED)


def huge_bytearray(folder):
    return pickled(folder, b"cbuiltins\nbytearray\n\x8a\x06" + LARGE + b"\x85R")


def pipe(folder):
    os.mkfifo(folder / "w.pth")
    return folder / "w.pth"


def safetensors_pipe(folder):
    os.mkfifo(folder / "w.safetensors")
    return folder / "w.safetensors"


def safetensors_of(folder, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path = folder / "w.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(start, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


def long_header(folder):
    return safetensors_of(folder, {}, length=10**9)


def longest_header(folder):
    return safetensors_of(folder, {}, length=2**64 - 1)


def overlapping(folder):
    return safetensors_of(folder, {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12))


def beyond_the_end(folder):
    return safetensors_of(folder, {"a": entry(0, 8 * 10**12, (2 * 10**12,))}, bytes(8))


def overflowing_shape(folder):
    return safetensors_of(folder, {"a": entry(0, 0, (2**63, 0))})


def overflowing_product(folder):
    return safetensors_of(folder, {"a": entry(0, 8, (2**32, 2**32, 2))}, bytes(8))


def deep_header(folder):
    return safetensors_of(folder, b"[" * 100_000)


@pytest.mark.parametrize(
    "make",
    [
        *(contains_itself, nested_dicts, nested_lists, many_entries, stride_0, many_of_stride_0),
        *(one_storage_many_times, huge_storage, huge_legacy_storage, zip_bomb, huge_bytearray),
        *(pipe, safetensors_pipe, long_header, longest_header, overlapping, beyond_the_end),
        *(overflowing_shape, overflowing_product, deep_header),
    ],
    ids=lambda make: make.__name__,
)
def test_files_made_to_hurt(tmp_path, make):
    """One message within seconds, and without memory."""
    path = make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()  # of the process: the machine may be busy with others
    message = refusal(files.read, path)
    assert message.startswith(f"{path}: ")
    assert len(message) < 1000
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_expanded_tensors_of_a_sensible_size_are_read(tmp_path):
    path = saved({"a": torch.ones(1).expand(3, 4)}, tmp_path / "w.pth")
    assert torch.equal(files.read(path).state_dict["a"], torch.ones(3, 4))


@settings(deadline=None, max_examples=100)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_bytes(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp() / f"mutated {kind}"
    folder.mkdir(exist_ok=True)
    path = file_of(kind, folder) if kind != "safetensors" else folder / "w.safetensors"
    if kind == "safetensors":
        files.write(path, tensors(), {"key": "value"}, overwrite=True)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        files.read(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
