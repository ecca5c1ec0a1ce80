"""The survey of CAS(ME)^3 Part A: what it finds, corrects and reports."""

import collections
import dataclasses
import shutil

import pytest
from fakes import casme3 as fake

from htnet_jax.datasets import audit as audits
from htnet_jax.datasets import raw, tree
from htnet_jax.datasets.casme3 import layout


def survey(root):
    audit = audits.Audit()
    return layout.survey(tree.Tree(root), "", audit), audit


def texts(audit, kind):
    return [f"{f.clip} {f.where}: {f.what}" for f in audit.findings if f.kind == kind]


def kinds(audit):
    return dict(collections.Counter(finding.kind for finding in audit.findings))


def edited(index, **cells):
    """`fake.ROWS` with cells of one row replaced, by the columns' names in lower case."""
    rows = [list(row) for row in fake.ROWS]
    columns = [name.split()[0].lower() for name in fake.HEADER]
    for name, value in cells.items():
        rows[index][columns.index(name)] = value
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "clips"},
        {"nest": "part_A_split/data"},
        {"spell": str.upper},
        {"kind": "clips", "nest": "Part_A_ME_clip", "spell": str.lower},
        {"sheet": "annotation/CAS(ME)3_PART_A_ME_label_JpgIndex_V2.xlsx"},
    ],
)
def test_every_variant_gives_the_same_clips(tmp_path, faces, options):
    expected = fake.write(tmp_path, faces, **options)
    found, audit = survey(tmp_path)
    assert found == expected
    assert audit.findings == []
    assert found[0].id == "casme3/spNO.2/a_11"
    assert [clip.name for clip in found if clip.subject == "spNO.10"] == ["j_31", "k_41", "k_141"]


def test_the_release_of_clips_is_preferred_to_the_recordings(tmp_path, faces):
    fake.write(tmp_path, faces)
    expected = fake.write(tmp_path, faces, kind="clips")
    shutil.rmtree(expected[-1].folder)
    found, audit = survey(tmp_path)
    assert [clip.folder for clip in found[:-1]] == [clip.folder for clip in expected[:-1]]
    assert found[-1].folder == tmp_path / "part_A" / "spNO.113" / "d" / "color"
    assert audit.findings == []


def test_subjects_are_spelled_in_one_way(tmp_path, faces):
    expected = fake.write(tmp_path, faces, rows=edited(0, subject="SPno.2"))
    found, audit = survey(tmp_path)
    assert found == expected
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
    found, audit = survey(tmp_path)
    assert {
        f"{clip.subject}/{clip.name}": (clip.onset, clip.apex, clip.offset) for clip in found
    } == right
    assert kinds(audit) == {"corrected": 7}
    assert audit.errors == []
    assert any("spNO.40/e_1812" in t and "offset 1845" in t for t in texts(audit, "corrected"))
    assert len(layout.CORRECTIONS) == 6

    # A sheet that its owners have corrected is left as it is, and gives the same clips.
    rows[0] = ("spNO.149", "d", "112", "124", "358", "4", "VII", "fear")
    rows[2] = ("spNO.216", "d", "2647", "2650", "2660", "4", "VII", "fear")
    fake.write_sheet(tmp_path / fake.SHEET, rows)
    again, audit = survey(tmp_path)
    assert [clip.id for clip in again] == [clip.id for clip in found]
    assert next(clip.apex for clip in again if clip.subject == "spNO.149") == 124
    assert kinds(audit) == {"corrected": 5}


@pytest.mark.parametrize("onset", ["3647", "2647"])
def test_a_clip_folder_may_have_the_wrong_or_the_right_onset_in_its_name(tmp_path, faces, onset):
    row = ("spNO.216", "d", "3647", "2650", "2660", "4", "VII", "fear")
    fake.write_sheet(tmp_path / fake.SHEET, [row])
    folder = tmp_path / "frame" / f"spNO.216_d_{onset}"
    fake.write_frames(folder, faces(0, 0), 2647, 2650, 2660)
    found, audit = survey(tmp_path)
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
    found, audit = survey(tmp_path)
    assert (found[2].name, found[2].onset) == ("b_21", onset)
    assert (found[2].apex, found[2].offset) == (24, 27)
    corrected = texts(audit, "corrected")
    assert len(corrected) == (onset != 21)
    assert all("first 7 or 8 frames" in text and f"onset {onset}" in text for text in corrected)


