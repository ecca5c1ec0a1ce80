"""SAMM's survey: its trees and sheet, each known error. See also test_survey.py."""

import collections
import datetime
import re
import shutil

import openpyxl
import pytest
from fakes import samm as fake

from htnet_jax.datasets import Samm, process, survey


def _survey(root, variant="raw"):
    audit = survey.Audit()
    return Samm.survey(survey.Tree(root), variant, audit), audit


@pytest.mark.parametrize("tree", list(fake.TREES))
@pytest.mark.parametrize("variant", Samm.VARIANTS)
def test_every_tree_gives_its_clips(tmp_path, faces, tree, variant):
    root = tmp_path / "manual"
    expected = fake.write(root, faces, tree=tree)
    clips, audit = _survey(root, variant)
    assert clips == expected
    assert not audit.errors
    there = "cropped" if tree == "cropped" else "raw"
    notes = [f.what for f in audit.findings if f.kind == "note"]
    swapped = [f"there are no {variant} images; the {there} ones are used"]
    assert notes == ([] if there == variant else swapped)
    # The padding of frames depends on the recording.
    names = {path.name for path in root.rglob("*.jpg")}
    assert {"006_05566.jpg", "006_00098.jpg", "006_0183.jpg"} <= names
    for clip in clips:
        assert list(process.check_frames(clip)) == []


def test_unpadded_subject_folders(tmp_path, faces):
    expected = fake.write(tmp_path, faces, padded=False)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    assert [clip.subject for clip in clips[:4]] == ["006"] * 4
    assert not audit.errors


def test_the_variant_chooses_between_raw_and_cropped(tmp_path, faces):
    raw_clips = fake.write(tmp_path, faces)
    cropped = fake.write(tmp_path, faces, tree="cropped")
    assert _survey(tmp_path, "raw")[0] == raw_clips
    assert _survey(tmp_path, "cropped")[0] == cropped
    # A clip that only the other tree has is missing: images of two kinds are never mixed.
    shutil.rmtree(raw_clips[0].folder)
    clips, audit = _survey(tmp_path, "raw")
    assert clips == raw_clips[1:]
    assert [(f.kind, f.clip) for f in audit.errors] == [("folder", raw_clips[0].id)]


def test_formulas_give_the_values_kept_for_them(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    sheet = openpyxl.load_workbook(tmp_path / fake.SHEET)["MICRO_ONLY"]
    assert str(sheet["F15"].value).startswith("=D15+")
    clips, _ = _survey(tmp_path)
    first = sheet["B15"].value
    assert [c.offset for c in clips if c.name == first] == [
        c.offset for c in expected if c.name == first
    ]


@pytest.mark.parametrize("header_row", [1, 2])
def test_the_header_may_stand_elsewhere(tmp_path, faces, header_row):
    expected = fake.write(tmp_path, faces, sheet="")
    path = tmp_path / "SAMM_20181215.xlsx"
    fake.write_sheet(path, fake.rows(faces), header_row=header_row)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    assert not audit.errors


def test_known_errors_are_corrected_and_noted(tmp_path, faces):
    fake.write(tmp_path, faces)
    clips, audit = _survey(tmp_path)
    apexes = {clip.name: clip.apex for clip in clips}
    assert (apexes["028_4_1"], apexes["032_3_1"]) == (1113, 4930)
    found = [f for f in audit.findings if f.kind == "corrected"]
    assert [f.clip for f in found] == ["samm/028/028_4_1", "samm/032/032_3_1"]
    assert found[0].where == f"{fake.SHEET}, sheet MICRO_ONLY, row 15"
    assert found[0].what.startswith("apex 1143 -> 1113: the sheet's apex lies after the offset")
    assert found[1].what.startswith("apex 1930 -> 4930: ")


def test_a_sheet_with_other_values_is_not_corrected(tmp_path, faces):
    fake.write(tmp_path, faces)

    def change(rows):
        by_name = {row["name"]: row for row in rows}
        by_name["028_4_1"]["apex"] = 1112
        by_name["032_3_1"]["apex"] = "/"
        by_name["006_9_3"]["emotion"] = "Others"

    fake.rewrite(tmp_path, faces, change)
    clips, audit = _survey(tmp_path)
    found = {clip.name: clip for clip in clips}
    assert (found["028_4_1"].apex, found["032_3_1"].apex) == (1112, None)
    assert found["006_9_3"].emotion == "other"
    assert audit.findings == []


def test_cells_that_are_no_action_units_are_noted_with_their_row(tmp_path, faces):
    fake.write(tmp_path, faces)
    date = datetime.datetime(2014, 12, 6)  # what Excel makes of 6/12
    cells = {"028_4_1": date, "032_3_1": "4+ref(43)", "006_9_3": 4.0}
    fake.rewrite(
        tmp_path, faces, lambda rows: [r.update(aus=cells.get(r["name"], 12)) for r in rows]
    )
    clips, audit = _survey(tmp_path)
    units = {clip.name: clip.aus for clip in clips}
    assert [units.pop(name) for name in cells] == [(), ("4",), ("4",)]
    assert {*units.values()} == {("12",)}
    found = [f for f in audit.findings if "action units" in f.what]
    assert [(f.clip, f.is_problem) for f in found] == [
        ("samm/028/028_4_1", False),
        ("samm/032/032_3_1", False),
    ]
    assert re.fullmatch(rf"{fake.SHEET}, sheet MICRO_ONLY, row \d+", found[0].where)
    assert [f.what.partition(":")[0] for f in found] == [
        "action units '2014-12-06 00",
        "action units '4+ref(43)'",
    ]


def test_the_long_videos_sheet_and_folders_are_not_used(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    fake.write_sheet(tmp_path / "SAMM_LongVideos_V2_Release.xlsx", fake.rows(faces))
    for folder in ("SAMM_longvideos/006_1", "notes/006_1_99"):
        (tmp_path / folder).mkdir(parents=True)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    assert {f.kind for f in audit.findings} == {"corrected"}
    (tmp_path / fake.SHEET).unlink()
    assert [f.kind for f in _survey(tmp_path)[1].findings] == ["sheet"]


def test_label_sets(tmp_path, faces):
    fake.write(tmp_path, faces)
    clips, _ = _survey(tmp_path)
    counted = {
        name: collections.Counter(labels.label(clip.emotion, clip.objective) for clip in clips)
        for name, labels in Samm.LABELS.items()
    }
    assert counted["megc3"] == {0: 5, 1: 3, 2: 3, None: 1}
    assert counted["five"] == {0: 1, 1: 1, 2: 3, 3: 3, 4: 1, None: 3}
    assert counted["own"] == {0: 1, 1: 1, 2: 1, 3: 1, 4: 3, 5: 1, 6: 1, 7: 3}
    assert counted["objective"] == {0: 3, 1: 2, 2: 1, 3: 2, 4: 1, 5: 1, 6: 2}


def test_published_counts():
    (counts,) = Samm.COUNTS
    assert (counts.clips, counts.subjects) == (159, 29)
    found = collections.Counter()
    for word, number in counts.emotions.items():
        found[Samm.LABELS["megc3"].label(word)] += number
    assert found == {0: 92, 1: 26, 2: 15, None: 26}
    five = Samm.LABELS["five"].of_emotion
    assert sum(n for word, n in counts.emotions.items() if word in five) == 136
