"""CAS(ME)^3's survey: its folders, each known error. See also test_survey.py."""

import collections
import shutil

import pytest
from fakes import casme3 as fake

from htnet_jax.datasets import Casme3, survey


def _survey(root):
    audit = survey.Audit()
    return Casme3.survey(survey.Tree(root), "", audit), audit


def kinds(audit):
    return dict(collections.Counter(finding.kind for finding in audit.findings))


def edited(index, **cells):
    """`fake.ROWS` with cells of one row replaced."""
    rows = [dict(zip(fake.KEYS, row, strict=True)) for row in fake.ROWS]
    rows[index] |= cells
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "clips"},
        {"nest": "part_A_split/data"},
        {"spell": str.upper},
        {"kind": "clips", "nest": "Part_A_ME_clip", "spell": str.lower},
        {"sheet": "annotation/CAS(ME)3_PART_A_ME_label_JpgIndex_V2.xlsx"},
        {"rows": edited(0, subject="SPno.2")},
    ],
)
def test_every_variant_gives_the_same_clips(tmp_path, faces, options):
    expected = fake.write(tmp_path, faces, **options)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert audit.findings == []
    assert found[0].id == "casme3/spNO.2/a_11"
    assert [clip.name for clip in found if clip.subject == "spNO.10"] == ["j_31", "k_41", "k_141"]


def test_the_release_of_clips_is_preferred_to_the_recordings(tmp_path, faces):
    fake.write(tmp_path, faces)
    expected = fake.write(tmp_path, faces, kind="clips")
    shutil.rmtree(expected[-1].folder)
    found, audit = _survey(tmp_path)
    assert [clip.folder for clip in found[:-1]] == [clip.folder for clip in expected[:-1]]
    assert found[-1].folder == tmp_path / "part_A" / "spNO.113" / "d" / "color"
    assert audit.findings == []


def test_known_errors_are_corrected(tmp_path, faces):
    rows = [
        ("spNO.149", "d", "112", "83", "358", "4", "VII", "fear"),
        ("spNO.214", "c", "5", "5", "3460", "4", "VII", "fear"),
        ("spNO.216", "d", "3647", "2650", "2660", "4", "VII", "fear"),
        ("spNO.216", "e", "0", "0", "25", "4", "VII", "fear"),
        ("spNO.40", "e", "1812", "1820", "0", "4", "VII", "fear"),
        ("spNO.40", "e", "2327", "2330", "0", "4", "VII", "fear"),
    ]
    fake.write_sheet(tmp_path / fake.SHEET, rows)
    right = {
        "spNO.40/e_1812": (1812, 1820, 1845),
        "spNO.40/e_2327": (2327, 2330, 2403),
        "spNO.149/d_112": (112, 123, 358),
        "spNO.214/c_5": (5, 5, 34),
        "spNO.216/d_2647": (2647, 2650, 2660),
        "spNO.216/e_1": (1, 1, 25),
    }
    for key, (onset, _, _) in right.items():
        subject, _, name = key.partition("/")
        folder = tmp_path / "part_A" / subject / name[0] / "color"
        fake.write_frames(folder, faces(0, 0), onset, None, onset + 1)
    found, audit = _survey(tmp_path)
    assert {f"{c.subject}/{c.name}": (c.onset, c.apex, c.offset) for c in found} == right
    assert kinds(audit) == {"corrected": 7}
    assert audit.errors == []
    assert any(
        f.clip == "casme3/spNO.40/e_1812" and f.what.startswith("offset 0 -> 1845: ")
        for f in audit.findings
    )
    assert len(Casme3.CORRECTIONS) == 6

    # A sheet that its owners have corrected is left as it is, and gives the same clips.
    rows[0] = ("spNO.149", "d", "112", "124", "358", "4", "VII", "fear")
    rows[2] = ("spNO.216", "d", "2647", "2650", "2660", "4", "VII", "fear")
    fake.write_sheet(tmp_path / fake.SHEET, rows)
    again, audit = _survey(tmp_path)
    assert [clip.id for clip in again] == [clip.id for clip in found]
    assert next(clip.apex for clip in again if clip.subject == "spNO.149") == 124
    assert kinds(audit) == {"corrected": 5}


@pytest.mark.parametrize("onset", ["3647", "2647"])
def test_a_clip_folder_may_have_the_wrong_or_the_right_onset_in_its_name(tmp_path, faces, onset):
    row = ("spNO.216", "d", "3647", "2650", "2660", "4", "VII", "fear")
    fake.write_sheet(tmp_path / fake.SHEET, [row])
    folder = tmp_path / "frame" / f"spNO.216_d_{onset}"
    fake.write_frames(folder, faces(0, 0), 2647, 2650, 2660)
    found, audit = _survey(tmp_path)
    assert [clip.folder for clip in found] == [folder]
    assert kinds(audit) == {"corrected": 1}


@pytest.mark.parametrize(
    ("lost", "onset"), [(0, 21), (1, 22), (5, 26), (6, 21), (7, 21)], ids="lost {}".format
)
def test_an_unrecorded_onset_moves_to_the_first_frame_on_disk(tmp_path, faces, lost, onset):
    """The clip has frames 21 to 27; the offset alone is no clip."""
    expected = fake.write(tmp_path, faces)
    for number in range(21, 21 + lost):
        (expected[2].folder / f"{number}.jpg").unlink()
    found, audit = _survey(tmp_path)
    assert (found[2].name, found[2].onset) == ("b_21", onset)
    assert (found[2].apex, found[2].offset) == (24, 27)
    corrected = [f.what for f in audit.findings if f.kind == "corrected"]
    assert len(corrected) == (onset != 21)
    for what in corrected:
        assert what.startswith(f"onset 21 -> {onset}, ")
        assert "first 7 or 8 frames" in what


