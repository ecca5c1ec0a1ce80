"""SMIC's survey: every known tree and sheet, each known error, and each finding."""

import shutil
from pathlib import Path

import pytest
from fakes import smic

from htnet_jax.datasets import Smic, survey
from htnet_jax.datasets.recording import image_files
from htnet_jax.datasets.smic import is_long, standard_name


def _survey(root, variant="hs"):
    audit = survey.Audit()
    return Smic.survey(survey.Tree(root), variant, audit), audit


def _kinds(audit):
    return [finding.kind for finding in audit.findings]


def _only(audit, kind):
    """The one finding that stops a build."""
    assert [finding.kind for finding in audit.errors] == [kind]
    return audit.errors[0]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "manual"


@pytest.fixture
def short(root, faces):
    return smic.write(root, faces)


@pytest.fixture
def long(root, faces):
    return smic.write_long(root, faces)


def _rewrite(root, change, variant="hs", **options):
    """Writes the sheet again with rows (by file name) that `change` has altered."""
    rows = {row["Filename"]: row for row in smic.sheet_rows(variant)}
    change(rows)
    name = f"SMIC-{variant.upper()}-E_annotation.xlsx"
    (path,) = root.rglob(name)
    smic.write_sheet(path, list(rows.values()), variant, **options)


@pytest.mark.parametrize("variant", Smic.VARIANTS)
@pytest.mark.parametrize("images", ["raw", "cropped"])
def test_short_clips(root, faces, variant, images):
    expected = smic.write(root, faces, variant=variant, pictures=images)
    clips, audit = _survey(root, variant)
    assert clips == expected
    assert not audit.findings
    for clip in clips:
        assert list(image_files(clip.folder)) == list(range(clip.onset, clip.offset + 1))


@pytest.mark.parametrize("variant", Smic.VARIANTS)
@pytest.mark.parametrize("nested", [False, True])
def test_long_clips(root, faces, variant, nested):
    expected = smic.write_long(root, faces, variant=variant, nested=nested)
    clips, audit = _survey(root, variant)
    assert clips == expected
    assert not audit.errors


def test_ids_are_those_of_the_composite(short, root):
    clips, _ = _survey(root)
    assert clips[0].id == "smic/s03/s03_ne_02"


def test_modalities_beside_each_other_are_told_apart(root, faces):
    for variant in Smic.VARIANTS:
        smic.write(root, faces, variant=variant)
    for variant in Smic.VARIANTS:
        clips, audit = _survey(root, variant)
        assert len(clips) == len(smic.clips_of(variant))
        assert {clip.folder.relative_to(root).parts[1] for clip in clips} == {variant.upper()}
        assert not audit.findings


def test_another_modality_is_not_taken(short, root):
    clips, audit = _survey(root, "nir")
    assert not clips
    assert "no NIR clip folder" in _only(audit, "folder").what


def test_without_a_modality_in_the_path_clips_are_hs(short, root):
    clips, audit = _survey(root / "SMIC_all_raw" / "HS" / "s3")
    assert len(clips) == 4
    assert "4 clip folders are taken as HS" in audit.findings[0].what
    assert _kinds(audit) == ["note"]
    clips, audit = _survey(root / "SMIC_all_raw" / "HS")
    assert len(clips) == 10
    assert not audit.findings


def test_padding_letter_case_and_nested_archives(short, root):
    old = root / "SMIC_all_raw" / "HS" / "s3"
    new = root / "SMIC_all_raw" / "smic_all_raw" / "hs" / "S03"
    new.parent.mkdir(parents=True)
    old.rename(new)
    (new / "micro" / "positive").rename(new / "micro" / "Positive")
    old = new / "micro" / "negative" / "s3_ne_02"
    old.rename(new / "micro" / "negative" / "S03_NE_2")
    inner = new / "micro" / "surprise" / "s3_sur_02"
    inner.rename(new / "moved")
    inner.mkdir()
    (new / "moved").rename(inner / "s3_sur_02")
    clips, audit = _survey(root)
    assert not audit.findings
    assert [clip.id for clip in clips] == [clip.id for clip in short]
    assert clips[0].folder.name == "S03_NE_2"
    assert clips[3].folder == inner / "s3_sur_02"


