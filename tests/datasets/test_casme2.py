"""CASME II's survey: its trees and sheets, each known error. See also test_survey.py."""

import collections
import shutil

import pytest
from fakes import casme2 as fake

from htnet_jax.datasets import Casme2, process, survey


def _survey(root, variant="raw"):
    audit = survey.Audit()
    return Casme2.survey(survey.Tree(root), variant, audit), audit


@pytest.mark.parametrize("tree", list(fake.TREES))
@pytest.mark.parametrize("variant", Casme2.VARIANTS)
def test_every_tree_gives_its_clips(tmp_path, faces, tree, variant):
    expected = fake.write(tmp_path, faces, tree=tree)
    clips, audit = _survey(tmp_path, variant)
    assert clips == expected
    assert not audit.errors
    there = "raw" if fake.TREES[tree][1] == "img" else "cropped"
    swapped = f"there are no {variant} images; the {there} ones are used"
    assert (swapped in [f.what for f in audit.findings]) == (there != variant)
    for clip in clips:
        gap = Casme2.KNOWN_GAPS.get(clip.id, "")
        kinds = [f.kind for f in process.check_frames(clip, gap)]
        known = clip.id == "casme2/sub16/EP01_08" and there == "cropped"
        assert kinds == (["note"] if known else [])


def test_letter_case_and_padding_of_folders(tmp_path, faces):
    expected = fake.write(tmp_path, faces, padded=False)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    assert [clip.subject for clip in clips[::4]] == ["sub01", "sub04", "sub16"]
    assert not audit.errors


def test_the_variant_chooses_between_raw_and_cropped(tmp_path, faces):
    raw_clips = fake.write(tmp_path, faces, tree="nested")
    cropped = fake.write(tmp_path, faces, tree="cropped")
    assert _survey(tmp_path, "raw")[0] == raw_clips
    assert _survey(tmp_path, "cropped")[0] == cropped
    # A clip that only the other tree has is missing: images of two kinds are never mixed.
    shutil.rmtree(cropped[0].folder)
    clips, audit = _survey(tmp_path, "cropped")
    assert clips == cropped[1:]
    (finding,) = audit.errors
    assert (finding.kind, finding.clip) == ("folder", cropped[0].id)
    assert finding.what == "no folder sub01/EP90_01 with cropped images"


def test_the_full_recordings_are_preferred_to_their_selection(tmp_path, faces):
    fake.write(tmp_path, faces, tree="selected")
    full = fake.write(tmp_path, faces, tree="full")
    clips, audit = _survey(tmp_path)
    assert clips == full
    assert not audit.errors


@pytest.mark.parametrize("name", ["casme2-CODING-20190701.xlsx", "CASME2-coding-20140508.xls"])
def test_other_sheets_and_objective_classes(tmp_path, faces, name):
    expected = fake.write(tmp_path, faces, sheet=name, objective=True)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    assert audit.findings == []
    assert {clip.objective for clip in clips} == {1, 2, 4, 5, 6, 7}


def test_without_objective_classes_there_is_a_note(tmp_path, faces):
    fake.write(tmp_path, faces)
    clips, audit = _survey(tmp_path)
    assert {clip.objective for clip in clips} == {0}
    assert ["labels=objective finds no clip" in f.what for f in audit.findings] == [True]


def test_a_bad_objective_class(tmp_path, faces):
    fake.write(tmp_path, faces)
    rows = fake.rows(faces)
    rows[1]["objective"] = 8
    fake.write_sheet(tmp_path / fake.SHEET, rows, objective=True)
    (finding,) = _survey(tmp_path)[1].errors
    assert finding.what == "objective class is '8', expected 1 to 7 or I to VII"


def test_of_several_sheets_that_of_2014_is_used(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    rows = [{**row, "emotion": "surprise"} for row in fake.rows(faces)]
    for year in ("20120101", "20190701"):  # the first sorts first
        fake.write_sheet(tmp_path / f"CASME2-coding-{year}.xlsx", rows)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    left = "left aside: CASME2-coding-20190701.xlsx, CASME2-coding-20120101.xlsx"
    assert any(f.where == fake.SHEET and left in f.what for f in audit.findings)


def test_the_older_list_is_refused(tmp_path, faces):
    fake.write(tmp_path, faces, sheet="")
    fake.write_sheet(tmp_path / "CASME2_label_Ver_2.xls", fake.rows(faces))
    clips, audit = _survey(tmp_path)
    assert clips == []
    (finding,) = audit.findings
    assert (finding.kind, finding.where) == ("sheet", "CASME2_label_Ver_2.xls")
    assert "the right sheet is CASME2-coding-20140508.xlsx" in finding.what


def test_folders_without_a_row(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    for folder in ("sub01/EP98_07", "sub09/EP02_02f", "sub24/EP02_07", "notes/EP98_07"):
        (tmp_path / "CASME2_RAW_selected" / folder).mkdir(parents=True)
    clips, audit = _survey(tmp_path)
    assert clips == expected
    (finding,) = audit.errors
    assert (finding.kind, finding.where) == ("row", "CASME2_RAW_selected/sub01/EP98_07")
    assert not audit.dropped
    known = [f.where.rpartition("/")[2] for f in audit.findings if "known to have no row" in f.what]
    assert sorted(known) == ["EP02_02f", "EP02_07"]


def _labels(name, counts):
    """Clips of each label, from the clips of each emotion."""
    chosen = Casme2.LABELS[name]
    found = collections.Counter()
    for word, number in counts.emotions.items():
        found[chosen.label(word)] += number
    return found


def test_published_counts():
    older, newer = Casme2.COUNTS
    assert _labels("megc3", older) == {0: 90, 1: 32, 2: 25, None: 108}
    assert _labels("five", older) == {0: 32, 1: 63, 2: 27, 3: 25, 4: 99, None: 9}
    moved = {k: newer.emotions[k] - n for k, n in older.emotions.items()}
    assert {k: n for k, n in moved.items() if n} == {"surprise": 3, "sadness": -3}
    assert (older.remark, "three clips of sub24 differ" in newer.remark) == ("", True)


def test_label_sets_that_are_numbered_as_a_release_does():
    """A converted checkpoint's outputs have this order."""
    five, three = Casme2.LABELS["mmnet5"], Casme2.LABELS["mmnet3"]
    assert five.classes == ("happiness", "repression", "disgust", "surprise", "others")
    assert three.classes == ("happiness", "surprise", "negative")
    assert _labels("mmnet5", Casme2.COUNTS[0]) == {0: 32, 1: 27, 2: 63, 3: 25, 4: 99, None: 9}
    assert _labels("mmnet3", Casme2.COUNTS[0]) == {0: 32, 1: 25, 2: 99, None: 99}
    assert five.label("sadness") is five.label("fear") is three.label("others") is None
    assert {three.label(w) for w in ("repression", "disgust", "sadness", "fear")} == {2}
