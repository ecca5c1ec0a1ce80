"""The megc2019 builder: what it stores, and what it refuses."""

import csv
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

import htnet_jax.datasets
from htnet_jax import errors
from htnet_jax.datasets.megc2019 import counts, landmarks, release
from htnet_jax.motion import regions


def _build(manual_dir, data_dir, config):
    builder = tfds.builder("megc2019", config=config, data_dir=data_dir)
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    builder.download_and_prepare(download_config=settings)
    return tfds.builder("megc2019", config=config, data_dir=data_dir)


def _refusal(folder, enforce_counts=False):
    with pytest.raises(errors.UserError) as caught:
        release.read(folder, enforce_counts=enforce_counts)
    return str(caught.value)


def test_release_is_the_default_config():
    assert htnet_jax.datasets.BUILDERS["megc2019"].name == "megc2019"
    configs = list(htnet_jax.datasets.Megc2019.builder_configs)
    releases = ["release", "release_partial", "release_dlib", "release_dlib_partial"]
    assert configs[:4] == releases
    assert "tvl1_28" in configs[4:]


def test_build_stores_the_files_as_they_are(tree, tmp_path, capfd):
    tree.write()
    builder = _build(tree.folder, tmp_path / "data", "release_partial")
    examples = builder.as_data_source(split="train")
    assert [example["clip"] for example in examples] == [
        b"samm/096/096_1_2",
        b"casme2/sub91/EP01_01",
        b"casme2/sub91/EP01_02",
        b"smic/s95/s95_po_01",
    ]
    assert [example["subject"] for example in examples] == [b"096", b"sub91", b"sub91", b"s95"]
    assert [example["source"] for example in examples] == [b"samm", b"casme2", b"casme2", b"smic"]
    assert [example["label"] for example in examples] == [2, 0, 1, 1]
    assert examples[0]["emotion"] == b"surprise"
    for index, example in enumerate(examples):
        assert example["flow"].dtype == np.float32
        np.testing.assert_array_equal(example["flow"], tree.picture(index))
    np.testing.assert_array_equal(
        examples[0]["landmarks"], [[9, 10], [19.5, 10], [14, 15], [10, 20], [18, 20]]
    )
    np.testing.assert_array_equal(examples[1]["landmarks"], regions.TEMPLATE_POINTS)
    # As in the file, before any clipping.
    np.testing.assert_array_equal(examples[3]["landmarks"][0], [9, -6])

    metadata = builder.info.metadata
    assert metadata["clips"] == 4
    assert metadata["subjects"] == 3
    assert metadata["per_source"]["casme2"] == {
        "negative": 1,
        "positive": 1,
        "surprise": 0,
        "subjects": 1,
    }
    assert metadata["landmarks"] == {"detected": 2, "template_in_file": 1, "template_no_row": 1}
    assert metadata["landmarks_outside"] == ["smic/s95/s95_po_01"]
    assert "all sources: 4 clips, the composite has 442" in metadata["differences"]

    shown = capfd.readouterr().err
    assert "2 clips with detected points, 1 with the template rows" in shown
    assert "1 without a row there" in shown
    assert "up to 6.0 pixels outside" in shown
    assert "not the full composite: smic: 0 negative clips, the composite has 70" in shown


def test_description_and_citation_come_from_the_files_beside_the_builder(tmp_path):
    builder = tfds.builder("megc2019", data_dir=tmp_path)
    assert "442 spontaneous micro-expression clips" in builder.info.description
    assert "see2019megc" in builder.info.citation
    valid = tfds.core.dataset_metadata.valid_tags()
    tags = builder.get_metadata().tags
    assert tags
    assert set(tags) <= set(valid)


def test_file_names_without_the_stray_space(tree):
    found = release.read(tree.write(stray_space=False).folder, enforce_counts=False)
    np.testing.assert_array_equal(found.flows[3], tree.picture(3))


def test_without_a_landmark_file_every_clip_has_the_template(tree):
    tree.write()
    (tree.folder / release.LANDMARKS).unlink()
    found = release.read(tree.folder, enforce_counts=False)
    np.testing.assert_array_equal(found.points, np.tile(regions.TEMPLATE_POINTS, (4, 1, 1)))
    assert found.audit["landmarks"] == {
        "detected": 0,
        "template_in_file": 0,
        "template_no_row": 4,
    }


def test_missing_files_are_listed_together(tree):
    tree.folder.mkdir()
    message = _refusal(tree.folder)
    assert f"{release.CLIP_LIST}: missing" in message
    assert f"{release.PNG_FOLDER}: missing" in message
    assert "the manual directory must hold" in message


def test_missing_columns_are_named(tree):
    tree.header = ["dataset", "sub", "file", "class", "apex", "imagename"]
    message = _refusal(tree.write().folder)
    assert f"{release.CLIP_LIST}: missing column filename_o, label" in message


