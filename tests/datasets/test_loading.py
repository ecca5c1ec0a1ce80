"""Loading: built on first use, read afterwards, and refused with one clear message."""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from htnet_jax import errors
from htnet_jax.datasets import checks, loading
from htnet_jax.motion import regions


def _load(manual_dir, data_dir, config="release_partial"):
    return loading.load(
        "megc2019", config=config, manual_dir=str(manual_dir), data_dir=str(data_dir)
    )


def _refusal(*arguments, **options):
    with pytest.raises(errors.UserError) as caught:
        _load(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def built(tree, tmp_path):
    """(arrays, data_dir, folder of the built data)."""
    tree.write()
    arrays = _load(tree.folder, tmp_path / "data")
    return arrays, tmp_path / "data", tmp_path / "data/megc2019/release_partial/1.0.0"


def test_arrays(tree, built):
    arrays = built[0]
    assert arrays.name == "megc2019/release_partial/1.0.0"
    assert arrays.class_names == ("negative", "positive", "surprise")
    assert arrays.flow.dtype == np.float32
    np.testing.assert_array_equal(arrays.flow, [tree.picture(index) for index in range(4)])
    assert arrays.landmarks.dtype == np.float32
    np.testing.assert_array_equal(arrays.landmarks[1], regions.TEMPLATE_POINTS)
    assert arrays.labels.dtype == np.int32
    np.testing.assert_array_equal(arrays.labels, [2, 0, 1, 1])
    np.testing.assert_array_equal(arrays.subjects, ["096", "sub91", "sub91", "s95"])
    np.testing.assert_array_equal(arrays.sources, ["samm", "casme2", "casme2", "smic"])
    np.testing.assert_array_equal(arrays.emotions, ["surprise", "negative", "positive", "positive"])
    assert arrays.clips[3] == "smic/s95/s95_po_01"
    assert len(arrays.fingerprint) == 64


def test_the_second_time_needs_no_source_files(capfd, tree, built):
    first, data_dir, folder = built
    assert f"building in {folder}" in capfd.readouterr().err
    shutil.rmtree(tree.folder)
    second = _load("", data_dir)
    shown = capfd.readouterr()
    assert f"reading what was built in {folder}" in shown.err
    assert shown.out == ""
    assert second.fingerprint == first.fingerprint
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(second, field.name), getattr(first, field.name))


def test_building_is_quiet_on_standard_output_and_stays_off_the_network(
    tree, tmp_path, capfd, monkeypatch
):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tree.write()
    _load(tree.folder, tmp_path / "data")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "built, 4 clips" in shown.err


def test_the_fingerprint_sees_every_field(tree, tmp_path, built):
    prints = {built[0].fingerprint}
    for index, change in enumerate(("label", "landmark", "pixel", "subject")):
        shutil.rmtree(tree.folder)
        if change == "label":
            tree.rows[0][3] = "1"
        elif change == "landmark":
            tree.landmark_rows[0][3] = 8.75
        elif change == "pixel":
            tree.picture = lambda index: np.full((28, 28, 3), index, np.uint8)
        else:
            tree.rows[3][1] = tree.landmark_rows[2][0] = "s94"
        tree.write()
        prints.add(_load(tree.folder, tmp_path / f"data{index}").fingerprint)
    assert len(prints) == 5


def test_the_synthetic_data_set_is_loaded_without_source_files(tmp_path):
    arrays = loading.load("synthetic", config="tiny", data_dir=str(tmp_path))
    assert arrays.name.startswith("synthetic/tiny/")
    assert len(np.unique(arrays.clips)) == len(arrays.labels) == 24
    inputs = loading.network_inputs(
        arrays, layout="upright", channels=("u", "v", "strain"), scaling="minmax_255"
    )
    assert inputs.shape == arrays.flow.shape
    again = loading.load("synthetic", config="tiny", data_dir=str(tmp_path))
    assert again.fingerprint == arrays.fingerprint


def test_reading_works_without_opencv(built):
    arrays, data_dir, _ = built
    # TFDS imports OpenCV where it is installed, so hide it: a None makes its import fail.
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from htnet_jax.datasets import loading\n"
        "arrays = loading.load('megc2019', config='release_partial', data_dir=sys.argv[1])\n"
        "inputs = loading.network_inputs(arrays, layout='release', channels=('strain', 'v', 'u'))\n"
        "print(arrays.fingerprint, [n for n in ('tensorflow', 'torch') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(data_dir)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == f"{arrays.fingerprint} []"


