"""What all surveys share: folders of a copy, its sheet, and the report of what is wrong."""

import collections
import csv
import dataclasses
import datetime
import re
import shutil
import time
import unicodedata

import pytest
from fakes import casme2, casme3, fourdme, mmew, samm, smic

from htnet_jax.datasets import BUILDERS, labels, recording, sheets, survey
from htnet_jax.errors import UserError, shown

# Data sets whose clips are listed in a sheet; SMIC has rules of its own.
FAKES = {"casme2": casme2, "casme3": casme3, "fourdme": fourdme, "mmew": mmew, "samm": samm}


@dataclasses.dataclass
class Copy:
    """A fake copy, in which tests spoil the third clip."""

    name: str
    root: object
    faces: object
    clips: list

    @property
    def fake(self):
        return FAKES[self.name]

    @property
    def sheet(self):
        return self.root / self.fake.SHEET

    def survey(self):
        audit = survey.Audit()
        variant = BUILDERS[self.name].VARIANTS[0]
        return BUILDERS[self.name].survey(survey.Tree(self.root), variant, audit), audit

    def row(self, rows):
        clip = self.clips[2]
        return next(
            row for row in rows if clip.name in (row["name"], f"{row['name']}_{row['onset']}")
        )

    def edit(self, **cells):
        self.fake.rewrite(self.root, self.faces, lambda rows: self.row(rows).update(cells))


@pytest.fixture(scope="module", params=FAKES)
def written(request, faces, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, FAKES[request.param].write(root, faces)


@pytest.fixture
def copy(written, faces, tmp_path):
    name, source, clips = written
    root = tmp_path / "manual"
    shutil.copytree(source, root)
    moved = [
        dataclasses.replace(clip, folder=root / clip.folder.relative_to(source)) for clip in clips
    ]
    return Copy(name, root, faces, moved)


def rest(copy):
    return copy.clips[:2] + copy.clips[3:]


def test_a_good_copy(copy):
    clips, audit = copy.survey()
    assert clips == copy.clips
    assert audit.errors == []


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"onset": "soon"}, "onset is 'soon', no frame number"),
        ({"offset": None}, "offset is '', no frame number"),
        ({"offset": "0"}, "offset 0 lies before onset "),
        ({"apex": "?"}, "apex is '?', no frame number"),
        ({"emotion": "Boredom"}, "emotion is 'Boredom', expected one of "),
        ({"emotion": None}, "emotion is '', expected one of "),
    ],
)
def test_a_bad_cell(copy, cells, what):
    if copy.name == "casme3" and "onset" in cells:
        what = "Subject, Filename, Onset are 'spNO.2', 'b', 'soon': they name no clip"
    copy.edit(**cells)
    clips, audit = copy.survey()
    assert clips == rest(copy)
    (finding,) = audit.errors
    assert finding.kind == "row"
    assert finding.what.startswith(what)
    assert finding.where.startswith(f"{copy.sheet.name}, sheet ")
    if "name no clip" not in what:
        assert audit.dropped == {copy.clips[2].id}


@pytest.mark.parametrize(
    ("apex", "offset"),
    [("9" * 5000, datetime.datetime(2014, 5, 12)), (-1, 3e9), (4.5, True), ("1e3", "nan\n5")],
)
def test_numbers_that_no_frame_has(copy, apex, offset):
    copy.edit(apex=apex, offset=offset)
    clips, audit = copy.survey()
    assert clips == rest(copy)
    assert [f.what.partition(" ")[0] for f in audit.errors] == ["apex", "offset"]
    for finding in audit.errors:
        assert "no frame number" in finding.what and len(finding.what) < 200
        assert re.search(r", row \d+$", finding.where)


def test_names_of_5000_digits_are_found_with_their_row(copy):
    for key in ("subject", "name"):
        copy.edit(**{key: "9" * 5000})
        clips, audit = copy.survey()
        assert copy.clips[2] not in clips
        whats = [f.what for f in audit.errors if re.search(r", row \d+$", f.where)]
        assert whats and all(len(what) < 400 for what in whats)


@pytest.mark.parametrize("cells", [{"apex": "/"}, {"apex": None}, {"apex": "999999999"}])
def test_an_apex_that_is_missing_or_impossible_is_left_to_the_rule(copy, cells):
    copy.edit(**cells)
    clips, audit = copy.survey()
    assert clips[2].apex == (999999999 if cells["apex"] == "999999999" else None)
    assert audit.errors == []


