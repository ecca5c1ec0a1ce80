"""4DME's survey: its folders and sheets. See also test_survey.py."""

import collections
import shutil

import pytest
from fakes import fourdme as fake

from htnet_jax.datasets import Fourdme, survey

OTHER_SHEET = "Micro and Macro-expression labels.xlsx"


def _survey(root):
    audit = survey.Audit()
    return Fourdme.survey(survey.Tree(root), "", audit), audit


def kinds(audit):
    return dict(collections.Counter(finding.kind for finding in audit.findings))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"part": "micro_short_gray_video"},
        {"part": "micro short gray video/micro short gray video/micro short gray video"},
        {"part": "4DME/Gray_Micro_crop", "name": "{:05d}.png", "spell": str.lower},
        {"part": "", "spell": lambda subject: subject.replace("S0", "S")},
        {"sheet": "labels/4dme_labelling_micro_release V1.XLSX"},
        {"sheet": OTHER_SHEET},
    ],
)
def test_every_variant_gives_the_same_clips(tmp_path, faces, options):
    expected = fake.write(tmp_path, faces, **options)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert audit.findings == []
    assert found[3].id == "fourdme/S08/S08_002_01_m1"
    assert found[3].emotion == "surprise+positive"


@pytest.mark.parametrize("spelling", [2, "2", "s2", "02", "S002"])
def test_subjects_are_padded(tmp_path, faces, spelling):
    expected = fake.write(tmp_path, faces, sheet="")
    fake.write_sheet(tmp_path / fake.SHEET, [(spelling, *fake.ROWS[0][1:]), *fake.ROWS[1:]])
    found, audit = _survey(tmp_path)
    assert found == expected
    assert audit.findings == []


def test_subjects_with_other_names_stay_as_they_are(tmp_path, faces):
    row = ("Subject-B", "B_01", 11, 14, 17, "AU4", "Negative", ("4",))
    fake.write_sheet(tmp_path / fake.SHEET, [row])
    fake.write_frames(tmp_path / "gray_micro" / "subject-b" / "b_01", faces(0, 0), 11, 14, 17)
    (clip,), audit = _survey(tmp_path)
    assert clip.id == "fourdme/Subject-B/B_01"
    assert audit.findings == []


def test_columns_as_the_other_release_calls_them(tmp_path, faces):
    expected = fake.write(tmp_path, faces, part="micro_short_gray_video", sheet="")
    header = ["SubID" if name == "sub_ID" else name for name in fake.HEADER]
    fake.write_sheet(tmp_path / OTHER_SHEET, fake.ROWS, header)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert audit.findings == []


@pytest.mark.parametrize(
    "part", ["long_gray_video", "macro_short_gray_video", "micro_short_rgb_video", "Depth"]
)
def test_other_parts_of_the_release_are_not_taken(tmp_path, faces, part):
    expected = fake.write(tmp_path, faces)
    fake.write(tmp_path, faces, part=part)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert audit.findings == []
    shutil.rmtree(tmp_path / "gray_micro")
    found, audit = _survey(tmp_path)
    assert found == []
    assert kinds(audit) == {"folder": len(fake.ROWS)}
    what = "no folder S02/S02_001_01_m1 among the gray micro-expression videos"
    assert any(f.what == what for f in audit.findings)


def test_distributed_frames_are_preferred_to_crops(tmp_path, faces):
    fake.write(tmp_path, faces, part="gray_micro_crop")
    expected = fake.write(tmp_path, faces)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert audit.findings == []


def test_both_releases_are_ambiguous(tmp_path, faces):
    fake.write(tmp_path, faces, part="micro_short_gray_video")
    fake.write(tmp_path, faces)
    found, audit = _survey(tmp_path)
    assert found == []
    assert kinds(audit) == {"path": len(fake.ROWS)}


@pytest.mark.parametrize("emotion", ["Surprise+Joy", "Surprise+"])
def test_an_emotion_with_an_unknown_word(tmp_path, faces, emotion):
    expected = fake.write(tmp_path, faces)
    fake.rewrite(tmp_path, faces, lambda rows: rows[0].update(emotion=emotion))
    found, audit = _survey(tmp_path)
    assert found == [clip for clip in expected if clip.name != fake.ROWS[4][1]]
    (finding,) = audit.errors
    assert finding.what.startswith(f"emotion is {emotion!r}, expected one of positive")


@pytest.mark.parametrize("part", ["gray_micro", "micro_short_gray_video/micro_short_gray_video"])
def test_a_clip_folder_without_a_row(tmp_path, faces, part):
    expected = fake.write(tmp_path, faces, part=part)
    fake.write_frames(tmp_path / part / "S02" / "S02_009_01_m1", faces(0, 0), 1, 2, 3)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert [(f.kind, f.where) for f in audit.findings] == [("row", f"{part}/S02/S02_009_01_m1")]
    assert audit.dropped == set()


def test_labels():
    emotions = [fake.expected(row).emotion for row in fake.ROWS]
    found = {name: [*map(labels.label, emotions)] for name, labels in Fourdme.LABELS.items()}
    assert found == {
        "megc3": [0, 1, 2, None, None, 0, None, 1, 2],
        "own": [1, 0, 2, None, 3, 1, 4, 0, 2],
    }


def test_counts_are_noted_and_not_enforced():
    (counts,) = Fourdme.COUNTS
    assert (counts.clips, counts.enforced) == (267, False)