def test_the_more_complete_of_raw_and_cropped_images(root, faces):
    smic.write(root, faces, pictures="raw")
    smic.write(root, faces, pictures="cropped")
    clips, audit = _survey(root)
    assert {clip.folder.relative_to(root).parts[0] for clip in clips} == {"SMIC_all_raw"}
    assert len(clips) == 10
    assert _kinds(audit) == ["note"]
    assert audit.findings[0].what.startswith("10 raw clips are used; there are also 10 cropped")
    shutil.rmtree(root / "SMIC_all_raw" / "HS" / "s11")
    clips, audit = _survey(root)
    assert {clip.folder.relative_to(root).parts[0] for clip in clips} == {"SMIC_all_cropped"}
    assert audit.findings[0].what.startswith("10 cropped clips are used; there are also 7 raw")


def test_short_clips_are_preferred_to_long_ones(root, faces):
    expected = smic.write(root, faces)
    smic.write_long(root, faces)
    clips, audit = _survey(root)
    assert clips == expected
    assert _kinds(audit) == ["note"]
    assert audit.findings[0].what == "10 short clips are used; 9 long ones (SMIC-E) are left out"


def test_name_and_emotion_folder_disagree(short, root):
    micro = root / "SMIC_all_raw" / "HS" / "s3" / "micro"
    (micro / "positive" / "s3_po_01").rename(micro / "negative" / "s3_po_01")
    clips, audit = _survey(root)
    assert len(clips) == 9
    found = _only(audit, "row")
    assert found.clip == "smic/s03/s03_po_01"
    assert found.what == "the clip's name says positive, its folder is in negative"
    assert found.clip in audit.dropped


def test_name_and_subject_folder_disagree(short, root):
    top = root / "SMIC_all_raw" / "HS"
    (top / "s3" / "micro" / "positive").rename(top / "s11" / "micro" / "elsewhere")
    clips, audit = _survey(root)
    assert len(clips) == 9
    what = "the clip's name is of subject s03, its folder is in s11"
    assert _only(audit, "row").what == what


def test_strange_folder_is_reported(short, root):
    (root / "SMIC_all_raw" / "HS" / "s3" / "micro" / "negative" / "s3_neg_7").mkdir()
    clips, audit = _survey(root)
    assert len(clips) == 10
    found = _only(audit, "row")
    assert found.where.endswith("s3_neg_7")
    assert "no clip's name" in found.what


def test_empty_folder_and_ambiguous_frames(short, root):
    for picture in short[0].folder.iterdir():
        picture.unlink()
    shutil.copy(short[1].folder / "image034110.bmp", short[1].folder / "image034110.BMP")
    clips, audit = _survey(root)
    assert len(clips) == 8
    assert [(f.kind, f.clip) for f in audit.errors] == [
        ("folder", short[0].id),
        ("path", short[1].id),
    ]
    assert "it holds no images" in audit.errors[0].what
    assert "have the same number" in audit.errors[1].what


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["image000001.bmp"], "frame 220000 follows 1"),
        (["image999999.bmp"], "frame 999999 follows 220004"),
        ([f"out{number:04d}.bmp" for number in range(1, 20)], "named in several ways"),
        (["flow1.png", "flow2.png"], "named in several ways"),
    ],
)
def test_first_and_last_frame_are_of_the_clip_or_nothing(short, root, names, said):
    clip = next(clip for clip in short if clip.name == "s11_ne_01")
    image = next(iter(image_files(clip.folder).values()))
    for name in names:
        shutil.copy(image, clip.folder / name)
    clips, audit = _survey(root)
    assert clips == [other for other in short if other != clip]
    finding = _only(audit, "image")
    assert (finding.clip, finding.drops) == (clip.id, True)
    assert said in finding.what


def test_links_out_of_the_tree(short, root, tmp_path):
    outside = tmp_path / "outside"
    short[0].folder.rename(outside)
    short[0].folder.symlink_to(outside)
    picture = short[1].folder / "image034110.bmp"
    picture.rename(tmp_path / "picture.bmp")
    picture.symlink_to(tmp_path / "picture.bmp")
    clips, audit = _survey(root)
    assert [clip.id for clip in clips] == [clip.id for clip in short[2:]]
    found = _only(audit, "path")
    assert found.clip == short[1].id
    assert "leading outside the folder" in found.what
    assert survey.Tree(root).outside == [short[0].folder]


def test_known_gap_of_cropped_images_is_noted(root, faces, monkeypatch):
    monkeypatch.setitem(Smic.KNOWN_GAPS, "smic/s11/s11_ne_01", "2 are lacking")
    smic.write(root, faces, pictures="cropped")
    clips, audit = _survey(root)
    assert len(clips) == 10
    assert _kinds(audit) == ["note"]
    assert audit.findings[0].clip == "smic/s11/s11_ne_01"
    assert audit.findings[0].what.startswith("2 are lacking")