@pytest.mark.parametrize(("key", "cell"), [("name", None), ("subject", "../up")])
def test_a_row_that_names_no_clip(copy, key, cell):
    copy.edit(**{key: cell})
    clips, audit = copy.survey()
    assert clips == rest(copy)
    assert any(f.kind == "row" and repr(cell or "") in f.what for f in audit.errors)


def test_a_clip_with_two_rows(copy):
    copy.fake.rewrite(copy.root, copy.faces, lambda rows: rows.append(dict(copy.row(rows))))
    clips, audit = copy.survey()
    assert clips == copy.clips
    (finding,) = audit.errors
    assert finding.what.startswith(f"the clip again, after {copy.sheet.name}, sheet ")
    # MMEW's first row is used; the others' clip is not built.
    assert audit.dropped == (set() if copy.name == "mmew" else {copy.clips[2].id})


def test_a_missing_folder(copy):
    shutil.rmtree(copy.clips[2].folder)
    clips, audit = copy.survey()
    assert clips == rest(copy)
    (finding,) = audit.errors
    assert (finding.kind, finding.clips) == ("folder", (copy.clips[2].id,))
    assert audit.dropped == {copy.clips[2].id}


def test_a_link_out_of_the_folder_is_not_followed(copy, tmp_path):
    folder = copy.clips[2].folder
    shutil.move(folder, tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    clips, audit = copy.survey()
    assert clips == rest(copy)
    assert [f.kind for f in audit.errors] == ["folder"]
    assert survey.Tree(copy.root).outside == [folder]


def test_two_folders_of_one_clip(copy):
    folder = copy.clips[2].folder
    below = folder.relative_to(copy.root)
    shutil.copytree(folder, copy.root / "copy" / below)
    clips, audit = copy.survey()
    assert clips == rest(copy)
    (finding,) = audit.errors
    assert (finding.kind, finding.clips) == ("path", (copy.clips[2].id,))
    for place in (below, f"copy/{below}"):
        assert str(place) in finding.what


def test_a_folder_without_a_row(copy):
    copy.fake.rewrite(copy.root, copy.faces, lambda rows: rows.remove(copy.row(rows)))
    if copy.name == "casme3":  # a recording holds more than what is annotated
        copy.clips[2].folder.rename(copy.root / "b")
        (copy.root / "frame").mkdir()
        (copy.root / "b").rename(copy.root / "frame" / "spNO.2_b_21")
    clips, audit = copy.survey()
    assert clips == rest(copy)
    (finding,) = audit.errors
    assert (finding.kind, finding.what) == ("row", survey.WITHOUT_ROW)
    assert finding.where.endswith("spNO.2_b_21" if copy.name == "casme3" else copy.clips[2].name)


def test_no_sheet(copy):
    copy.sheet.unlink()
    clips, audit = copy.survey()
    assert clips == []
    (finding,) = audit.findings
    assert finding.kind == "sheet"
    assert f"no annotation sheet; it is called {copy.sheet.name}" in finding.what


@pytest.mark.parametrize("column", ["offset", "emotion"])
def test_a_sheet_without_a_needed_column(copy, column):
    copy.fake.rewrite(copy.root, copy.faces, lambda rows: None, without=column)
    clips, audit = copy.survey()
    assert clips == []
    (finding,) = audit.findings
    assert (finding.kind, finding.where) == ("sheet", copy.sheet.name)
    assert column in finding.what.partition(" lacks ")[2].lower()


# A workbook with a password is an OLE container; the other is a truncated archive.
@pytest.mark.parametrize(
    "content", [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), b"PK\x03\x04 damaged"]
)
def test_a_locked_or_damaged_sheet(copy, content):
    copy.sheet.write_bytes(content)
    clips, audit = copy.survey()
    assert clips == []
    (finding,) = audit.findings
    assert (finding.kind, finding.where) == ("sheet", copy.sheet.name)
    assert "damaged, or not a spreadsheet" in finding.what