@pytest.mark.parametrize(("first", "onset"), [(29, 29), (30, 21)])
def test_at_most_eight_frames_are_taken_as_unrecorded(tmp_path, faces, first, onset):
    expected = fake.write(tmp_path, faces, rows=edited(2, offset="60"))
    shutil.rmtree(expected[2].folder)
    fake.write_frames(expected[2].folder, faces(0, 2), first, None, 60)
    found, _ = survey(tmp_path)
    assert found[2].onset == onset


def test_a_folder_whose_frames_cannot_be_told_apart_keeps_the_sheets_onset(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    folder = expected[2].folder
    (folder / "21.jpg").unlink()
    shutil.copy(folder / "22.jpg", folder / "0022.jpg")
    found, audit = survey(tmp_path)
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
    fake.write(tmp_path, faces, sheet="")
    (tmp_path / name).write_bytes(b"refused by its name")
    found, audit = survey(tmp_path)
    assert found == []
    (text,) = texts(audit, "sheet")
    assert why in text
    assert name in text
    assert f"the right sheet is {fake.SHEET}" in text


def test_other_sheets_beside_the_right_one_do_not_matter(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    (tmp_path / "CAS(ME)3_part_A_v2.xls").write_bytes(b"not read")
    copy = "cas(me)3_part_A_ME_label_JpgIndex_v2 (1).xlsx"
    (tmp_path / copy).write_bytes(b"not read either")
    found, audit = survey(tmp_path)
    assert found == expected
    assert texts(audit, "note") == [f" {copy}: not used: {fake.SHEET} is"]
    assert audit.errors == []


def test_no_sheet(tmp_path, faces):
    fake.write(tmp_path, faces, sheet="")
    found, audit = survey(tmp_path)
    assert found == []
    assert kinds(audit) == {"sheet": 1}
    assert fake.SHEET in audit.report()


def test_a_sheet_without_a_needed_column(tmp_path, faces):
    fake.write(tmp_path, faces)
    header = [name.replace("Offset", "End") for name in fake.HEADER]
    fake.write_sheet(tmp_path / fake.SHEET, fake.ROWS, header)
    found, audit = survey(tmp_path)
    assert found == []
    (text,) = texts(audit, "sheet")
    assert "'label' lacks Offset" in text


def test_a_damaged_sheet(tmp_path, faces):
    fake.write(tmp_path, faces)
    data = (tmp_path / fake.SHEET).read_bytes()
    (tmp_path / fake.SHEET).write_bytes(data[: len(data) // 2])
    found, audit = survey(tmp_path)
    assert found == []
    (text,) = texts(audit, "sheet")
    assert "cannot be read as a spreadsheet" in text


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"offset": "2x"}, "Offset '2x' is no frame number"),
        ({"offset": ""}, "Offset '' is no frame number"),
        ({"offset": "20"}, "Offset 20 precedes Onset 21"),
        ({"apex": "?"}, "Apex '?' is no frame number"),
        ({"emotion": "suprise"}, "emotion 'suprise' is none of disgust"),
        ({"objective": "VIII"}, "Objective class 'VIII' is none of I"),
    ],
)
def test_a_bad_cell(tmp_path, faces, cells, what):
    expected = fake.write(tmp_path, faces, rows=edited(2, **cells))
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (text,) = texts(audit, "row")
    assert text == f"casme3/spNO.2/b_21 {fake.SHEET}, sheet label, row 4: " + text.split(": ", 1)[1]
    assert what in text
    assert audit.dropped == {"casme3/spNO.2/b_21"}


@pytest.mark.parametrize("cells", [{"onset": "x"}, {"subject": "sub02"}, {"filename": "../b"}])
def test_a_row_that_names_no_clip(tmp_path, faces, cells):
    expected = fake.write(tmp_path, faces, rows=edited(2, **cells))
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (text,) = texts(audit, "row")
    assert "they name no clip" in text
    assert repr(next(iter(cells.values()))) in text


def test_a_duplicate_row(tmp_path, faces):
    rows = [*fake.ROWS, ("spno.2", "A", "11", "15", "17", "", "", "fear")]
    expected = fake.write(tmp_path, faces, rows=rows)
    found, audit = survey(tmp_path)
    assert found == expected
    (text,) = texts(audit, "row")
    assert f"row 11: the clip again, after {fake.SHEET}, sheet label, row 2" in text
    assert audit.dropped == {"casme3/spNO.2/a_11"}