def test_merged_clips_and_the_known_error_are_corrected(long, root):
    clips, audit = _survey(root)
    assert clips == long
    merged = clips[1]
    assert (merged.id, merged.onset, merged.offset) == ("smic/s03/s03_ne_03", 34110, 34114)
    assert merged.folder.name == "s3_ne_02"
    corrected = {f.clip: f.what for f in audit.findings if f.kind == "corrected"}
    assert list(corrected) == ["smic/s18/s18_sur_03", "smic/s03/s03_ne_03"]
    assert corrected["smic/s18/s18_sur_03"].startswith("emotion negative -> surprise: ")
    assert (
        corrected["smic/s03/s03_ne_03"] == "interval 2 of s03_ne_02's row, which joins both clips"
    )
    # The third interval is a formula's rubbish.
    notes = [f.what for f in audit.findings if f.kind == "note"]
    assert notes == ["interval 3, '' to '-10', belongs to no published clip and is left out"]


def test_sheet_with_a_row_for_every_clip(root, faces):
    expected = smic.write_long(root, faces, split=True)
    clips, audit = _survey(root)
    assert clips == expected
    assert _kinds(audit) == ["corrected"]


def test_a_correct_emotion_is_left_alone(long, root):
    _rewrite(root, lambda rows: rows["s18_sur_03"].update(Emotion="Surprise"))
    clips, audit = _survey(root)
    assert clips == long
    assert [f.clip for f in audit.findings if f.kind == "corrected"] == ["smic/s03/s03_ne_03"]


def test_missing_second_interval_of_a_merged_clip(long, root):
    _rewrite(root, lambda rows: rows["s3_ne_02"].update(Onset2F=None, Offset2F=None))
    clips, audit = _survey(root)
    assert len(clips) == 9
    found = _only(audit, "row")
    assert (found.clip, found.what) == (
        "smic/s03/s03_ne_03",
        "neither a row nor interval 2 of s03_ne_02's row",
    )


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"Emotion": "negative"}, "Emotion is 'negative', the clip's name says positive"),
        ({"OnsetF": "x"}, "onset 'x', offset '230004': no frame numbers"),
        ({"OffsetF": "=D6+4"}, "offset '': no frame numbers (a formula that has lost its value?"),
        ({"OffsetF": 229999}, "onset '230000', offset '229999': it ends before it begins"),
        ({"Subject": 12}, "Subject is '12', Filename 's11_po_01': they disagree"),
    ],
)
def test_bad_cells_of_the_sheet(long, root, cells, what):
    _rewrite(root, lambda rows: rows["s11_po_01"].update(cells))
    clips, audit = _survey(root)
    assert [clip.id for clip in clips] == [c.id for c in long if c.name != "s11_po_01"]
    found = _only(audit, "row")
    assert what in found.what
    assert found.clip == "smic/s11/s11_po_01"
    assert found.where.startswith("SMIC-HS-E_annotation.xlsx, sheet HS, row ")


def test_bad_second_interval(long, root):
    _rewrite(root, lambda rows: rows["s3_ne_02"].update(Offset2F="?"))
    clips, audit = _survey(root)
    assert len(clips) == 9
    assert _only(audit, "row").what.startswith("interval 2: onset '34110', offset '?': no frame")


def test_bad_name_duplicate_row_and_remarks(long, root):
    def change(rows):
        rows["a"] = {"Subject": 3, "Filename": "s3-ne", "OnsetF": 1, "OffsetF": 2}
        rows["b"] = dict(rows["s11_ne_01"], OnsetF=1)
        rows["c"] = {"Subject": "a remark of the owners"}

    _rewrite(root, change)
    clips, audit = _survey(root)
    assert clips == long
    assert sorted(f.what for f in audit.errors)[0].startswith("Filename is 's3-ne', no name")
    again = sorted(f.what for f in audit.errors)[1]
    assert again.startswith("the clip again, after SMIC-HS-E_annotation.xlsx, sheet HS, row")
    assert len(audit.errors) == 2
    assert not audit.dropped
    assert "no clip's row: a remark of the owners" in [f.what for f in audit.findings]