def test_of_several_sheets_the_documented_one_is_used(copy):
    other = copy.sheet.with_name(f"{copy.sheet.stem}  (1).xlsx")
    other.write_bytes(b"not read")
    copy.sheet.rename(copy.sheet.with_name(copy.sheet.name.upper()))
    clips, audit = copy.survey()
    assert clips == copy.clips
    assert audit.errors == []
    (note,) = (f for f in audit.findings if "left aside" in f.what)
    assert note.where == copy.sheet.name.upper()
    assert note.what == f"this sheet is used; left aside: {other.name}"


def test_every_label_set_has_the_labels_of_its_classes():
    for builder in BUILDERS.values():
        for name, chosen in getattr(builder, "LABELS", {}).items():
            found = set(chosen.of_emotion.values()) or set(labels.OBJECTIVE)
            assert found == set(chosen.classes), (builder.name, name)
            for word in chosen.of_emotion:
                label = chosen.label(word)
                assert chosen.classes[label] == chosen.of_emotion[word]
            assert chosen.label("boredom") is None


def test_published_numbers_agree_with_each_other():
    compared = 0
    for builder in BUILDERS.values():
        for counts in getattr(builder, "COUNTS", ()):
            if counts.emotions:
                assert sum(counts.emotions.values()) == counts.clips, counts.title
                assert set(counts.emotions) <= set(builder.LABELS["own"].of_emotion)
                compared += 1
    assert compared >= 4


def clips_of(counts):
    """Invented clips in the published numbers."""
    words = list(collections.Counter(counts.emotions).elements()) or ["x"] * counts.clips
    return [
        survey.RawClip("x", f"s{i % (counts.subjects or 5)}", f"c{i}", word, None, 1, 2, 3)
        for i, word in enumerate(words)
    ]


def counted(clips, published):
    audit = survey.Audit()
    survey.check_counts(clips, published, audit)
    return audit


OLD = survey.Counts("old", 6, 3, {"happy": 4, "sad": 2})
NEW = survey.Counts("new", 7, 3, {"happy": 3, "sad": 4}, remark="two are sad now")


def test_counts_are_compared_with_the_version_that_comes_nearest():
    assert counted(clips_of(OLD), (OLD, NEW)).findings == []
    (note,) = counted(clips_of(NEW), (OLD, NEW)).findings
    assert (note.kind, note.where, note.what) == ("note", "new", "two are sad now")
    audit = counted(clips_of(OLD)[1:], (OLD, NEW))
    assert [(f.kind, f.where, f.what) for f in audit.errors] == [
        ("count", "old", "5 clips, the published data set has 6"),
        ("count", "old", "3 happy clips, the published data set has 4"),
    ]
    few = [dataclasses.replace(clip, subject="s0") for clip in clips_of(OLD)]
    (finding,) = counted(few, (OLD, NEW)).errors
    assert finding.what == "1 subject, the published data set has 3"
    assert len(counted([], (OLD, NEW)).errors) == 1
    assert counted(clips_of(OLD), ()).findings == []


def test_numbers_that_are_not_enforced_are_noted():
    (note,) = counted([], (dataclasses.replace(OLD, enforced=False, by="a loader"),)).findings
    assert (note.is_problem, note.what) == (False, "0 clips, a loader has 6")


def test_a_correction_changes_only_what_is_still_wrong():
    row = survey.Row(2, "row 2", {"apex": "83", "emotion": "Negative", "offset": "9"})
    known = survey.Correction(
        {"apex": ("83", "123"), "emotion": ("negative", "surprise"), "offset": ("8", "7")}, "why"
    )
    corrected, words = survey.correct(row, known)
    assert corrected.cells == {"apex": "123", "emotion": "surprise", "offset": "9"}
    assert words == ["apex 83 -> 123: why", "emotion negative -> surprise: why"]
    assert survey.correct(row, None) == (row, [])


def test_that_no_unit_is_active_is_kept_and_not_noted():
    audit = survey.Audit()
    cells = {"onset": "1", "apex": "2", "offset": "3", "emotion": "happy"}
    for cell, stored in (("0", ("0",)), ("none", ("0",)), ("", ()), ("?", ())):
        row = sheets.Row(7, "row 7", cells | {"aus": cell})
        assert survey.values(row, "x/1/a", audit, ["happy"])["aus"] == stored
    assert audit.findings == []


