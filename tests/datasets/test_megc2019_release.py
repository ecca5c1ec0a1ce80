"""The release's files: read as a whole, refused as a whole; face points from photographs."""

import csv
import json
import os
import shutil
import unicodedata

import cv2
import numpy as np
import pytest

from htnet_jax import errors
from htnet_jax.datasets import Megc2019, builder, loading, megc2019
from htnet_jax.datasets import megc2019_release as release
from htnet_jax.motion import regions

STRICT = release.Search()
FALL_BACK = release.Search(fall_back=True)
# The farthest point that dlib puts on these faces is 0.3 pixels of 28 from the true one.
TOLERANCE = 0.5
# Subjects of the rendered faces, by row of the tree's clip list.
SUBJECTS = (0, 2, 3, 4)
IDS = (
    "samm/096/096_1_2",
    "casme2/sub91/EP01_01",
    "casme2/sub91/EP01_02",
    "smic/s95/s95_po_01",
)


@pytest.fixture
def apexes(faces):
    """The rendered apex frames, and their true points in pixels of the 28-px image."""
    pytest.importorskip("dlib", reason="face points need dlib")
    clips = [faces(subject, 0) for subject in SUBJECTS]
    true = [(clip.landmarks[clip.apex] + 0.5) * 28 / 128 - 0.5 for clip in clips]
    return [clip.frames[clip.apex] for clip in clips], np.stack(true)


@pytest.fixture
def copy(tree, apexes):
    """The release with photographs of four faces in `photos/`."""
    tree.write()
    (tree.folder / "photos").mkdir()
    for picture, path in zip(apexes[0], _photos(tree), strict=True):
        assert cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return tree


def _photos(tree):
    return [tree.folder / "photos" / row[-1] for row in tree.rows]


def _read(tree, search=STRICT):
    return release.read(tree.folder, enforce_counts=False, search=search)


def _refusal(tree, search=None, enforce_counts=False):
    with pytest.raises(errors.UserError) as caught:
        release.read(tree.folder, enforce_counts=enforce_counts, search=search)
    return str(caught.value)


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
    message = _refusal(tree)
    assert f"{release.CLIP_LIST}: missing" in message
    assert f"{release.PNG_FOLDER}: missing" in message
    assert "the manual directory must hold" in message


def test_missing_columns_are_named(tree):
    tree.header = ["dataset", "sub", "file", "class", "apex", "imagename"]
    message = _refusal(tree.write())
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
    message = _refusal(tree)
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
        ("nose_y", 35.5, "nose is outside the 28x28 image by 8 pixels"),
        ("right_mouth_x", -9, "right_mouth is outside the 28x28 image by 8.5 pixels"),
        ("filename_o", "EP77_77", "no clip EP77_77 of subject 096 in the clip list"),
    ],
)
def test_bad_landmarks(tree, column, value, expected):
    tree.landmark_rows[0][tree.landmark_header.index(column)] = value
    message = _refusal(tree.write())
    assert f"{release.LANDMARKS} line 2: {expected}" in message
    assert "1 problem\n" in message


def test_bad_landmark_rows_are_reported_together(tree):
    tree.landmark_rows[1][3] = 99
    tree.landmark_rows.append(list(tree.landmark_rows[0]))
    message = _refusal(tree.write())
    assert f"{release.LANDMARKS} line 3: left_eye is outside" in message
    again = f"clip 096_1_2 of subject 096 again, after {release.LANDMARKS} line 2"
    assert f"{release.LANDMARKS} line 5: {again}" in message


@pytest.mark.parametrize("enforce_counts", [False, True])
def test_a_clip_list_that_is_none_is_one_problem(tree, enforce_counts):
    tree.header[2] = "name"
    message = _refusal(tree.write(), enforce_counts=enforce_counts)
    what = f"{release.CLIP_LIST}: missing column filename_o in its first line"
    assert message.startswith(f"{tree.folder}: 1 problem\n  {what}\nCorrect or restore this file; ")


def test_missing_landmark_columns_are_named(tree):
    tree.landmark_header[3] = "left_x"
    message = _refusal(tree.write())
    assert f"{release.LANDMARKS}: missing column left_eye_x" in message