def test_unknown_names_are_refused():
    with pytest.raises(errors.UserError, match=r"unknown data set 'mnist'; use one of .*megc2019"):
        loading.load("mnist")
    with pytest.raises(errors.UserError, match=r"unknown config .*'best'.*release, release_part"):
        loading.load("megc2019", config="best")


def test_manual_directory_missing_on_first_use(tmp_path):
    message = _refusal("", tmp_path)
    assert "no manual directory is given (dataset.manual_dir)" in message
    assert "combined_3_class2_for_optical_flow.csv" in message
    assert f"{tmp_path / 'none'} does not exist" in _refusal(tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is empty" in _refusal(tmp_path / "empty", tmp_path)


def test_a_data_folder_that_cannot_be_written(tree, tmp_path):
    tree.write()
    (tmp_path / "file").write_text("in the way")
    message = _refusal(tree.folder, tmp_path / "file" / "data")
    assert "cannot be built in" in message
    assert "dataset.data_dir" in message


def test_a_failed_build_leaves_nothing_behind(tree, tmp_path):
    tree.write()
    whole = tree.png(2).read_bytes()
    tree.png(2).write_bytes(whole[:100])
    message = _refusal(tree.folder, tmp_path / "data")
    assert "sub91_EP01_02 .png: truncated" in message
    left = list((tmp_path / "data").rglob("*array_record*"))
    assert left == []
    assert not list((tmp_path / "data/megc2019").rglob("*1.0.0*"))
    tree.png(2).write_bytes(whole)
    assert len(_load(tree.folder, tmp_path / "data").labels) == 4


def test_a_build_interrupted_while_writing_leaves_nothing_behind(tree, tmp_path, monkeypatch):
    builder = loading.datasets.Megc2019
    generate = builder._generate_examples

    def interrupted(self, found):
        yield next(iter(generate(self, found)))
        raise KeyboardInterrupt

    tree.write()
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _load(tree.folder, tmp_path / "data")
    assert not list((tmp_path / "data/megc2019").rglob("*1.0.0*"))
    assert len(_load(tree.folder, tmp_path / "data").labels) == 4


def _spoil(folder, how):
    record = next(folder.glob("*array_record*"))
    data = record.read_bytes()
    if how == "info missing":
        (folder / "dataset_info.json").unlink()
    elif how == "info damaged":
        (folder / "dataset_info.json").write_text("{")
    elif how == "record missing":
        record.unlink()
    elif how == "record empty":
        record.write_bytes(b"")
    elif how == "record truncated":
        record.write_bytes(data[: len(data) // 2])
    else:
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    "how",
    [
        "info missing",
        "info damaged",
        "record missing",
        "record empty",
        "record truncated",
        "folder empty",
    ],
)
def test_a_damaged_data_set_is_refused(tree, built, how):
    _, data_dir, folder = built
    _spoil(folder, how)
    message = _refusal(tree.folder, data_dir)
    assert "to build it again" in message
    assert str(data_dir) in message
    shutil.rmtree(folder)
    assert len(_load(tree.folder, data_dir).labels) == 4


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "features.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "\xff", "", "pipe", "folder"])
def test_hostile_records_of_a_data_set_are_one_message(tree, built, name, content):
    _, data_dir, folder = built
    (folder / name).unlink()
    if content == "pipe":
        os.mkfifo(folder / name)
    elif content == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content.encode("latin-1"))
    message = _refusal(tree.folder, data_dir)
    assert message.startswith(f"{folder / name}: damaged, or not a record of a data set (")
    assert message.endswith(f"Delete {folder} to build it again.") and "\n" not in message


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"left_out": 5}', '{"incomplete": [1]}', '{"landmarks": {"a": "b"}}']
)
def test_a_record_with_other_values_is_one_message(built, content):
    folder = built[2]
    assert loading.recorded(folder)["clips"] == 4
    (folder / "metadata.json").write_text(content)
    with pytest.raises(
        errors.UserError, match=r"metadata\.json: damaged, or not a record of a data"
    ):
        loading.recorded(folder)
    (folder / "metadata.json").unlink()
    assert loading.recorded(folder) == {"left_out": [], "incomplete": [], "landmarks": {}}


