"""MMEW's survey: its trees, and how rows and folders may disagree. See also test_survey.py."""

import dataclasses
import shutil

import pytest
from fakes import mmew as fake

from htnet_jax.datasets import Mmew, survey
from htnet_jax.datasets.recording import image_files


def _survey(root):
    audit = survey.Audit()
    return Mmew.survey(survey.Tree(root), "", audit), audit


@pytest.fixture
def root(tmp_path):
    return tmp_path / "manual"


@pytest.fixture
def made(root, faces):
    return fake.write(root, faces)


def _rewrite(root, clip, **cells):
    def change(rows):
        next(row for row in rows if row["name"] == clip).update(cells)

    fake.rewrite(root, None, change)


@pytest.mark.parametrize("by", ["emotion", "subject"])
@pytest.mark.parametrize("others", ["others", "repression"])
@pytest.mark.parametrize("text", [False, True])
def test_trees_and_sheets(root, faces, by, others, text):
    expected = fake.write(root, faces, by=by, others=others, text=text)
    clips, audit = _survey(root)
    assert clips == expected
    assert not audit.findings
    for clip in clips:
        assert list(image_files(clip.folder)) == [1, 2, 3, 4, 5]


def test_apex_and_action_units(made, root):
    by_name = {clip.name: clip for clip in _survey(root)[0]}
    assert by_name["S04-01-001"].id == "mmew/S04/S04-01-001"
    assert (by_name["S04-01-001"].apex, by_name["S04-01-001"].aus) == (3, ("6", "12"))
    assert by_name["S04-03-001"].aus == ("4",)
    assert (by_name["S04-08-002"].apex, by_name["S04-08-002"].aus) == (None, ())  # "/", "?"
    assert by_name["S09-01-002"].apex is None  # empty


def test_padding_letter_case_and_nested_archives(made, root):
    def change(rows):
        rows = {row["name"]: row for row in rows}
        rows["S09-04-001"].update(subject=9, name="S9-04-1")
        rows["S21-06-001"].update(subject=None)  # merged with the cell above
        rows["S21-07-010"].update(emotion="Anger")

    fake.rewrite(root, None, change)
    new = root / "MMEW" / "MMEW" / "micro_expression"
    new.parent.mkdir(parents=True)
    (root / "Micro_Expression").rename(new)
    (new / "disgust").rename(new / "Disgust")
    clip = new / "happiness" / "S04-01-001"
    (clip.parent / "moved").mkdir()
    clip.rename(clip.parent / "moved" / "S04-01-001")
    (clip.parent / "moved").rename(clip)
    (new / "fear" / "S09-04-001").rename(new / "fear" / "s9-4-1")
    (root / fake.SHEET).rename(root / "MMEW" / "mmew_micro_exp.XLSX")
    clips, audit = _survey(root)
    assert not audit.findings
    assert [(c.id, c.emotion) for c in clips] == [(c.id, c.emotion) for c in made]
    assert clips[0].folder == clip / "S04-01-001"


def test_the_sheet_may_say_repression(made, root):
    _rewrite(root, "S04-08-002", emotion="Repression")
    clips, audit = _survey(root)
    assert not audit.findings
    assert clips[3].emotion == "repression"
    assert Mmew.LABELS["own"].label("repression") == Mmew.LABELS["own"].label("others") == 6
    assert Mmew.LABELS["megc3"].label("repression") is None


def test_macro_expressions_are_ignored(made, root):
    shutil.copytree(made[0].folder, root / "Macro_Expression" / "S04" / "S04-01-001")
    clips, audit = _survey(root)
    assert clips == made
    assert not audit.findings


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"subject": "S09"}, "Subject is 'S09', Filename 'S04-02-001': they disagree"),
        (
            {"emotion": "disgust"},
            "emotion is disgust, the folder Micro_Expression/surprise/S04-02-001",
        ),
    ],
)
def test_rows_that_contradict_themselves_or_the_folder(made, root, cells, what):
    _rewrite(root, "S04-02-001", **cells)
    clips, audit = _survey(root)
    assert clips == [clip for clip in made if clip.name != "S04-02-001"]
    (finding,) = audit.findings
    assert (finding.kind, finding.what) == ("row", what)
    assert audit.dropped == {"mmew/S04/S04-02-001"}


def test_a_clip_under_another_subject(root, faces):
    made = fake.write(root, faces, by="subject")
    moved = root / "S09" / "disgust" / "S04-03-001"
    moved.parent.mkdir()
    made[2].folder.rename(moved)
    (finding,) = _survey(root)[1].findings
    assert finding.what == "Filename is S04-03-001, the folder S09/disgust/S04-03-001"


def test_a_name_that_is_no_clips(made, root):
    _rewrite(root, "S04-02-001", name="S04_1")
    assert _survey(root)[1].findings[0].what == "Filename is 'S04_1', no name such as S04-03-001"


def test_action_units_may_be_missing(made, root):
    fake.rewrite(root, None, lambda rows: None, without="aus")
    clips, audit = _survey(root)
    assert not audit.findings
    assert clips == [dataclasses.replace(clip, aus=()) for clip in made]


def test_counts_are_noted_and_not_enforced():
    (counts,) = Mmew.COUNTS
    assert (counts.clips, counts.subjects, counts.enforced) == (300, 30, False)


def test_labels(made):
    words = [clip.emotion for clip in made]
    three, own = Mmew.LABELS["megc3"], Mmew.LABELS["own"]
    assert [*map(three.label, words)] == [1, 2, 0, None, 1, 2, 0, 1, 0, 0]
    assert [own.classes[own.label(word)] for word in words] == words
    assert own.classes == (
        *("happiness", "anger", "surprise", "disgust", "fear", "sadness", "others"),
    )
