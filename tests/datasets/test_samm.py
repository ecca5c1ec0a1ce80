"""SAMM's survey: every tree and sheet, each known error, each finding."""

import collections
import pathlib
import shutil

import openpyxl
import pytest
from fakes import samm as fake

from htnet_jax.datasets import audit, process, raw
from htnet_jax.datasets.samm import layout
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
    there = "cropped" if tree == "cropped" else "raw"
    notes = [f.what for f in _found(report, "note")]
    swapped = [f"there are no {variant} pictures; the {there} ones are used"]
    assert notes == ([] if there == variant else swapped)
    for clip in clips:
        assert list(process.check_frames(clip)) == []


def test_the_padding_of_frames_depends_on_the_recording(root, faces):
    fake.write(root, faces)
    names = {path.name for path in root.rglob("*.jpg")}
    assert {"006_05566.jpg", "006_00098.jpg", "006_0183.jpg"} <= names


def test_unpadded_subject_folders(root, faces):
    expected = fake.write(root, faces, padded=False)
    clips, report = _survey(root)
    assert clips == expected
    assert [clip.subject for clip in clips[:4]] == ["006"] * 4
    assert not report.errors


def test_the_variant_chooses_between_raw_and_cropped(root, faces):
    raw_clips = fake.write(root, faces)
    cropped = fake.write(root, faces, tree="cropped")
    assert _survey(root, "raw")[0] == raw_clips
    assert _survey(root, "cropped")[0] == cropped
    # A clip that only the other tree has is missing: pictures of two kinds are never mixed.
    shutil.rmtree(raw_clips[0].folder)
    clips, report = _survey(root, "raw")
    assert clips == raw_clips[1:]
    assert [f.clip for f in _found(report, "folder")] == [raw_clips[0].id]


def test_two_trees_of_one_kind_are_ambiguous(root, faces):
    fake.write(root, faces)
    shutil.copytree(root / "SAMM" / "028", root / "copy" / "028")
    clips, report = _survey(root)
    assert {clip.subject for clip in clips} == {"006", "032"}
    assert [f.what for f in _found(report, "path")] == [
        f"2 folders: SAMM/028/{name}, copy/028/{name}"
        for name in ("028_4_1", "028_4_7", "028_4_20")
    ]
    assert len(report.dropped) == 3


@pytest.mark.parametrize(
    ("name", "header_row"),
    [("SAMM_20181215_Micro_FACS.xlsx", 2), ("samm_micro_facs_codes_V2.xlsx", 1)],
)
def test_other_sheets_with_the_header_elsewhere(root, faces, name, header_row):
    expected = fake.write(root, faces, sheet="")
    fake.write_sheet(root / name, fake.rows(faces), header_row=header_row)
    clips, report = _survey(root)
    assert clips == expected
    assert not report.errors


def test_subjects_that_became_numbers_and_others(root, faces):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    for row in rows:
        row["subject"] = int(row["subject"])
        row["emotion"] = {"Other": "Others"}.get(row["emotion"], row["emotion"])
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert clips == expected
    assert not report.errors


def test_formula_cells_give_the_values_kept_for_them(root, faces):
    expected = fake.write(root, faces)
    sheet = openpyxl.load_workbook(root / fake.SHEET)["MICRO_ONLY"]
    assert str(sheet["F15"].value).startswith("=D15+")
    clips, _ = _survey(root)
    offsets = {clip.name: clip.offset for clip in expected}
    first = sheet["B15"].value
    assert [clip.offset for clip in clips if clip.name == first] == [offsets[first]]


def test_known_errors_are_corrected_and_noted(root, faces):
    fake.write(root, faces)
    clips, report = _survey(root)
    apexes = {clip.name: clip.apex for clip in clips}
    assert (apexes["028_4_1"], apexes["032_3_1"]) == (1113, 4930)
    found = _found(report, "corrected")
    assert [f.clip for f in found] == ["samm/028/028_4_1", "samm/032/032_3_1"]
    assert found[0].where == f"{fake.SHEET}, sheet MICRO_ONLY, row 15"
    assert found[0].what.startswith("apex 1143 -> 1113: the sheet's apex lies after the offset")
    assert found[1].what.startswith("apex 1930 -> 4930: ")


def test_a_sheet_with_other_values_is_not_corrected(root, faces):
    fake.write(root, faces)
    rows = fake.rows(faces)
    by_name = {row["name"]: row for row in rows}
    by_name["028_4_1"]["apex"] = 1112
    by_name["032_3_1"]["apex"] = "/"
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    apexes = {clip.name: clip.apex for clip in clips}
    assert (apexes["028_4_1"], apexes["032_3_1"]) == (1112, None)
    assert report.findings == []


def test_without_objective_classes_there_is_a_note(root, faces):
    fake.write(root, faces)
    fake.write_sheet(root / fake.SHEET, fake.rows(faces), without=("Objective Classes",))
    clips, report = _survey(root)
    assert {clip.objective for clip in clips} == {0}
    assert not report.errors
    notes = _found(report, "note")
    assert ["labels=objective finds no clip" in f.what for f in notes] == [True]


def test_of_several_sheets_the_documented_one_is_used(root, faces):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    for row in rows:
        row["emotion"] = "Surprise"
    fake.write_sheet(root / "SAMM_20181215.xlsx", rows)
    fake.write_sheet(root / "SAMM_LongVideos_V2_Release.xlsx", rows)
    clips, report = _survey(root)
    assert clips == expected
    (note,) = _found(report, "note")
    assert (note.where, note.what) == (
        fake.SHEET,
        "this sheet is used; left aside: SAMM_20181215.xlsx",
    )


