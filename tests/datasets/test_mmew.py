"""MMEW's layout: every known tree, and each finding."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from fakes import mmew
from htnet_jax.datasets.audit import Audit

from htnet_jax.datasets.mmew import layout
from htnet_jax.datasets.tree import Tree, frames

SHEET = "MMEW_Micro_Exp.xlsx"


def _survey(root):
    audit = Audit()
    return layout.survey(Tree(root), "", audit), audit


def _only(audit, kind):
    """The one finding."""
    assert [finding.kind for finding in audit.findings] == [kind]
    return audit.findings[0]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "manual"


@pytest.fixture
def made(root, faces):
    return mmew.write(root, faces)


def _rewrite(root, change, **options):
    """Writes the sheet again with rows (by file name) that `change` has altered."""
    rows = {row["Filename"]: row for row in mmew.sheet_rows()}
    change(rows)
    mmew.write_sheet(root / SHEET, list(rows.values()), **options)


@pytest.mark.parametrize("by", ["emotion", "subject"])
@pytest.mark.parametrize("others", ["others", "repression"])
@pytest.mark.parametrize("text", [False, True])
def test_trees_and_sheets(root, faces, by, others, text):
    expected = mmew.write(root, faces, by=by, others=others, text=text)
    clips, audit = _survey(root)
    assert clips == expected
    assert not audit.findings
    for clip in clips:
        assert list(frames(clip.folder)) == [1, 2, 3, 4, 5]


def test_apex_and_action_units(made, root):
    clips, _ = _survey(root)
    by_name = {clip.name: clip for clip in clips}
    assert by_name["S04-01-001"].id == "mmew/S04/S04-01-001"
    assert by_name["S04-01-001"].apex == 3
    assert by_name["S04-01-001"].aus == ("6", "12")
    assert by_name["S04-03-001"].aus == ("4",)
    assert by_name["S04-08-002"].apex is None  # "/"
    assert by_name["S04-08-002"].aus == ()
    assert by_name["S09-01-002"].apex is None  # empty


def test_apex_out_of_range_is_left_to_the_rule(made, root):
    _rewrite(root, lambda rows: rows["S04-01-001"].update(ApexFrame=77))
    clips, audit = _survey(root)
    assert clips[0].apex == 77
    assert not audit.findings


def test_padding_letter_case_and_nested_archives(made, root):
    old = root / "Micro_Expression"
    new = root / "MMEW" / "MMEW" / "micro_expression"
    new.parent.mkdir(parents=True)
    old.rename(new)
    (new / "disgust").rename(new / "Disgust")
    clip = new / "happiness" / "S04-01-001"
    (clip.parent / "moved").mkdir()
    clip.rename(clip.parent / "moved" / "S04-01-001")
    (clip.parent / "moved").rename(clip)
    (new / "fear" / "S09-04-001").rename(new / "fear" / "s9-4-1")

    def change(rows):
        rows["S09-04-001"].update(Subject=9, Filename="S9-04-1")
        rows["S21-06-001"].update(Subject=None)  # merged with the cell above
        rows["S21-07-010"].update({"Estimated Emotion": "Anger"})

    _rewrite(root, change)
    (root / SHEET).rename(root / "MMEW" / "mmew_micro_exp.XLSX")
    clips, audit = _survey(root)
    assert not audit.findings
    assert [(c.id, c.emotion) for c in clips] == [(c.id, c.emotion) for c in made]
    assert clips[0].folder == clip / "S04-01-001"


def test_the_sheet_may_say_repression(made, root):
    _rewrite(root, lambda rows: rows["S04-08-002"].update({"Estimated Emotion": "Repression"}))
    clips, audit = _survey(root)
    assert not audit.findings
    assert clips[3].emotion == "repression"
    assert layout.LABELS["own"].label(clips[3]) == 6
    assert layout.LABELS["megc3"].label(clips[3]) is None


def test_macro_expressions_are_ignored(made, root):
    shutil.copytree(made[0].folder, root / "Macro_Expression" / "S04" / "S04-01-001")
    clips, audit = _survey(root)
    assert clips == made
    assert not audit.findings


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"OnsetFrame": "x"}, "OnsetFrame is 'x', no frame number"),
        ({"OffsetFrame": None}, "OffsetFrame is '', no frame number"),
        ({"ApexFrame": "2 or 3"}, "ApexFrame is '2 or 3', no frame number"),
        ({"OnsetFrame": 6}, "offset 5 is before onset 6"),
        ({"Subject": "S09"}, "Subject is 'S09', Filename 'S04-02-001': they disagree"),
        ({"Estimated Emotion": "suprise"}, "Estimated Emotion is 'suprise', none of happiness"),
        (
            {"Estimated Emotion": "disgust"},
            "Estimated Emotion is disgust, the folder Micro_Expression/surprise/S04-02-001",
        ),
    ],
)
def test_bad_cells(made, root, cells, what):
    _rewrite(root, lambda rows: rows["S04-02-001"].update(cells))
    clips, audit = _survey(root)
    assert clips == [clip for clip in made if clip.name != "S04-02-001"]
    found = _only(audit, "row")
    assert found.what.startswith(what)
    assert found.where.startswith(f"{SHEET}, sheet Micro, row ")
    assert audit.dropped == {"mmew/S04/S04-02-001"}


def test_bad_name_and_duplicate_row(made, root):
    def change(rows):
        rows["a"] = {"Subject": "S04", "Filename": "S04_1", "OnsetFrame": 1, "OffsetFrame": 2}
        rows["b"] = dict(rows["S04-02-001"], OnsetFrame=2)

    _rewrite(root, change)
    clips, audit = _survey(root)
    assert clips == made
    assert [finding.kind for finding in audit.findings] == ["row", "row"]
    assert audit.findings[0].what == "Filename is 'S04_1', no S04-03-001"
    assert audit.findings[1].what.startswith(f"clip S04-02-001 again, after {SHEET}, sheet Micro,")
    assert not audit.dropped


def test_clip_under_another_subject(root, faces):
    made = mmew.write(root, faces, by="subject")
    moved = root / "S09" / "disgust" / "S04-03-001"
    moved.parent.mkdir()
    made[2].folder.rename(moved)
    _, audit = _survey(root)
    what = "Filename is S04-03-001, the folder S09/disgust/S04-03-001"
    assert _only(audit, "row").what == what


def test_folder_without_a_row_and_row_without_a_folder(made, root):
    made[0].folder.rename(made[0].folder.with_name("S04-01-009"))
    clips, audit = _survey(root)
    assert clips == made[1:]
    assert [(f.kind, f.clip, f.what) for f in audit.findings] == [
        ("folder", "mmew/S04/S04-01-001", "no folder S04-01-001"),
        ("row", "mmew/S04/S04-01-009", "a clip folder without a row"),
    ]


def test_several_folders(made, root):
    shutil.copytree(made[0].folder, root / "S04" / "happiness" / "S04-01-001")
    clips, audit = _survey(root)
    assert clips == made[1:]
    one, other = "Micro_Expression/happiness/S04-01-001", "S04/happiness/S04-01-001"
    assert _only(audit, "path").what == f"several folders: {one}, {other}"


def test_link_out_of_the_tree(made, root, tmp_path):
    made[0].folder.rename(tmp_path / "outside")
    made[0].folder.symlink_to(tmp_path / "outside")
    clips, audit = _survey(root)
    assert clips == made[1:]
    assert _only(audit, "folder").what == "no folder S04-01-001"
    assert Tree(root).outside == [made[0].folder]


def test_missing_sheet(made, root):
    (root / SHEET).unlink()
    clips, audit = _survey(root)
    assert not clips
    assert _only(audit, "sheet").what == f"{SHEET} is missing"


def test_missing_column(made, root):
    header = [name for name in mmew.HEADER if name != "Estimated Emotion"]
    _rewrite(root, lambda rows: None, header=header)
    clips, audit = _survey(root)
    assert not clips
    assert "sheet 'Micro' lacks Estimated Emotion" in _only(audit, "sheet").what


def test_action_units_may_be_missing(made, root):
    header = [name for name in mmew.HEADER if name != "Action Units"]
    _rewrite(root, lambda rows: None, header=header)
    clips, audit = _survey(root)
    assert not audit.findings
    assert clips == [dataclasses.replace(clip, aus=()) for clip in made]


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-300], lambda data: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000)],
    ids=["damaged", "locked"],
)
def test_unreadable_sheet(made, root, spoil):
    (root / SHEET).write_bytes(spoil((root / SHEET).read_bytes()))
    clips, audit = _survey(root)
    assert not clips
    assert "cannot be read as a spreadsheet" in _only(audit, "sheet").what


def test_the_documented_sheet_is_preferred(made, root):
    (root / "MMEW_Micro_Exp_edited.xlsx").write_bytes(b"not read")
    clips, audit = _survey(root)
    assert clips == made
    assert not audit.findings
    shutil.copy(root / SHEET, root / "Micro_Expression" / SHEET)
    clips, audit = _survey(root)
    assert clips == made
    assert _only(audit, "note").what.startswith("the first of several sheets is used: MMEW_Micro")


def test_counts_are_notes():
    clips = [
        mmew.RawClip("mmew", f"S{n % 30 + 1:02d}", str(n), "fear", Path(), 1, 2, 3)
        for n in range(300)
    ]
    audit = Audit()
    layout.check_counts(clips, "", audit)
    assert not audit.findings
    layout.check_counts(clips[:-1], "", audit)
    assert _only(audit, "note").what == "299 clips, the published data set has 300"
    audit = Audit()
    layout.check_counts([dataclasses.replace(clip, subject="S01") for clip in clips], "", audit)
    assert _only(audit, "note").what == "1 subjects, the published data set has 30"


def test_labels(made, root):
    clips, _ = _survey(root)
    assert set(layout.LABELS) == {"megc3", "own"}
    three, own = layout.LABELS["megc3"], layout.LABELS["own"]
    assert [three.label(clip) for clip in clips] == [1, 2, 0, None, 1, 2, 0, 1, 0, 0]
    assert [own.classes[own.label(clip)] for clip in clips] == [clip.emotion for clip in clips]
    assert own.classes == (
        *("happiness", "anger", "surprise", "disgust", "fear", "sadness", "others"),
    )
