"""CASME II's survey: every tree and sheet, each known error, each finding."""

import collections
import pathlib
import shutil

import pytest
from fakes import casme2 as fake

from htnet_jax.datasets import audit, process, raw
from htnet_jax.datasets.casme2 import layout
from htnet_jax.datasets.tree import Tree


def _survey(root, variant="raw"):
    report = audit.Audit()
    return layout.survey(Tree(root), variant, report), report


def _found(report, kind):
    return [f for f in report.findings if f.kind == kind]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("tree", list(fake.TREES))
@pytest.mark.parametrize("variant", layout.VARIANTS)
def test_every_tree_gives_its_clips(root, faces, tree, variant):
    expected = fake.write(root, faces, tree=tree)
    clips, report = _survey(root, variant)
    assert clips == expected
    assert not report.errors
    notes = [f.what for f in _found(report, "note")]
    there = "raw" if fake.TREES[tree][1] == "img" else "cropped"
    swapped = f"there are no {variant} pictures; the {there} ones are used"
    assert (swapped in notes) == (there != variant)
    for clip in clips:
        gap = layout.KNOWN_GAPS.get(clip.id, "")
        kinds = [f.kind for f in process.check_frames(clip, gap)]
        known = clip.id == "casme2/sub16/EP01_08" and there == "cropped"
        assert kinds == (["note"] if known else [])


def test_letter_case_and_padding_of_folders(root, faces):
    expected = fake.write(root, faces, padded=False)
    clips, report = _survey(root)
    assert clips == expected
    assert [clip.subject for clip in clips[::4]] == ["sub01", "sub04", "sub16"]
    assert not report.errors


def test_the_variant_chooses_between_raw_and_cropped(root, faces):
    raw_clips = fake.write(root, faces, tree="nested")
    cropped = fake.write(root, faces, tree="cropped")
    assert _survey(root, "raw")[0] == raw_clips
    assert _survey(root, "cropped")[0] == cropped
    # A clip that only the other tree has is missing: pictures of two kinds are never mixed.
    shutil.rmtree(cropped[0].folder)
    clips, report = _survey(root, "cropped")
    assert clips == cropped[1:]
    assert [f.clip for f in _found(report, "folder")] == [cropped[0].id]


def test_the_full_recordings_are_preferred_to_their_selection(root, faces):
    fake.write(root, faces, tree="selected")
    full = fake.write(root, faces, tree="full")
    clips, report = _survey(root)
    assert clips == full
    assert not report.errors


def test_two_cropped_trees_are_ambiguous(root, faces):
    fake.write(root, faces, tree="updated")
    fake.write(root, faces, tree="original")
    clips, report = _survey(root, "cropped")
    assert clips == []
    found = _found(report, "path")
    assert len(found) == 12
    assert found[-1].what == (
        "2 folders: Cropped-updated/Cropped/sub01/EP92_02_01, Cropped_original/sub01/EP92_02_01"
    )
    assert len(report.dropped) == 12


@pytest.mark.parametrize("name", ["casme2-CODING-20190701.xlsx", "CASME2-coding-20140508.xls"])
def test_other_sheets_and_objective_classes(root, faces, name):
    expected = fake.write(root, faces, sheet=name, objective=True)
    clips, report = _survey(root)
    assert clips == expected
    assert report.findings == []
    assert {clip.objective for clip in clips} == {1, 2, 4, 5, 6, 7}


def test_without_objective_classes_there_is_a_note(root, faces):
    fake.write(root, faces)
    clips, report = _survey(root)
    assert {clip.objective for clip in clips} == {0}
    assert ["labels=objective finds no clip" in f.what for f in report.findings] == [True]


def test_of_several_sheets_that_of_2014_is_used(root, faces):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    for row in rows:
        row["emotion"] = "surprise"
    # Sorts first, and stands at the top.
    fake.write_sheet(root / "CASME2-coding-20120101.xlsx", rows)
    fake.write_sheet(root / "CASME2-coding-20190701.xlsx", rows)
    clips, report = _survey(root)
    assert clips == expected
    left = "left aside: CASME2-coding-20190701.xlsx, CASME2-coding-20120101.xlsx"
    assert any(f.where == fake.SHEET and left in f.what for f in _found(report, "note"))


def test_an_apex_that_is_not_given(root, faces):
    fake.write(root, faces)
    rows = fake.rows(faces)
    rows[1]["apex"] = None
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    without = [clip.id for clip in clips if clip.apex is None]
    assert without == ["casme2/sub04/EP12_01f", f"casme2/sub04/{rows[1]['name']}"]
    assert not report.errors