@pytest.mark.parametrize(("first", "onset"), [(29, 29), (30, 21)])
def test_at_most_eight_frames_are_taken_as_unrecorded(tmp_path, faces, first, onset):
    expected = fake.write(tmp_path, faces, rows=edited(2, offset="60"))
    shutil.rmtree(expected[2].folder)
    fake.write_frames(expected[2].folder, faces(0, 2), first, None, 60)
    assert _survey(tmp_path)[0][2].onset == onset


def test_a_folder_whose_frames_cannot_be_told_apart_keeps_the_sheets_onset(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    folder = expected[2].folder
    (folder / "21.jpg").unlink()
    shutil.copy(folder / "22.jpg", folder / "22.JPG")
    found, audit = _survey(tmp_path)
    assert found[2].onset == 21
    assert audit.findings == []  # the check of all clips' frames reports it


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cas(me)3_part_A_ME_label_JpgIndex_v1.xls", "version 1"),
        ("CAS(ME)3_part_A_v2.xls", "without emotions"),
    ],
)
def test_other_sheets_are_refused_by_name(tmp_path, faces, name, why):
    expected = fake.write(tmp_path, faces)
    (tmp_path / name).write_bytes(b"refused by its name")
    assert _survey(tmp_path)[0] == expected  # beside the right one it does not matter
    (tmp_path / fake.SHEET).unlink()
    found, audit = _survey(tmp_path)
    assert found == []
    (finding,) = audit.findings
    assert (finding.kind, finding.where) == ("sheet", name)
    assert why in finding.what
    assert f"the right sheet is {fake.SHEET}" in finding.what


@pytest.mark.parametrize("cells", [{"subject": "sub02"}, {"name": "../b"}])
def test_a_row_that_names_no_clip(tmp_path, faces, cells):
    expected = fake.write(tmp_path, faces, rows=edited(2, **cells))
    found, audit = _survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (finding,) = audit.errors
    assert "they name no clip" in finding.what


def test_a_bad_objective_class(tmp_path, faces):
    fake.write(tmp_path, faces, rows=edited(2, objective="VIII"))
    (finding,) = _survey(tmp_path)[1].errors
    assert finding.what == "objective class is 'VIII', expected 1 to 7 or I to VII"


def test_what_a_missing_folder_should_be_called(tmp_path, faces):
    expected = fake.write(tmp_path, faces, kind="clips")
    shutil.rmtree(expected[2].folder)
    (finding,) = _survey(tmp_path)[1].errors
    assert finding.what == "neither frame/spNO.2_b_21 nor spNO.2/b/color is there"


def test_videos_must_be_extracted(tmp_path, faces):
    fake.write(tmp_path, faces, kind="videos")
    found, audit = _survey(tmp_path)
    assert found == []
    assert kinds(audit) == {"folder": len(fake.ROWS)}
    assert any(
        f.what == "neither frame/spNO.2_a_11 nor spNO.2/a/color is there; "
        "only the video Part_A_ME_clip/video/spNO.2_a_11.mp4 is there; extract its frames to "
        "numbered images in a folder spNO.2_a_11/ first, with the numbers that the sheet uses"
        for f in audit.findings
    )


def test_depth_alone_is_no_clip(tmp_path, faces):
    expected = fake.write(tmp_path, faces, kind="clips")
    shutil.rmtree(expected[0].folder)
    assert (tmp_path / "Part_A_ME_clip" / "depth" / "spNO.2_a_11").is_dir()
    assert kinds(_survey(tmp_path)[1]) == {"folder": 1}


def test_a_clip_folder_without_a_row(tmp_path, faces):
    expected = fake.write(tmp_path, faces, kind="clips")
    for part in ("Part_A_ME_clip", "Part_A_MaE_clip"):
        fake.write_frames(tmp_path / part / "frame" / "spNO.2_b_99", faces(0, 2), 99, None, 100)
    found, audit = _survey(tmp_path)
    assert found == expected
    assert [(f.kind, f.where) for f in audit.findings] == [
        ("row", "Part_A_ME_clip/frame/spNO.2_b_99")
    ]


def test_labels():
    clips = [fake.expected(row) for row in fake.ROWS]
    found = {
        name: [labels.label(clip.emotion, clip.objective) for clip in clips]
        for name, labels in Casme3.LABELS.items()
    }
    assert list(found) == ["megc3", "own", "objective"]
    assert found["megc3"] == [0, 1, 2, None, 0, 0, 2, 0, 1]
    own = Casme3.LABELS["own"].classes
    assert [own[label] for label in found["own"]] == [clip.emotion for clip in clips]
    assert found["objective"] == [2, 0, 1, 6, 2, 4, 6, 5, 0]


def test_published_counts():
    (counts,) = Casme3.COUNTS
    assert (counts.clips, counts.subjects) == (860, 94)
    found = collections.Counter()
    for word, number in counts.emotions.items():
        found[Casme3.LABELS["megc3"].label(word)] += number
    assert found == {0: 457, 1: 55, 2: 187, None: 161}