def test_folder_without_a_row_and_row_without_a_folder(long, root):
    long[4].folder.rename(long[4].folder.with_name("s11_ne_09"))
    clips, audit = _survey(root)
    assert len(clips) == 9
    assert [(f.kind, f.clip, f.what) for f in audit.errors] == [
        ("folder", "smic/s11/s11_ne_01", "no folder s11_ne_01"),
        ("row", "smic/s11/s11_ne_09", survey.WITHOUT_ROW),
    ]


def test_lost_clips_are_notes(long, root):
    def change(rows):
        rows["s3_ne_20"] = {"Subject": 3, "Filename": "s3_ne_20", "OnsetF": 5, "OffsetF": 9}

    _rewrite(root, change)
    clips, audit = _survey(root)
    assert clips == long
    assert not audit.errors
    assert [f.clip for f in audit.findings if "SMIC-E has lost" in f.what] == ["smic/s03/s03_ne_20"]


def test_damaged_sheet(long, root):
    (path,) = root.rglob("*.xlsx")
    path.write_bytes(path.read_bytes()[:-300])
    clips, audit = _survey(root)
    assert not clips
    assert "damaged, or not a spreadsheet" in _only(audit, "sheet").what


def test_the_documented_sheet_is_preferred(long, root):
    (path,) = root.rglob("*.xlsx")
    (path.parent / "SMIC-HS-E_annotation_orig.xlsx").write_bytes(b"not read")
    path.rename(path.with_name("smic-hs-e_ANNOTATION.xlsx"))
    clips, audit = _survey(root)
    assert clips == long
    assert not audit.errors
    (root / "smic-hs-e_annotation.xlsx").write_bytes(b"not read")
    clips, audit = _survey(root)
    assert "this sheet is used; left aside: smic-hs-e_annotation.xlsx" in audit.findings[0].what


def test_vis_sheet_of_the_hs_workbook(root, faces):
    expected = smic.write_long(root, faces, variant="vis")
    (path,) = root.rglob("*.xlsx")
    path.rename(path.with_name("SMIC-HS-E_annotation.xlsx"))
    clips, audit = _survey(root, "vis")
    assert clips == expected
    assert not audit.errors
    # The HS sheet must not be read for VIS.
    smic.write_sheet(path.with_name("SMIC-HS-E_annotation.xlsx"), smic.sheet_rows("hs"), "hs")
    clips, audit = _survey(root, "vis")
    assert not clips
    assert "it has no sheet VIS, only HS" in _only(audit, "sheet").what


@pytest.mark.parametrize(
    ("folder", "long"),
    [
        ("HS_long/SMIC_HS_E/s03", True),
        ("SMIC-E_raw image/VIS_long/SMIC-VIS-E/VIS", True),
        ("SMIC-E/SMIC_all_raw/HS", False),
        ("smic_expressions/HS/s1/micro", False),
        ("long/e/SMIC/HS/s1", False),
    ],
)
def test_long_clips_are_told_by_their_path(folder, long):
    assert is_long(Path(folder)) is long


@pytest.mark.parametrize(
    ("variant", "folder", "title", "clips", "subjects", "emotions"),
    [
        ("hs", "SMIC_all_raw/HS", "SMIC HS", 164, 16, (70, 51, 43)),
        ("hs", "HS_long/SMIC_HS_E", "SMIC-E HS", 161, 16, (68, 51, 42)),
        ("vis", "SMIC_all_raw/VIS", "SMIC VIS", 71, 8, (23, 28, 20)),
        ("nir", "SMIC_all_raw/NIR", "SMIC NIR", 71, None, ()),
    ],
)
def test_published_numbers_of_each_part(variant, folder, title, clips, subjects, emotions):
    found = [survey.RawClip("smic", "s01", "s01_ne_01", "negative", Path(folder), 1, None, 9)]
    (counts,) = Smic.counts(found, variant)
    assert (counts.title, counts.clips, counts.subjects) == (title, clips, subjects)
    assert tuple(counts.emotions.values()) == emotions
    assert ("no published numbers" in counts.remark) == (variant == "nir")


def test_labels_and_names_that_are_known(short):
    for labels in Smic.LABELS.values():
        assert labels.classes == ("negative", "positive", "surprise")
        assert [labels.label(c.emotion) for c in short] == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert set(Smic.LABELS) == {"megc3", "own"}
    for name in [*Smic.CORRECTIONS, *(key.split("/")[2] for key in Smic.KNOWN_GAPS)]:
        assert name == standard_name(name)