def test_a_pipe_in_place_of_the_clips(tree, built):
    _, data_dir, folder = built
    record = next(folder.glob("*array_record*"))
    record.unlink()
    os.mkfifo(record)
    assert "a pipe, socket or device, not a regular file" in _refusal(tree.folder, data_dir)


@pytest.mark.parametrize("count", ["99999999999999", "-1", "1e9", "3"])
def test_more_clips_than_there_are(tree, built, count):
    _, data_dir, folder = built
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [count]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    if count == "3":  # a part of what is there
        assert len(_load(tree.folder, data_dir).labels) == 3
    else:
        assert "to build it again" in _refusal(tree.folder, data_dir)


@hypothesis.given(
    which=st.integers(0, 99),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=9),
)
@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_any_bytes_in_a_built_data_set(tiny, tiny_dir, tmp_path, which, changes):
    folder = tmp_path / "synthetic" / "tiny" / "1.0.0"
    shutil.copytree(loading.built("synthetic", config="tiny", data_dir=tiny_dir), folder)
    path = sorted(folder.iterdir())[which % len(list(folder.iterdir()))]
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        arrays = loading.load("synthetic", config="tiny", data_dir=str(tmp_path))
        assert len(arrays.clips) <= 24
    except errors.UserError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["\udcff", "a\0b"])
def test_a_data_folder_whose_name_is_no_text(name, tmp_path):
    with pytest.raises(errors.UserError, match="its name is not UTF-8 text; choose another"):
        loading.load("synthetic", config="tiny", data_dir=str(tmp_path / name))


def test_a_home_folder_that_is_not_known(tmp_path):
    for options in ({"data_dir": "~nosuchuser"}, {"manual_dir": "~nosuchuser"}):
        with pytest.raises(errors.UserError, match="give the path without ~"):
            loading.load("samm", **({"data_dir": str(tmp_path)} | options))


def test_the_variable_for_the_data_folder_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    assert len(loading.load("synthetic", config="tiny").clips) == 24
    assert (tmp_path / "data/synthetic/tiny").is_dir()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file"])
def test_a_manual_directory_that_cannot_be_read(tmp_path, name):
    (tmp_path / "file").touch()
    message = _refusal(tmp_path / name, tmp_path / "data")
    assert "cannot be read (" in message and "give a folder that you may read" in message


def test_a_manual_directory_without_permission(tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", denied)
    assert "cannot be read (Permission denied)" in _refusal(tmp_path, tmp_path / "data")


def test_network_inputs_of_the_release(built):
    arrays = built[0]
    inputs = loading.network_inputs(arrays, layout="release", channels=("strain", "v", "u"))
    assert inputs.shape == (4, 28, 28, 3)
    assert inputs.dtype == np.float32
    # Clip 0's left eye is (9, 10): the crop starts at row 9 - 7, column 10 - 7. Its channels are
    # strain = 200 - row, v = 100 + column, u = row + 0.
    np.testing.assert_array_equal(inputs[0, 0, 0], [198, 103, 2])
    # Right mouth corner (18, 20): row 11, column 13.
    np.testing.assert_array_equal(inputs[0, 14, 14], [189, 113, 11])
    for index in range(4):
        expected = regions.mosaic(arrays.flow[index], arrays.landmarks[index], "release")
        np.testing.assert_array_equal(inputs[index], expected[..., ::-1])


def test_network_inputs_upright_and_whole(built):
    arrays = built[0]
    upright = loading.network_inputs(arrays, layout="upright", channels=["u", "v"])
    assert upright.shape == (4, 28, 28, 2)
    np.testing.assert_array_equal(upright[0, 0, 0], [3, 102])
    whole = loading.network_inputs(arrays, layout="none", channels=["v"])
    np.testing.assert_array_equal(whole, arrays.flow[..., 1:2])


def test_network_inputs_are_scaled_before_the_mosaic(built):
    arrays = built[0]
    inputs = loading.network_inputs(arrays, layout="release", channels=["u"], scaling="minmax_255")
    # u runs from 0 to 27 over the whole clip 0; the first crop starts at row 2.
    np.testing.assert_allclose(inputs[0, :14, 0, 0], np.arange(2, 16) * 255 / 27, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "sideways", "channels": ["u"]}, "release, upright, none"),
        ({"layout": "none", "channels": ["w"]}, "unknown channel 'w'; use one of u, v, strain"),
        ({"layout": "none", "channels": []}, "no channels"),
        ({"layout": "none", "channels": ["u"], "scaling": "log"}, "none, minmax_255"),
    ],
)
def test_network_inputs_refuse_unknown_names(built, options, message):
    with pytest.raises(errors.UserError, match=message):
        loading.network_inputs(built[0], **options)