def test_all_bad_rows_and_pictures_are_reported_together(tree):
    tree.rows += [
        ["casme2", "sub92", "EP02_01", "7", "", ""],
        ["casme3", "sub93", "EP02_01", "0", "", ""],
        ["casme2", "sub91", "EP01_01", "1", "", ""],
        ["smic", "sub91", "EP09_01", "1", "", ""],
        ["smic", "", "EP09_02", "1", "", ""],
    ]
    tree.write()
    tree.rows += [["smic", "s96", "../up", "1", "", ""]]
    tree.write_clips()
    tree.png(0).unlink()
    tree.png(2).write_bytes(tree.png(2).read_bytes()[:-20])
    message = _refusal(tree.folder)
    name = release.CLIP_LIST
    assert f"{name} line 6: unknown label '7', expected one of 0 negative, 1 positive" in message
    assert f"{name} line 7: unknown dataset 'casme3', expected one of smic, casme2" in message
    assert f"{name} line 8: duplicate clip EP01_01 of subject sub91: also {name} line 3" in message
    assert f"{name} line 9: subject sub91 is in casme2 and in smic" in message
    assert f"{name} line 10: empty cell in column sub" in message
    assert f"{name} line 11: a subject or clip name must not contain a slash" in message
    assert f"{release.PNG_FOLDER}/096_096_1_2 .png: missing" in message
    assert f"{release.PNG_FOLDER}/sub91_EP01_02 .png: truncated" in message
    assert message.startswith(f"{tree.folder}: 8 problems\n")


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("left_eye_x", "far", "left_eye_x is 'far', not a number"),
        ("left_eye_x", "nan", "left_eye_x is 'nan', not a finite number"),
        ("nose_y", "-inf", "nose_y is '-inf', not a finite number"),
        ("nose_y", "", "empty cell in column nose_y"),
        ("detected", "yes", "detected is 'yes', expected 0 or 1"),
        ("nose_y", 35.5, "nose is outside the 28x28 picture by 7.5 pixels"),
        ("right_mouth_x", -9, "right_mouth is outside the 28x28 picture by 9 pixels"),
        ("filename_o", "EP77_77", "no clip EP77_77 of subject 096 in the clip list"),
    ],
)
def test_bad_landmarks(tree, column, value, expected):
    tree.landmark_rows[0][tree.landmark_header.index(column)] = value
    message = _refusal(tree.write().folder)
    assert f"{release.LANDMARKS} line 2: {expected}" in message
    assert "1 problem\n" in message


def test_bad_landmark_rows_are_reported_together(tree):
    tree.landmark_rows[1][3] = 99
    tree.landmark_rows.append(list(tree.landmark_rows[0]))
    message = _refusal(tree.write().folder)
    assert f"{release.LANDMARKS} line 3: left_eye is outside" in message
    again = f"clip 096_1_2 of subject 096 again, after {release.LANDMARKS} line 2"
    assert f"{release.LANDMARKS} line 5: {again}" in message


def test_missing_landmark_columns_are_named(tree):
    tree.landmark_header[3] = "left_x"
    message = _refusal(tree.write().folder)
    assert f"{release.LANDMARKS}: missing column left_eye_x" in message


@pytest.mark.parametrize("beyond", [7.0, 7.25])
def test_a_quarter_of_the_picture_outside_is_the_limit(tmp_path, beyond):
    coordinates = [9, 10, 19, 10, 14, 15, 10, 20, 28 + beyond, 20]
    path = tmp_path / "l.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([landmarks.COLUMNS, ["s", "c", 1, *coordinates]])
    problems = errors.Problems("l")
    found = landmarks.read_landmarks(path, {("s", "c")}, 28, problems)
    if beyond == 7:
        assert not problems
        assert found["s", "c"].outside == 7
        assert found["s", "c"].detected
    else:
        assert "right_mouth is outside" in problems.found[0][1]
        assert found == {}


def test_wrong_counts_are_refused_with_the_way_out(tree):
    tree.write()
    tree.png(1).unlink()
    message = _refusal(tree.folder, enforce_counts=True)
    assert "casme2: 1 negative clips, the composite has 88" in message
    assert "casme2: 1 subjects, the composite has 24" in message
    assert "all sources: 3 subjects, the composite has 68" in message
    assert "sub91_EP01_01 .png: missing" in message
    assert "release_partial" in message


def test_a_clip_list_without_clips_is_refused(tree):
    tree.rows, tree.landmark_rows = [], []
    assert "lists no clip" in _refusal(tree.write().folder)


def test_counts_of_the_published_composite():
    assert sum(map(sum, counts.CLIPS.values())) == 442
    assert sum(counts.SUBJECTS.values()) == 68
    assert [sum(column) for column in zip(*counts.CLIPS.values(), strict=True)] == [250, 109, 83]


def test_the_real_release(tmp_path):
    root = os.environ.get("HTNET_DATA", "")
    manual_dir = pathlib.Path(root) / "megc2019"
    if not root or not manual_dir.is_dir():
        pytest.skip("set HTNET_DATA to the folder that holds megc2019/ (the released flows)")
    builder = _build(manual_dir, tmp_path, "release")
    metadata = builder.info.metadata
    assert metadata["clips"] == 442
    assert metadata["subjects"] == 68
    assert metadata["differences"] == []
    assert metadata["landmarks"] == {
        "detected": 270,
        "template_in_file": 172,
        "template_no_row": 0,
    }
    examples = list(builder.as_data_source(split="train"))
    with (manual_dir / release.CLIP_LIST).open(newline="") as file:
        listed = [f"{row[0]}/{row[1]}/{row[2]}".encode() for row in list(csv.reader(file))[1:]]
    assert [example["clip"] for example in examples] == listed
    flows = np.stack([example["flow"] for example in examples])
    # Each released channel is min-max scaled to 0..255 a clip.
    assert flows.min() == 0
    assert flows.max() == 255
    np.testing.assert_array_equal(flows, np.round(flows))
    template = np.all(
        np.stack([example["landmarks"] for example in examples]) == regions.TEMPLATE_POINTS,
        axis=(1, 2),
    )
    assert template.sum() == 172
