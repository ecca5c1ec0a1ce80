"""The survey of 4DME's micro-expressions: what it finds and reports."""

import collections
import shutil

import pytest
from fakes import fourdme as fake

from htnet_jax.datasets import audit as audits
from htnet_jax.datasets import tree
from htnet_jax.datasets.fourdme import layout

OTHER_SHEET = "Micro and Macro-expression labels.xlsx"


def survey(root):
    audit = audits.Audit()
    return layout.survey(tree.Tree(root), "", audit), audit


def texts(audit, kind):
    return [f"{f.clip} {f.where}: {f.what}" for f in audit.findings if f.kind == kind]


def kinds(audit):
    return dict(collections.Counter(finding.kind for finding in audit.findings))


def edited(index, **cells):
    """`fake.ROWS` with cells of one row replaced."""
    rows = [list(row) for row in fake.ROWS]
    columns = ["subject", "name", "onset", "apex", "offset", "aus", "emotion"]
    for name, value in cells.items():
        rows[index][columns.index(name)] = value
    return rows


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
    found, audit = survey(tmp_path)
    assert found == expected
    assert audit.findings == []
    assert found[3].id == "fourdme/S08/S08_002_01_m1"
    assert found[3].emotion == "surprise+positive"


@pytest.mark.parametrize("spelling", [2, "2", "s2", "02", "S002"])
def test_subjects_are_padded(tmp_path, faces, spelling):
    expected = fake.write(tmp_path, faces, rows=edited(0, subject=spelling))
    found, audit = survey(tmp_path)
    assert found == expected
    assert audit.findings == []


def test_subjects_with_other_names_stay_as_they_are(tmp_path, faces):
    row = ("Subject-B", "B_01", 11, 14, 17, "AU4", "Negative", ("4",))
    fake.write_sheet(tmp_path / fake.SHEET, [row])
    fake.write_frames(tmp_path / "gray_micro" / "subject-b" / "b_01", faces(0, 0), 11, 14, 17)
    (clip,), audit = survey(tmp_path)
    assert clip.id == "fourdme/Subject-B/B_01"
    assert audit.findings == []


def test_columns_as_the_other_release_calls_them(tmp_path, faces):
    expected = fake.write(tmp_path, faces, part="micro_short_gray_video", sheet="")
    header = ["SubID" if name == "sub_ID" else name for name in fake.HEADER]
    fake.write_sheet(tmp_path / OTHER_SHEET, fake.ROWS, header)
    found, audit = survey(tmp_path)
    assert found == expected
    assert audit.findings == []


@pytest.mark.parametrize(
    "part", ["long_gray_video", "macro_short_gray_video", "micro_short_rgb_video", "Depth"]
)
def test_other_parts_of_the_release_are_not_taken(tmp_path, faces, part):
    expected = fake.write(tmp_path, faces)
    fake.write(tmp_path, faces, part=part)
    found, audit = survey(tmp_path)
    assert found == expected
    assert audit.findings == []
    shutil.rmtree(tmp_path / "gray_micro")
    found, audit = survey(tmp_path)
    assert found == []
    assert kinds(audit) == {"folder": len(fake.ROWS)}


def test_distributed_frames_are_preferred_to_crops(tmp_path, faces):
    fake.write(tmp_path, faces, part="gray_micro_crop")
    expected = fake.write(tmp_path, faces)
    found, audit = survey(tmp_path)
    assert found == expected
    assert audit.findings == []


def test_both_releases_are_ambiguous(tmp_path, faces):
    fake.write(tmp_path, faces, part="micro_short_gray_video")
    fake.write(tmp_path, faces)
    found, audit = survey(tmp_path)
    assert found == []
    assert kinds(audit) == {"path": len(fake.ROWS)}
    assert (
        "gray_micro/S02/S02_001_01_m1, micro_short_gray_video/S02/S02_001_01_m1; keep one"
        in audit.report()
    )