def test_network_inputs_name_every_bad_clip(built):
    landmarks = built[0].landmarks.copy()
    landmarks[[1, 3]] = np.nan
    arrays = dataclasses.replace(built[0], landmarks=landmarks)
    with pytest.raises(errors.UserError) as caught:
        loading.network_inputs(arrays, layout="upright", channels=["u"])
    message = str(caught.value)
    assert "2 problems" in message
    assert "casme2/sub91/EP01_01: points must be finite" in message
    assert "smic/s95/s95_po_01: points must be finite" in message


def test_the_real_release(tmp_path):
    root = os.environ.get("HTNET_DATA", "")
    manual_dir = pathlib.Path(root) / "megc2019"
    if not root or not manual_dir.is_dir():
        pytest.skip("set HTNET_DATA to the folder that holds megc2019/ (the released flows)")
    arrays = _load(manual_dir, tmp_path, config="")
    assert arrays.name == "megc2019/release/1.0.0"
    assert arrays.flow.shape == (442, 28, 28, 3)
    np.testing.assert_array_equal(np.bincount(arrays.labels), [250, 109, 83])
    assert len(np.unique(arrays.subjects)) == 68
    assert len(np.unique(arrays.clips)) == 442
    assert "006" in arrays.subjects
    inputs = loading.network_inputs(arrays, layout="release", channels=("strain", "v", "u"))
    assert inputs.shape == (442, 28, 28, 3)
    # The build and the check of built data count the same clips.
    (folder,) = (tmp_path / "megc2019/release").iterdir()
    noted = json.loads((folder / "metadata.json").read_text())["landmarks_outside"]
    checkup = checks.check(arrays, arrays.subjects, [])
    found = [f.clip for f in checkup.findings if "outside the image" in f.what]
    assert len(found) == 33 and sorted(found) == sorted(noted)


# What a report shows.


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return loading.load("synthetic", config="tiny", data_dir=tiny_dir)


def test_flow_in_pixels_has_its_zero(tiny):
    inputs = np.zeros_like(tiny.flow)
    found = loading.images(tiny, inputs, "release")
    assert found.centred
    assert found.mosaic is inputs
    np.testing.assert_array_equal(found.flow, tiny.flow)
    np.testing.assert_array_equal(found.clips, tiny.clips)


def test_flow_scaled_to_an_image_has_none(tiny):
    scaled = loading.network_inputs(
        tiny, layout="none", channels=("u", "v", "strain"), scaling="minmax_255"
    )
    found = loading.images(dataclasses.replace(tiny, flow=scaled), scaled, "none")
    assert not found.centred
    # The network sees the flow itself: no second image.
    assert found.mosaic is None


def test_inputs_of_other_clips(tiny):
    with pytest.raises(ValueError, match="3 inputs for 24 clips"):
        loading.images(tiny, np.zeros((3, 28, 28, 3), np.float32), "release")


def test_where_a_data_set_is_built(tiny, tiny_dir):
    folder = loading.built("synthetic", config="tiny", data_dir=tiny_dir)
    assert folder.is_dir()
    assert str(folder).startswith(tiny_dir)
    assert tiny.name.endswith(str(folder.relative_to(tiny_dir)))


def test_looking_for_a_data_set_builds_nothing(tmp_path):
    assert loading.built("synthetic", config="tiny", data_dir=str(tmp_path / "none")) is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(errors.UserError, match="unknown data set 'nothing'"):
        loading.built("nothing", data_dir=str(tmp_path))


def test_a_build_says_in_a_log_what_it_does(tmp_path, capfd):
    """In plain lines: TFDS's own bars would move the cursor."""
    loading.load("synthetic", config="tiny", data_dir=str(tmp_path))
    shown = capfd.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(",")[0] for line in shown] == [
        f"building in {tmp_path}/synthetic/tiny/1.0.0",
        "24/24 clips",
        "built",
    ]