def test_what_is_no_action_unit_is_noted_with_its_row():
    audit = survey.Audit()
    cells = {"onset": "1", "apex": "2", "offset": "3", "emotion": "happy"}
    row = sheets.Row(7, "codes.xlsx, sheet A, row 7", cells | {"aus": "R14+17+hard stare"})
    assert survey.values(row, "x/1/a", audit, ["happy"])["aus"] == ("R14", "17")
    (found,) = audit.findings
    assert (found.kind, found.clip, found.is_problem) == ("note", "x/1/a", False)
    assert found.where == row.where
    assert found.what == (
        "action units 'R14+17+hard stare': left out, because not understood: 'hard stare'"
    )


def test_an_audit_reports_by_kind_and_drops_only_clips(tmp_path):
    audit = survey.Audit()
    audit.add("count", "samm", "158 clips")
    audit.add("onset", "folder", "frame 3 is not there", clip="samm/006/006_1_2")
    audit.add("offset", "folder", "frame 9 is not there", clip="samm/006/006_1_3", drops=False)
    audit.note("row 4", "apex mended", clip="samm/006/006_1_4", kind="corrected")
    assert audit.dropped == {"samm/006/006_1_2"}
    assert [finding.kind for finding in audit.errors] == ["count", "onset", "offset"]
    with pytest.raises(UserError, match="3 findings, 2 clips concerned"):
        audit.raise_if_errors("samm", "Mend it.")
    audit.write_csv(tmp_path / "audit.csv")
    lines = (tmp_path / "audit.csv").read_text().splitlines()
    assert lines[0] == "kind,clip,where,what,drops"
    assert lines[2] == "onset,samm/006/006_1_2,folder,frame 3 is not there,1"
    with pytest.raises(ValueError, match="unknown kind 'colour'"):
        audit.add("colour", "samm", "red")


def test_an_audit_with_hostile_names_is_written_escaped(tmp_path):
    audit = survey.Audit()
    odd = "samm/0\x1b[31m6/a\nb\u202e\udcff"
    audit.add("onset", f"{odd}.jpg", f"{odd}: not there", clip=odd)
    with pytest.raises(UserError) as caught:
        audit.raise_if_errors("samm", "Mend it.")
    shown = r"samm/0\x1b[31m6/a\nb\u202e\udcff"
    assert shown in str(caught.value)
    audit.write_csv(tmp_path / "audit.csv")
    (_, row) = csv.reader((tmp_path / "audit.csv").read_text().splitlines())
    assert row == ["onset", shown, f"{shown}.jpg", f"{shown}: not there", "1"]


def folders(root, *paths):
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)


def below(tree, found):
    return [tree.below(path) for path in found]


def test_folders_by_the_last_parts_of_their_path(tmp_path):
    folders(
        tmp_path,
        *("outer/outer/sub01/EP02_01f", "outer/outer/sub02/EP02_01f", "outer/outer/sub01/EP02_01"),
        *("outer/outer/xsub01/EP02_01f", "spNo.1/J", "spNO.2/j"),
    )
    tree = survey.Tree(tmp_path)
    one = ["outer/outer/sub01/EP02_01f"]
    assert below(tree, tree.folders("sub01", "EP02_01f")) == one
    assert below(tree, tree.folders("SUB01", "ep02_01F")) == one
    assert below(tree, tree.folders("outer", "sub01", "EP02_01f")) == one
    # The name alone is ambiguous, and all are told, sorted.
    assert below(tree, tree.folders("EP02_01f")) == [
        f"outer/outer/{subject}/EP02_01f" for subject in ("sub01", "sub02", "xsub01")
    ]
    assert tree.folders("sub1", "EP02_01f") == []
    assert tree.folders("sub01", "EP02") == []
    assert tree.folders("EP02_01f", "sub01") == []
    # Letter case of the copy does not matter either.
    assert below(tree, tree.folders("spNO.1", "j")) == ["spNo.1/J"]
    assert below(tree, tree.folders("spno.2", "J")) == ["spNO.2/j"]


def test_names_match_as_a_whole(tmp_path):
    folders(tmp_path, "s1", "deep/S02", "s1x", "xs1", "s")
    tree = survey.Tree(tmp_path)
    assert below(tree, tree.names(r"s\d+")) == ["deep/S02", "s1"]
    assert tree.parts(tmp_path / "deep" / "S02") == (tmp_path.name.casefold(), "deep", "s02")