@pytest.mark.parametrize("beyond", [7.0, 7.25])
def test_a_quarter_of_the_picture_outside_is_the_limit(tmp_path, beyond):
    coordinates = [9, 10, 19, 10, 14, 15, 10, 20, 27.5 + beyond, 20]
    path = tmp_path / "l.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([release.LANDMARK_COLUMNS, ["s", "c", 1, *coordinates]])
    problems = errors.Problems("l")
    found = release.read_landmarks(path, {("s", "c")}, problems)
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
    message = _refusal(tree, enforce_counts=True)
    assert "casme2: 1 negative clips, the composite has 88" in message
    assert "casme2: 1 subjects, the composite has 24" in message
    assert "all sources: 3 subjects, the composite has 68" in message
    assert "sub91_EP01_01 .png: missing" in message
    assert "release_partial" in message


def test_a_clip_list_without_clips_is_refused(tree):
    tree.rows, tree.landmark_rows = [], []
    assert "lists no clip" in _refusal(tree.write())


def test_counts_of_the_published_composite():
    assert sum(map(sum, release.CLIPS.values())) == 442
    assert sum(release.SUBJECTS.values()) == 68
    assert [sum(column) for column in zip(*release.CLIPS.values(), strict=True)] == [250, 109, 83]


# Face points from photographs.


def test_points_are_those_of_the_faces_at_28_pixels(copy, apexes):
    found = _read(copy)
    assert found.points.dtype == np.float32
    assert np.linalg.norm(found.points - apexes[1], axis=-1).max() < TOLERANCE
    assert [clip.id for clip in found.clips] == list(IDS)
    np.testing.assert_array_equal(found.flows[2], copy.picture(2))
    assert found.audit["landmarks"] == {
        "detected": 0,
        "template_in_file": 0,
        "template_no_row": 0,
        "dlib": 4,
    }
    assert found.audit["landmarks_not_from_dlib"] == {}
    assert found.audit["landmarks_outside"] == []
    assert "landmarks: 4 clips by dlib from photos; 0 clips with detected" in found.notes[1]


def test_without_a_search_photographs_change_nothing(copy):
    with_photographs = release.read(copy.folder, enforce_counts=False)
    shutil.rmtree(copy.folder / "photos")
    without = release.read(copy.folder, enforce_counts=False)
    np.testing.assert_array_equal(with_photographs.points, without.points)
    assert with_photographs.audit == without.audit
    assert with_photographs.notes == without.notes
    assert "dlib" not in without.audit["landmarks"]


def test_colour_size_proportions_folders_and_letter_case(copy, apexes):
    frames, true = apexes
    first, second, third, fourth = _photos(copy)
    assert cv2.imwrite(str(first), np.stack([frames[0]] * 3, axis=-1))
    # The flow picture shows all of the photograph, whatever its proportions.
    assert cv2.imwrite(str(second), cv2.resize(frames[1], (340, 400)))
    deeper = copy.folder / "PHOTOS_2" / "casme"
    deeper.mkdir(parents=True)
    third.rename(deeper / third.name.upper())
    (copy.folder / "link").symlink_to(copy.folder / "photos", target_is_directory=True)
    inside = copy.folder / "kept.bin"
    fourth.rename(inside)
    fourth.symlink_to(inside)
    found = _read(copy)
    assert np.linalg.norm(found.points - true, axis=-1).max() < TOLERANCE
    assert "by dlib from PHOTOS_2/casme, photos;" in found.notes[1]


def _spoil(copy, tmp_path):
    """No photograph, a text file, a flat picture, a link out of the folder."""
    missing, text, flat, link = _photos(copy)
    missing.unlink()
    text.write_text("This is not a picture.\n")
    assert cv2.imwrite(str(flat), np.full((128, 128), 90, np.uint8))
    link.rename(tmp_path / "elsewhere.jpg")
    link.symlink_to(tmp_path / "elsewhere.jpg")
    return {
        IDS[0]: "a.jpg: missing",
        IDS[1]: "photos/b.jpg: no image that OpenCV can read",
        IDS[2]: "photos/c.jpg: the detector finds no face, ",
        IDS[3]: "photos/d.jpg: a link that leads out of the chosen folder",
    }