def test_an_impossible_apex_is_left_to_the_central_rule(root, faces):
    fake.write(root, faces)
    rows = fake.rows(faces)
    rows[1]["apex"] = rows[1]["offset"] + 5
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert [c.apex for c in clips if c.name == rows[1]["name"]] == [rows[1]["offset"] + 5]
    assert not report.errors


def test_no_sheet(root, faces):
    fake.write(root, faces, sheet="")
    clips, report = _survey(root)
    assert clips == []
    assert [f.kind for f in report.findings] == ["sheet"]
    assert "no CASME2-coding-20140508.xlsx" in report.findings[0].what


def test_the_older_list_is_refused(root, faces):
    fake.write(root, faces, sheet="")
    fake.write_sheet(root / "CASME2_label_Ver_2.xls", fake.rows(faces))
    clips, report = _survey(root)
    assert clips == []
    assert [(f.kind, f.where) for f in report.findings] == [("sheet", "CASME2_label_Ver_2.xls")]
    assert "add CASME2-coding-20140508.xlsx" in report.findings[0].what


def test_a_missing_column(root, faces):
    fake.write(root, faces)
    fake.write_sheet(root / fake.SHEET, fake.rows(faces), without=("ApexFrame",))
    clips, report = _survey(root)
    assert clips == []
    assert [f.kind for f in report.findings] == ["sheet"]
    assert "sheet 'Sheet1' lacks ApexFrame" in report.findings[0].what


@pytest.mark.parametrize(
    "content",
    # A workbook with a password is an OLE container; the other is a truncated archive.
    [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), b"PK\x03\x04 damaged"],
)
def test_a_locked_or_damaged_sheet(root, faces, content):
    fake.write(root, faces, sheet="")
    (root / fake.SHEET).write_bytes(content)
    clips, report = _survey(root)
    assert clips == []
    assert [(f.kind, f.where) for f in report.findings] == [("sheet", fake.SHEET)]
    assert "cannot be read as a spreadsheet" in report.findings[0].what


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("onset", "soon", "onset frame is 'soon', not a whole number"),
        ("onset", None, "onset frame is '', not a whole number"),
        ("apex", 12.5, "apex frame is '12.5', not a whole number"),
        ("offset", "-", "offset frame is '-', not a whole number"),
        ("offset", 1, "offset frame 1 lies before onset frame 5"),
        ("emotion", "boredom", "emotion 'boredom' is unknown, expected one of happiness, disgust"),
        ("objective", 8, "objective class is '8', expected 1 to 7"),
    ],
)
def test_a_bad_cell(root, faces, key, value, what):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    rows[1][key] = value
    fake.write_sheet(root / fake.SHEET, rows, objective=True)
    clips, report = _survey(root)
    assert [clip.id for clip in clips] == [c.id for c in expected if c.name != "EP93_1"]
    (finding,) = report.errors
    assert finding.where == f"{fake.SHEET}, sheet Sheet1, row 3"
    assert finding.what.startswith(what)
    assert report.dropped == {"casme2/sub04/EP93_1"}


@pytest.mark.parametrize(("key", "value"), [("subject", "mean"), ("subject", ""), ("name", None)])
def test_a_row_that_is_no_clip(root, faces, key, value):
    fake.write(root, faces)
    rows = fake.rows(faces)
    rows.append({**rows[0], "name": "EP99", key: value})
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert len(clips) == 12
    (finding,) = report.errors
    assert (finding.kind, finding.where) == ("row", f"{fake.SHEET}, sheet Sheet1, row 14")
    assert "no subject's clip" in finding.what


def test_a_row_again(root, faces):
    fake.write(root, faces)
    rows = fake.rows(faces)
    rows.append({**rows[1], "name": rows[1]["name"].lower()})
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert len(clips) == 12
    (finding,) = report.errors
    assert finding.kind == "row"
    assert finding.what == f"sub04/ep93_1 again, after {fake.SHEET}, sheet Sheet1, row 3"


def test_a_missing_folder(root, faces):
    expected = fake.write(root, faces)
    shutil.rmtree(expected[3].folder)
    clips, report = _survey(root)
    assert clips == expected[:3] + expected[4:]
    (finding,) = report.errors
    assert (finding.kind, finding.clip) == ("folder", expected[3].id)
    assert report.dropped == {expected[3].id}


def test_a_link_out_of_the_folder_is_not_followed(root, faces, tmp_path):
    expected = fake.write(root, faces)
    outside = tmp_path / "outside"
    expected[0].folder.rename(outside)
    expected[0].folder.symlink_to(outside)
    clips, report = _survey(root)
    assert clips == expected[1:]
    assert [f.clip for f in _found(report, "folder")] == [expected[0].id]
    assert Tree(root).outside == [expected[0].folder]