def test_the_documented_sheet_is_preferred(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    (tmp_path / OTHER_SHEET).write_bytes(b"not read")
    found, audit = survey(tmp_path)
    assert found == expected
    assert texts(audit, "note") == [f" {OTHER_SHEET}: not used: {fake.SHEET} is"]
    assert audit.errors == []


def test_no_sheet(tmp_path, faces):
    fake.write(tmp_path, faces, sheet="")
    found, audit = survey(tmp_path)
    assert found == []
    (text,) = texts(audit, "sheet")
    assert f"no annotation sheet; it is called {fake.SHEET}" in text


def test_a_sheet_without_a_needed_column(tmp_path, faces):
    fake.write(tmp_path, faces)
    header = ["clip" if name == "fold_name" else name for name in fake.HEADER]
    fake.write_sheet(tmp_path / fake.SHEET, fake.ROWS, header)
    found, audit = survey(tmp_path)
    assert found == []
    (text,) = texts(audit, "sheet")
    assert "lacks fold_name" in text


def test_a_damaged_sheet(tmp_path, faces):
    fake.write(tmp_path, faces)
    (tmp_path / fake.SHEET).write_bytes(b"\xd0\xcf\x11\xe0 locked")
    found, audit = survey(tmp_path)
    assert found == []
    (text,) = texts(audit, "sheet")
    assert "cannot be read as a spreadsheet" in text


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"onset": "x"}, "Onset 'x' is no frame number"),
        ({"onset": 31.5}, "Onset '31.5' is no frame number"),
        ({"offset": None}, "Offset '' is no frame number"),
        ({"offset": 30}, "Offset 30 precedes Onset 31"),
        ({"apex": "?"}, "Apex '?' is no frame number"),
        ({"emotion": "Surprise+Joy"}, "Emotion 'Surprise+Joy' is not made of positive"),
        ({"emotion": None}, "Emotion '' is not made of positive"),
    ],
)
def test_a_bad_cell(tmp_path, faces, cells, what):
    expected = fake.write(tmp_path, faces, rows=edited(2, **cells))
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (text,) = texts(audit, "row")
    assert text.startswith(f"{expected[2].id} {fake.SHEET}, sheet Sheet, row 4: {what}")
    assert audit.dropped == {expected[2].id}
    assert len(audit.findings) == 1


@pytest.mark.parametrize("cells", [{"subject": None}, {"name": None}, {"name": "../up"}])
def test_a_row_that_names_no_clip(tmp_path, faces, cells):
    expected = fake.write(tmp_path, faces, rows=edited(2, **cells))
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    assert [text for text in texts(audit, "row") if "no clip" in text]


def test_a_duplicate_row(tmp_path, faces):
    expected = fake.write(tmp_path, faces, rows=[*fake.ROWS, fake.ROWS[0]])
    found, audit = survey(tmp_path)
    assert found == expected
    (text,) = texts(audit, "row")
    assert f"row 11: the clip again, after {fake.SHEET}, sheet Sheet, row 2" in text
    assert audit.dropped == {expected[0].id}


def test_a_missing_folder(tmp_path, faces):
    expected = fake.write(tmp_path, faces)
    shutil.rmtree(expected[2].folder)
    found, audit = survey(tmp_path)
    assert found == expected[:2] + expected[3:]
    (text,) = texts(audit, "folder")
    assert "no folder S02/S02_003_01_m1 among the gray" in text
    assert audit.dropped == {expected[2].id}


@pytest.mark.parametrize("part", ["gray_micro", "micro_short_gray_video/micro_short_gray_video"])
def test_a_clip_folder_without_a_row(tmp_path, faces, part):
    expected = fake.write(tmp_path, faces, part=part)
    fake.write_frames(tmp_path / part / "S02" / "S02_009_01_m1", faces(0, 0), 1, 2, 3)
    found, audit = survey(tmp_path)
    assert found == expected
    assert texts(audit, "row") == [
        f" {part}/S02/S02_009_01_m1: this clip folder has no row in the sheet"
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


def test_labels():
    clips = [fake.expected(row) for row in fake.ROWS]
    three, own = layout.LABELS["megc3"], layout.LABELS["own"]
    assert [three.label(clip) for clip in clips] == [0, 1, 2, None, None, 0, None, 1, 2]
    assert own.classes == ("positive", "negative", "surprise", "repression", "others")
    assert [own.label(clip) for clip in clips] == [1, 0, 2, None, 3, 1, 4, 0, 2]
    assert list(layout.LABELS) == ["megc3", "own"]


@pytest.mark.parametrize(("missing", "notes"), [(0, 0), (1, 1)])
def test_counts_are_noted_and_not_enforced(missing, notes):
    clips = [fake.expected(fake.ROWS[0])] * (267 - missing)
    audit = audits.Audit()
    layout.check_counts(clips, "", audit)
    assert kinds(audit) == ({"note": 1} if notes else {})
    assert audit.errors == []
    assert all("266 clips; a public loader counts 267" in f.what for f in audit.findings)