def test_all_bad_photographs_are_reported_together_with_the_rest(copy, tmp_path):
    expected = _spoil(copy, tmp_path)
    copy.png(3).unlink()
    message = _refusal(copy, STRICT)
    assert message.startswith(f"{copy.folder}: 5 problems\n")
    for clip, what in expected.items():
        assert f"  {clip}: {what}" in message
    assert "s95_s95_po_01 .png: missing" in message
    assert "use the config 'release':" in message
    assert "'release_dlib_partial': it records for which clips" in message


def test_with_counts_enforced_the_way_out_keeps_dlib(copy):
    message = _refusal(copy, STRICT, enforce_counts=True)
    assert "casme2: 1 negative clips, the composite has 88" in message
    assert (
        "from a part of the composite on purpose, use the config 'release_dlib_partial'" in message
    )
    assert "it records for which clips" not in message  # The photographs are all right.


def test_falling_back_concerns_the_bad_photographs_only_and_is_told(copy, tmp_path, apexes):
    kept = _photos(copy)[0].read_bytes()
    expected = _spoil(copy, tmp_path)
    _photos(copy)[0].write_bytes(kept)
    del expected[IDS[0]]
    found = _read(copy, FALL_BACK)
    assert np.linalg.norm(found.points[0] - apexes[1][0], axis=-1).max() < TOLERANCE
    from_file = release.read(copy.folder, enforce_counts=False)
    np.testing.assert_array_equal(found.points[1:], from_file.points[1:])
    np.testing.assert_array_equal(found.points[1], regions.TEMPLATE_POINTS)
    assert found.audit["landmarks"] == {
        "detected": 1,
        "template_in_file": 1,
        "template_no_row": 1,
        "dlib": 1,
    }
    assert list(found.audit["landmarks_not_from_dlib"]) == list(expected)
    for clip, what in expected.items():
        assert found.audit["landmarks_not_from_dlib"][clip].startswith(what)
        assert any(f"landmarks of {clip} are not from dlib: {what}" in n for n in found.notes)
    assert found.audit["landmarks_outside"] == [IDS[3]]


def test_points_outside_count_only_where_they_are_used(copy):
    found = _read(copy, FALL_BACK)  # The file puts a point of the fourth clip outside.
    assert found.audit["landmarks_outside"] == []
    assert not any("outside" in note for note in found.notes)


def test_the_landmark_file_is_only_read_to_fall_back(copy):
    copy.landmark_rows[0][3] = "far"
    copy.write_landmarks()
    assert _read(copy).audit["landmarks"]["dlib"] == 4
    assert "left_eye_x is 'far', not a number" in _refusal(copy, FALL_BACK)


@pytest.mark.parametrize("search", [STRICT, FALL_BACK])
def test_no_folder_of_photographs_is_one_problem(copy, tmp_path, search):
    (copy.folder / "photos").rename(tmp_path / "photos")
    none = "apex photographs: no folder holds any of the 4 files that the column imagename names"
    message = _refusal(copy, search)
    assert f"1 problem\n  {none} (such as a.jpg)\n" in message
    (copy.folder / "photos").symlink_to(tmp_path / "photos", target_is_directory=True)
    links = "links that lead out of the chosen folder are not followed: photos"
    assert f"{none}; {links} (such as a.jpg)" in _refusal(copy, search)


def test_pictures_in_the_flow_folder_are_no_photographs(copy):
    for path in _photos(copy):
        path.rename(copy.folder / release.PNG_FOLDER / path.name)
    assert "no folder holds any" in _refusal(copy, STRICT)