def test_folders_without_a_row(root, faces):
    expected = fake.write(root, faces)
    base = root / "CASME2_RAW_selected"
    for folder in ("sub01/EP98_07", "sub09/EP02_02f", "sub24/EP02_07", "notes/EP98_07"):
        (base / folder).mkdir(parents=True)
    clips, report = _survey(root)
    assert clips == expected
    (finding,) = report.errors
    assert (finding.kind, finding.where) == ("row", "CASME2_RAW_selected/sub01/EP98_07")
    assert not report.dropped
    known = [pathlib.Path(f.where).name for f in _found(report, "note") if "no row" in f.what]
    assert sorted(known) == ["EP02_02f", "EP02_07"]


def test_label_sets(root, faces):
    fake.write(root, faces, objective=True)
    clips, _ = _survey(root)
    counted = {}
    for name, labels in layout.LABELS.items():
        found = [labels.label(clip) for clip in clips]
        assert all(label is None or 0 <= label < len(labels.classes) for label in found)
        counted[name] = collections.Counter(
            labels.classes[label] for label in found if label is not None
        )
    assert counted["megc3"] == {"negative": 3, "positive": 3, "surprise": 3}
    assert counted["five"] == {
        **{"happiness": 3, "surprise": 3, "disgust": 2},
        **{"repression": 1, "others": 1},
    }
    assert counted["own"] == {**counted["five"], "sadness": 1, "fear": 1}
    assert counted["mmnet5"] == counted["five"]
    assert counted["mmnet3"] == {"happiness": 3, "surprise": 3, "negative": 5}
    assert counted["objective"] == {"I": 3, "II": 3, "IV": 2, "V": 2, "VI": 1, "VII": 1}


def _published(year):
    """Invented clips with the published counts."""
    emotions = [name for name, n in layout.EMOTIONS[year].items() for _ in range(n)]
    return [
        raw.RawClip("casme2", f"sub{i % 26 + 1:02d}", f"c{i}", emotion, pathlib.Path(), 1, 2, 3)
        for i, emotion in enumerate(emotions)
    ]


def _counts(clips):
    report = audit.Audit()
    layout.check_counts(clips, "raw", report)
    return report


def test_published_counts_give_no_finding():
    assert len(_published("2014")) == len(_published("2019")) == 255
    assert _counts(_published("2014")).findings == []
    newer = _counts(_published("2019"))
    assert not newer.errors
    assert ["three clips of sub24 differ" in f.what for f in newer.findings] == [True]
    labels = layout.LABELS["megc3"]
    found = collections.Counter(labels.label(clip) for clip in _published("2014"))
    assert found == {0: 90, 1: 32, 2: 25, None: 108}
    labels = layout.LABELS["five"]
    assert sum(labels.label(clip) is not None for clip in _published("2014")) == 246


def test_labels_of_mmnet_are_numbered_as_its_release_does():
    """A converted checkpoint's outputs have this order."""
    of = {clip.emotion: clip for clip in _published("2014")}
    five, three = layout.LABELS["mmnet5"], layout.LABELS["mmnet3"]
    order = ("happiness", "repression", "disgust", "surprise", "others")
    assert five.classes == order
    assert [five.label(of[emotion]) for emotion in order] == [0, 1, 2, 3, 4]
    assert five.label(of["sadness"]) is five.label(of["fear"]) is None
    assert three.classes == ("happiness", "surprise", "negative")
    found = {emotion: three.label(clip) for emotion, clip in of.items()}
    assert found == {
        **{"happiness": 0, "surprise": 1, "others": None},
        **dict.fromkeys(("repression", "disgust", "sadness", "fear"), 2),
    }
    for labels, expected in (
        (five, {0: 32, 1: 27, 2: 63, 3: 25, 4: 99, None: 9}),
        (three, {0: 32, 1: 25, 2: 99, None: 99}),
    ):
        assert collections.Counter(map(labels.label, _published("2014"))) == expected


def test_each_wrong_count_is_a_finding():
    report = _counts(_published("2019")[1:])
    assert [f.what for f in report.errors] == [
        "254 clips, the published data set has 255",
        "31 happiness clips, the published data set has 32",
    ]
    assert {f.where for f in report.errors} == {"casme2, sheet of 2019"}
    few = [clip for clip in _published("2014") if clip.subject != "sub26"]
    assert "25 subjects, the published data set has 26" in [f.what for f in _counts(few).errors]
    assert [f.what for f in _counts([]).errors] == ["0 clips, the published data set has 255"]