def test_what_macos_and_office_leave_behind_is_ignored(tmp_path):
    folders(tmp_path, "a/sub01", "__MACOSX/a/sub01", "a/__MACOSX/sub01")
    for name in ("codes.XLSX", "~$codes.xlsx", "._codes.xlsx", "xcodes.xls", "codes.xlsx.bak"):
        (tmp_path / "a" / name).write_text("")
    (tmp_path / "__MACOSX/codes.xlsx").write_text("")
    (tmp_path / "a/sub01/codes.jpg").write_text("")
    tree = survey.Tree(tmp_path)
    assert below(tree, tree.folders("sub01")) == ["a/sub01"]
    assert tree.folders("__MACOSX") == []
    assert below(tree, tree.files(r"codes\.xlsx?")) == ["a/codes.XLSX"]
    assert tree.files(r"codes\.jpg") == []  # Images are asked for by folder.


def test_an_empty_or_missing_root(tmp_path):
    assert survey.Tree(tmp_path).names(".*") == []
    assert survey.Tree(tmp_path / "nowhere").files(".*") == []


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folders(folder, "sub01/EP01")
    (folder / "codes.xlsx").write_text("")
    root = tmp_path / "root"
    root.mkdir()
    return root, folder


def test_folders_that_lead_out_of_the_tree_are_never_followed(outside):
    root, folder = outside
    folders(root, "sub02")
    (root / "sub01").symlink_to(folder / "sub01")
    (root / "sub02" / "EP01").symlink_to("../../outside/sub01/EP01")
    (root / "up").symlink_to("..")
    # Its name begins like the root's.
    twin = root.with_name("root2")
    twin.mkdir()
    (root / "twin").symlink_to(twin)
    tree = survey.Tree(root)
    assert tree.folders("sub01") == []
    assert tree.folders("EP01") == []
    assert tree.names("up|twin|outside") == []
    links = [root / "sub01", root / "sub02" / "EP01", root / "twin", root / "up"]
    assert sorted(tree.outside) == links


def test_a_sheet_that_leads_out_of_the_tree_is_never_followed(outside):
    root, folder = outside
    (root / "codes.xlsx").symlink_to(folder / "codes.xlsx")
    assert survey.Tree(root).files(".*") == []
    (root / "real.xlsx").write_text("")
    (root / "link.xlsx").symlink_to("real.xlsx")
    assert [p.name for p in survey.Tree(root).files(".*")] == ["link.xlsx", "real.xlsx"]


def test_links_within_the_tree_are_followed_once(tmp_path):
    folders(tmp_path, "disk/real/EP01")
    root = tmp_path / "root"  # which may be a link itself
    root.symlink_to("disk")
    (root / "sub01").symlink_to("real")
    (root / "loop").symlink_to(".")
    tree = survey.Tree(root)
    assert below(tree, tree.folders("sub01")) == ["sub01"]
    assert below(tree, tree.folders("EP01")) == ["real/EP01", "sub01/EP01"]
    assert below(tree, tree.folders("sub01", "EP01")) == ["sub01/EP01"]
    assert tree.outside == []