@pytest.mark.parametrize("search", [STRICT, FALL_BACK])
def test_two_photographs_of_one_name_are_refused(copy, search):
    (copy.folder / "onsets").mkdir()
    shutil.copy(_photos(copy)[1], copy.folder / "onsets" / "B.JPG")
    message = _refusal(copy, search)
    assert "1 problem\n" in message
    assert "1 of them are there more than once, such as onsets/B.JPG and photos/b.jpg" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A.jpg", f"{IDS[1]}: A.jpg is the photograph of {IDS[0]} too"),
        ("", f"{release.CLIP_LIST} line 3: empty cell in column imagename"),
        ("../photos/b.jpg", f"{IDS[1]}: ../photos/b.jpg: missing"),
    ],
)
def test_bad_names_of_photographs(copy, name, expected):
    copy.rows[1][-1] = name
    copy.write_clips()
    assert f"1 problem\n  {expected}\n" in _refusal(copy, STRICT)


def test_a_clip_list_without_their_column(copy):
    copy.header[-1] = "picture"
    copy.write_clips()
    assert f"{release.CLIP_LIST}: missing column imagename" in _refusal(copy, STRICT)
    assert len(release.read(copy.folder, enforce_counts=False).clips) == 4


def test_a_missing_model_is_told(copy, tmp_path):
    search = release.Search(model=tmp_path / "none.dat")
    assert "none.dat: there is no such model file" in _refusal(copy, search)


def test_build_with_falling_back(copy, tmp_path, capfd, apexes):
    _photos(copy)[3].unlink()
    arrays, folder = loading.prepare(
        "megc2019",
        config="release_dlib_partial",
        manual_dir=str(copy.folder),
        data_dir=str(tmp_path / "data"),
        options=builder.Options(workers=1),
    )
    assert "release_dlib_partial" in str(folder)
    assert np.linalg.norm(arrays.landmarks[:3] - apexes[1][:3], axis=-1).max() < TOLERANCE
    np.testing.assert_array_equal(arrays.landmarks[3][0], [9, -6])
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["landmarks"]["dlib"] == 3
    assert metadata["landmarks_not_from_dlib"] == {IDS[3]: "d.jpg: missing"}
    shown = capfd.readouterr().err
    assert f"landmarks of {IDS[3]} are not from dlib: d.jpg: missing" in shown
    assert "3 clips by dlib from photos" in shown


def test_build_without_falling_back_is_refused(copy, tmp_path):
    _photos(copy)[3].unlink()
    with pytest.raises(errors.UserError, match=r"smic/s95/s95_po_01: d\.jpg: missing"):
        loading.prepare(
            "megc2019",
            config="release_dlib",
            manual_dir=str(copy.folder),
            data_dir=str(tmp_path / "data"),
            options=builder.Options(workers=1),
        )


def test_configs():
    strict = Megc2019.builder_configs["release_dlib"]
    partial = Megc2019.builder_configs["release_dlib_partial"]
    assert (strict.landmarks, strict.enforce_counts, strict.fall_back) == ("dlib", True, False)
    assert (partial.landmarks, partial.enforce_counts, partial.fall_back) == ("dlib", False, True)
    for name in ("release", "release_partial"):
        assert Megc2019.builder_configs[name].landmarks == "file"
    with pytest.raises(ValueError, match="landmarks='mtcnn' is unknown"):
        megc2019.Megc2019Config(name="x", landmarks="mtcnn")


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_how_unicode_composes_a_name_does_not_matter(tree, listed, on_disk):
    def name(form):
        return unicodedata.normalize(form, "EP01_é")

    # The landmark file comes from another machine than the clip list.
    tree.rows[2][2], tree.landmark_rows[1][1] = name(on_disk), name(on_disk)
    tree.write()
    tree.rows[2][2] = name(listed)
    tree.write_clips()
    found = _read(tree, None)
    assert [clip.name for clip in found.clips][2] == name("NFC")
    assert found.audit["landmarks"]["template_in_file"] == 1


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_only_has_the_name_of_a_flow_image(tree, kind):
    tree.write()
    path = tree.png(1)
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: p.symlink_to("nowhere")}[kind](path)
    assert f"{path.name}: cannot be read" in _refusal(tree)


def test_names_that_no_disk_can_hold(tree):
    tree.write()
    tree.rows[0][2] = "x" * 300
    tree.write_clips()
    assert f"{'x' * 300} .png: missing" in _refusal(tree)