def test_no_sheet(root, faces):
    fake.write(root, faces, sheet="")
    fake.write_sheet(root / "SAMM_LongVideos_V2_Release.xlsx", fake.rows(faces))
    clips, report = _survey(root)
    assert clips == []
    assert [f.kind for f in report.findings] == ["sheet"]
    assert "no SAMM_Micro_FACS_Codes_v2.xlsx" in report.findings[0].what


def test_a_missing_column(root, faces):
    fake.write(root, faces)
    fake.write_sheet(root / fake.SHEET, fake.rows(faces), without=("Estimated Emotion",))
    clips, report = _survey(root)
    assert clips == []
    assert [f.kind for f in report.findings] == ["sheet"]
    assert "sheet 'MICRO_ONLY' lacks Estimated Emotion" in report.findings[0].what


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
        ("apex", "?", "apex frame is '?', not a whole number"),
        ("offset", None, "offset frame is '', not a whole number"),
        ("offset", 1, "offset frame 1 lies before onset frame "),
        ("emotion", "Boredom", "emotion 'Boredom' is unknown, expected one of anger, contempt"),
        ("objective", "VIII", "objective class is 'VIII', expected 1 to 7"),
    ],
)
def test_a_bad_cell(root, faces, key, value, what):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    assert rows[1]["name"] == "028_4_7"
    rows[1][key] = value
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert clips == [clip for clip in expected if clip.name != "028_4_7"]
    (finding,) = report.errors
    assert finding.where == f"{fake.SHEET}, sheet MICRO_ONLY, row 16"
    assert finding.what.startswith(what)
    assert report.dropped == {"samm/028/028_4_7"}


@pytest.mark.parametrize(("key", "value"), [("subject", "mean"), ("subject", ""), ("name", None)])
def test_a_row_that_is_no_clip(root, faces, key, value):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    rows.append({**rows[1], "name": "028_4_99", key: value})
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert clips == expected
    (finding,) = report.errors
    assert (finding.kind, finding.where) == ("row", f"{fake.SHEET}, sheet MICRO_ONLY, row 27")
    assert "no subject's clip" in finding.what


def test_a_row_again(root, faces):
    expected = fake.write(root, faces)
    rows = fake.rows(faces)
    rows.append({**rows[1], "subject": 28})
    fake.write_sheet(root / fake.SHEET, rows)
    clips, report = _survey(root)
    assert clips == expected
    (finding,) = report.errors
    assert finding.kind == "row"
    assert finding.what == f"028/028_4_7 again, after {fake.SHEET}, sheet MICRO_ONLY, row 16"
    assert report.dropped == {"samm/028/028_4_7"}


def test_a_missing_folder(root, faces):
    expected = fake.write(root, faces)
    shutil.rmtree(expected[3].folder)
    clips, report = _survey(root)
    assert clips == expected[:3] + expected[4:]
    (finding,) = report.errors
    assert (finding.kind, finding.clip) == ("folder", expected[3].id)


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
    # The long videos' folders are no clips.
    for folder in ("SAMM/006/006_1_99", "SAMM_longvideos/006_1", "notes/006_1_99"):
        (root / folder).mkdir(parents=True)
    clips, report = _survey(root)
    assert clips == expected
    (finding,) = report.errors
    assert (finding.kind, finding.where) == ("row", "SAMM/006/006_1_99")
    assert not report.dropped


def test_label_sets(root, faces):
    fake.write(root, faces)
    clips, _ = _survey(root)
    counted = {}
    for name, labels in layout.LABELS.items():
        found = [labels.label(clip) for clip in clips]
        counted[name] = collections.Counter(
            labels.classes[label] for label in found if label is not None
        )
    assert counted["megc3"] == {"negative": 5, "positive": 3, "surprise": 3}
    assert counted["five"] == {
        **{"anger": 1, "contempt": 1, "happiness": 3},
        **{"surprise": 3, "other": 1},
    }
    assert counted["own"] == {**counted["five"], "disgust": 1, "fear": 1, "sadness": 1}
    assert counted["objective"] == {
        **{"I": 3, "II": 2, "III": 1, "IV": 2},
        **{"V": 1, "VI": 1, "VII": 2},
    }


def _published():
    """Invented clips with the published counts."""
    emotions = [name for name, n in layout.EMOTIONS.items() for _ in range(n)]
    return [
        raw.RawClip("samm", f"{i % 29:03d}", f"c{i}", emotion, pathlib.Path(), 1, 2, 3)
        for i, emotion in enumerate(emotions)
    ]


def _counts(clips):
    report = audit.Audit()
    layout.check_counts(clips, "raw", report)
    return report


def test_published_counts_give_no_finding():
    clips = _published()
    assert len(clips) == 159
    assert _counts(clips).findings == []
    labels = layout.LABELS["megc3"]
    found = collections.Counter(labels.label(clip) for clip in clips)
    assert found == {0: 92, 1: 26, 2: 15, None: 26}
    assert sum(layout.LABELS["five"].label(clip) is not None for clip in clips) == 136


def test_each_wrong_count_is_a_finding():
    report = _counts(_published()[1:])
    assert [(f.where, f.what) for f in report.errors] == [
        ("samm", "158 clips, the published data set has 159"),
        ("samm", "56 anger clips, the published data set has 57"),
    ]
    few = [clip for clip in _published() if clip.subject != "028"]
    assert "28 subjects, the published data set has 29" in [f.what for f in _counts(few).errors]
    assert [f.what for f in _counts([]).errors] == ["0 clips, the published data set has 159"]