def test_a_missing_folder(tmp_path, faces):
    expected = fake.write(tmp_path, faces, kind="clips")
    shutil.rmtree(expected[2].folder)
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (text,) = texts(audit, "folder")
    assert "neither frame/spNO.2_b_21 nor spNO.2/b/color is there" in text
    assert audit.dropped == {expected[2].id}


def test_videos_must_be_extracted(tmp_path, faces):
    fake.write(tmp_path, faces, kind="videos")
    found, audit = survey(tmp_path)
    assert found == []
    found = texts(audit, "folder")
    assert len(found) == len(fake.ROWS)
    assert any(
        "only the video Part_A_ME_clip/video/spNO.2_a_11.mp4 is here; extract its frames to "
        "frame/spNO.2_a_11/NUMBER.jpg, numbered from the onset 11" in text
        for text in found
    )


def test_depth_alone_is_no_clip(tmp_path, faces):
    expected = fake.write(tmp_path, faces, kind="clips")
    shutil.rmtree(expected[0].folder)
    assert (tmp_path / "Part_A_ME_clip" / "depth" / "spNO.2_a_11").is_dir()
    _, audit = survey(tmp_path)
    assert kinds(audit) == {"folder": 1}


def test_several_folders(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    fake.write_frames(tmp_path / "copy" / "spNO.2" / "B" / "color", faces(0, 2), 21, 24, 27)
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (text,) = texts(audit, "path")
    assert "copy/spNO.2/B/color, part_A/spNO.2/b/color; keep one" in text


def test_a_clip_folder_without_a_row(tmp_path, faces):
    expected = fake.write(tmp_path, faces, kind="clips")
    parts = ("Part_A_ME_clip", "Part_A_MaE_clip")
    for part in parts:
        fake.write_frames(tmp_path / part / "frame" / "spNO.2_b_99", faces(0, 2), 99, None, 100)
    found, audit = survey(tmp_path)
    assert found == expected
    assert texts(audit, "row") == [
        " Part_A_ME_clip/frame/spNO.2_b_99: this clip folder has no row in the sheet"
    ]
    assert audit.dropped == set()


def test_a_link_out_of_the_tree_is_not_followed(tmp_path, faces):
    root = tmp_path / "manual"
    expected = fake.write(root, faces)
    shutil.move(expected[2].folder, tmp_path / "elsewhere")
    expected[2].folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found, audit = survey(root)
    assert found == expected[:2] + expected[3:]
    assert kinds(audit) == {"folder": 1}
    assert tree.Tree(root).outside == [expected[2].folder]


def test_labels():
    clips = [fake.expected(row) for row in fake.ROWS]
    three = layout.LABELS["megc3"]
    assert three.classes == ("negative", "positive", "surprise")
    assert [three.label(clip) for clip in clips] == [0, 1, 2, None, 0, 0, 2, 0, 1]
    own = layout.LABELS["own"]
    assert len(own.classes) == 7
    assert [own.classes[own.label(clip)] for clip in clips] == [clip.emotion for clip in clips]
    objective = layout.LABELS["objective"]
    assert [objective.label(clip) for clip in clips] == [2, 0, 1, 6, 2, 4, 6, 5, 0]
    assert list(layout.LABELS) == ["megc3", "own", "objective"]


def test_counts():
    words = [word for word, number in layout.EMOTIONS.items() for _ in range(number)]
    base = fake.expected(fake.ROWS[0])
    clips = [
        raw.RawClip("casme3", f"spNO.{index % 94}", f"a_{index}", word, base.folder, 1, 2, 3)
        for index, word in enumerate(words)
    ]
    audit = audits.Audit()
    layout.check_counts(clips, "", audit)
    assert audit.findings == []
    moved = [
        dataclasses.replace(clip, subject="spNO.0") if clip.subject == "spNO.93" else clip
        for clip in clips
    ]
    layout.check_counts(moved, "", audit)
    assert [finding.what for finding in audit.errors] == [
        "93 subjects, the published data set has 94"
    ]
    audit = audits.Audit()
    layout.check_counts(clips[1:], "", audit)
    assert [finding.what for finding in audit.errors] == [
        "859 clips, the published data set has 860",
        "249 clips of disgust, the published data set has 250",
    ]


def test_published_numbers_agree_with_each_other():
    assert sum(layout.EMOTIONS.values()) == layout.CLIPS
    three = layout.LABELS["megc3"].of_emotion
    counted = collections.Counter()
    for word, number in layout.EMOTIONS.items():
        counted[three.get(word)] += number
    assert counted == {"negative": 457, "positive": 55, "surprise": 187, None: 161}