# Names with letters that have two forms: in the sheet composed, on disk not, and the reverse.
@pytest.mark.parametrize(("of_sheet", "of_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("name", ["casme2", "fourdme"])
def test_how_unicode_composes_a_name_does_not_matter(
    name, of_sheet, of_disk, tmp_path, faces, monkeypatch
):
    fake = FAKES[name]
    root = tmp_path / "manual"
    clips = fake.write(root, faces)
    copy = Copy(name, root, faces, clips)
    new = f"{clips[2].name}_é"
    clips[2].folder.rename(clips[2].folder.with_name(unicodedata.normalize(of_disk, new)))
    copy.edit(name=unicodedata.normalize(of_sheet, new))
    found, audit = copy.survey()
    assert audit.errors == []
    (changed,) = {clip.id for clip in found} - {clip.id for clip in clips}
    assert changed == unicodedata.normalize("NFC", f"{clips[2].id}_é")


def test_only_videos_where_frames_are_expected(copy):
    clip = copy.clips[2]
    names = {"casme3": f"{clip.subject}_{clip.name}"}
    film = clip.folder.parent / f"{names.get(copy.name, clip.name)}.avi"
    shutil.rmtree(clip.folder)
    film.write_text("")
    clips, audit = copy.survey()
    assert clips == rest(copy)
    (finding,) = audit.errors
    assert (finding.kind, finding.clips) == ("folder", (clip.id,))
    assert f"only the video {film.relative_to(copy.root)} is there; extract its" in finding.what


@pytest.mark.parametrize("name", [*FAKES, "smic"])
def test_a_copy_of_videos_alone(name, faces, tmp_path):
    fake = FAKES.get(name, smic)
    clips = fake.write(tmp_path, faces)
    for folder in {clip.folder for clip in clips}:
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.MP4").write_text("")
    audit = survey.Audit()
    assert BUILDERS[name].clips_in(tmp_path, "", audit) == []
    said = [finding.what for finding in audit.errors]
    assert any(re.search(r"^\d+ videos, but no clip's images: extract", what) for what in said)
    # In a folder of its own a video is found too.
    clips[0].folder.mkdir()
    (clips[0].folder / "film.avi").write_text("")
    audit = survey.Audit()
    BUILDERS[name].clips_in(tmp_path, "", audit)
    assert any("only the video film.avi is there" in finding.what for finding in audit.errors)


def test_a_linked_sheet_or_folder_is_named_with_the_remedy(copy, tmp_path):
    copy.sheet.rename(tmp_path / "sheet.xlsx")
    copy.sheet.symlink_to(tmp_path / "sheet.xlsx")
    (tmp_path / "elsewhere").mkdir()
    (copy.root / "more").symlink_to(tmp_path / "elsewhere")
    audit = survey.Audit()
    assert BUILDERS[copy.name].clips_in(copy.root, "", audit) == []
    said = {finding.where: finding.what for finding in audit.errors}
    for name in (copy.sheet.name, "more"):
        assert "is a link leading outside" in said[name]
        assert "put a copy of what it leads to there" in said[name]


@pytest.mark.parametrize("count", [9, 15])
def test_folders_that_link_to_each_other_are_listed_soon(tmp_path, count):
    names = [f"s{number}" for number in range(count)]
    folders(tmp_path, *(f"{name}/EP01" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(f"../{other}")
    start = time.process_time()
    tree = survey.Tree(tmp_path)
    assert time.process_time() - start < 5
    assert tree.folders("s0", "EP01")[0] == tmp_path / "s0" / "EP01"


def test_a_walk_ends(tmp_path, monkeypatch):
    folders(tmp_path, *map(str, range(20)))
    monkeypatch.setattr(survey, "MOST_FOLDERS", 10)
    with pytest.raises(UserError, match="more than 10 folders"):
        survey.Tree(tmp_path)


STRAYS = ("39 (1).jpg", "s3_po_01_flow.png", "mean_face2.jpg", "12_mask.png", "\x1b[2J\udcff.bmp")


def test_stray_images_are_findings_and_never_frames(copy, tmp_path):
    folder = copy.clips[2].folder
    before = dict(recording.image_files(folder))
    for name in STRAYS:
        (folder / name).write_text("no image")
    audit = survey.Audit()
    clips = BUILDERS[copy.name].clips_in(copy.root, "", audit)
    assert copy.clips[2] in clips
    assert dict(recording.image_files(folder)) == before
    named = [f for f in audit.errors if f.kind == "image"]
    # A recording of CAS(ME)^3 has several clips.
    concerned = {clip.id for clip in copy.clips if clip.folder == folder}
    assert {f.clip for f in named} == concerned
    assert {f.what.partition(" is not used: ")[0] for f in named} == set(map(shown, STRAYS))
    assert not concerned & audit.dropped
    audit.write_csv(tmp_path / "audit.csv")
    text = (tmp_path / "audit.csv").read_text()
    for name in STRAYS:
        assert shown(name) in text
        assert shown(name) in audit.report() or len(named) > survey.SHOWN
    assert "\x1b" not in text + audit.report()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "'"])
def test_no_name_in_an_audit_becomes_a_formula(tmp_path, start):
    audit = survey.Audit()
    audit.add("path", f"{start}cmd|' /C calc'!A0", f"{start}1\n{start}2")
    audit.write_csv(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["where"] == f"'{start}cmd|' /C calc'!A0"
    assert row["what"] == f"'{start}1\\n{start}2"
