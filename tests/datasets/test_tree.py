import pytest

from htnet_jax.datasets import tree


def _folders(root, *paths):
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)


def _below(found, folders):
    return [found.below(path) for path in folders]


def test_folders_by_the_last_parts_of_their_path(tmp_path):
    _folders(
        tmp_path,
        *("outer/outer/sub01/EP02_01f", "outer/outer/sub02/EP02_01f", "outer/outer/sub01/EP02_01"),
        "outer/outer/xsub01/EP02_01f",
    )
    found = tree.Tree(tmp_path)
    one = ["outer/outer/sub01/EP02_01f"]
    assert _below(found, found.folders("sub01", "EP02_01f")) == one
    assert _below(found, found.folders("SUB01", "ep02_01F")) == one
    assert _below(found, found.folders("outer", "sub01", "EP02_01f")) == one
    # The name alone is ambiguous, and all are told, sorted.
    assert _below(found, found.folders("EP02_01f")) == [
        f"outer/outer/{subject}/EP02_01f" for subject in ("sub01", "sub02", "xsub01")
    ]
    assert found.folders("sub1", "EP02_01f") == []
    assert found.folders("sub01", "EP02") == []
    assert found.folders("EP02_01f", "sub01") == []


def test_letter_case_of_the_copy_does_not_matter(tmp_path):
    _folders(tmp_path, "spNo.1/J", "spNO.2/j")
    found = tree.Tree(tmp_path)
    assert _below(found, found.folders("spNO.1", "j")) == ["spNo.1/J"]
    assert _below(found, found.folders("spno.2", "J")) == ["spNO.2/j"]


def test_preferred_words(tmp_path):
    _folders(tmp_path, "RAW/s1/a", "My_Cropped/s1/a", "full/s1/a")
    found = tree.Tree(tmp_path)
    assert len(found.folders("s1", "a")) == 3
    assert _below(found, found.folders("s1", "a", prefer=("cropped", "raw"))) == ["My_Cropped/s1/a"]
    assert _below(found, found.folders("s1", "a", prefer=("aligned", "raw"))) == ["RAW/s1/a"]
    assert len(found.folders("s1", "a", prefer=("aligned",))) == 3


def test_a_word_above_the_root_is_no_preference(tmp_path):
    root = tmp_path / "cropped"
    _folders(root, "x/s1/a", "raw/s1/a")
    found = tree.Tree(root)
    assert _below(found, found.folders("s1", "a", prefer=("cropped", "raw"))) == ["raw/s1/a"]


def test_names_match_as_a_whole(tmp_path):
    _folders(tmp_path, "s1", "deep/S02", "s1x", "xs1", "s")
    found = tree.Tree(tmp_path)
    assert _below(found, found.names(r"s\d+")) == ["deep/S02", "s1"]


def test_what_macos_and_office_leave_behind_is_ignored(tmp_path):
    _folders(tmp_path, "a/sub01", "__MACOSX/a/sub01", "a/__MACOSX/sub01")
    for name in ("codes.XLSX", "~$codes.xlsx", "._codes.xlsx", "xcodes.xls", "codes.xlsx.bak"):
        (tmp_path / "a" / name).write_text("")
    (tmp_path / "__MACOSX/codes.xlsx").write_text("")
    (tmp_path / "a/sub01/codes.jpg").write_text("")
    found = tree.Tree(tmp_path)
    assert _below(found, found.folders("sub01")) == ["a/sub01"]
    assert found.folders("__MACOSX") == []
    assert _below(found, found.files(r"codes\.xlsx?")) == ["a/codes.XLSX"]
    assert found.files(r"codes\.jpg") == []  # Pictures are asked for by folder.


def test_an_empty_or_missing_root(tmp_path):
    assert tree.Tree(tmp_path).names(".*") == []
    assert tree.Tree(tmp_path / "nowhere").files(".*") == []


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    _folders(folder, "sub01/EP01")
    (folder / "codes.xlsx").write_text("")
    (folder / "img1.jpg").write_text("")
    root = tmp_path / "root"
    root.mkdir()
    return root, folder


def test_folders_that_lead_out_of_the_tree_are_never_followed(outside):
    root, folder = outside
    _folders(root, "sub02")
    (root / "sub01").symlink_to(folder / "sub01")
    (root / "sub02" / "EP01").symlink_to("../../outside/sub01/EP01")
    (root / "up").symlink_to("..")
    # Its name begins like the root's.
    twin = root.with_name("root2")
    twin.mkdir()
    (root / "twin").symlink_to(twin)
    found = tree.Tree(root)
    assert found.folders("sub01") == []
    assert found.folders("EP01") == []
    assert found.names("up|twin|outside") == []
    links = [root / "sub01", root / "sub02" / "EP01", root / "twin", root / "up"]
    assert sorted(found.outside) == links


def test_a_sheet_that_leads_out_of_the_tree_is_never_followed(outside):
    root, folder = outside
    (root / "codes.xlsx").symlink_to(folder / "codes.xlsx")
    assert tree.Tree(root).files(".*") == []
    (root / "real.xlsx").write_text("")
    (root / "link.xlsx").symlink_to("real.xlsx")
    assert [p.name for p in tree.Tree(root).files(".*")] == ["link.xlsx", "real.xlsx"]


def test_pictures_that_lead_out_of_their_folder_are_refused(outside):
    root, folder = outside
    (root / "img2.jpg").write_text("")
    (root / "img3.jpg").symlink_to("img2.jpg")
    assert list(tree.frames(root)) == [2, 3]
    clip = root / "clip"
    clip.mkdir()
    (clip / "img1.jpg").symlink_to(folder / "img1.jpg")
    with pytest.raises(ValueError, match=r"img1\.jpg is a link that leads out"):
        tree.frames(clip)


def test_links_within_the_tree_are_found(tmp_path):
    _folders(tmp_path, "real/EP01")
    (tmp_path / "sub01").symlink_to("real")
    (tmp_path / "loop").symlink_to(".")
    found = tree.Tree(tmp_path)
    assert _below(found, found.folders("sub01")) == ["sub01"]
    assert _below(found, found.folders("EP01")) == ["real/EP01", "sub01/EP01"]
    assert found.outside == []


def test_clips_below_a_link_within_the_tree_are_found(tmp_path):
    _folders(tmp_path, "real/EP01")
    (tmp_path / "sub01").symlink_to("real")
    found = tree.Tree(tmp_path)
    assert _below(found, found.folders("sub01", "EP01")) == ["sub01/EP01"]


def test_the_root_itself_may_be_a_link(tmp_path):
    _folders(tmp_path, "disk/sub01/EP01")
    (tmp_path / "root").symlink_to("disk")
    found = tree.Tree(tmp_path / "root")
    assert _below(found, found.folders("sub01", "EP01")) == ["sub01/EP01"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *[("img1.jpg", 1), ("reg_img46.jpg", 46), ("006_05562.jpg", 5562), ("00000.bmp", 0)],
        *[("reg_image559740.bmp", 559740), ("image034208.jpg", 34208), ("175.JPG", 175)],
        *[("Frame_000001823.jpg", 1823), ("reg_00007.bmp", 7), ("S01-07-001.jpg", 1)],
        *[("image12345678.bmp", 12345678), ("img46 - Copy.jpg", 46), ("a.b.3.png", 3)],
        *[("frame.jpg", None), (".jpg", None), ("img-5.jpg", 5), ("jpg", None), ("mp4.jpg", 4)],
    ],
)
def test_the_number_in_a_frame_s_name(name, number):
    assert tree.frame_number(name) == number


def test_frames_are_in_order_of_their_numbers(tmp_path):
    for number in (9, 10, 100, 99, 1, 11):
        (tmp_path / f"img{number}.jpg").write_text("")
    assert list(tree.frames(tmp_path)) == [1, 9, 10, 11, 99, 100]
    assert tree.frames(tmp_path)[100] == tmp_path / "img100.jpg"


def test_only_pictures_with_a_number_are_frames(tmp_path):
    for name in (
        *("img1.jpg", "._img1.jpg", ".DS_Store", "Thumbs.db", "notes2.txt", "film3.mp4"),
        *("cover.jpg", "img4.JPEG", "img5.Tiff", "img6.bmp", "img7.png", "img8.jpg.part"),
    ):
        (tmp_path / name).write_text("")
    assert list(tree.frames(tmp_path)) == [1, 4, 5, 6, 7]


@pytest.mark.parametrize("twin", ["img046.jpg", "img46.png", "img46 - Copy.jpg", "reg_img46.jpg"])
def test_two_pictures_with_one_number(tmp_path, twin):
    for name in ("img46.jpg", twin):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="have the same number") as caught:
        tree.frames(tmp_path)
    assert "img46.jpg" in str(caught.value)
    assert twin in str(caught.value)


def test_frames_that_come_and_go_are_noticed(tmp_path):
    (tmp_path / "img1.jpg").write_text("")
    assert list(tree.frames(tmp_path)) == [1]
    # A user mends the copy and builds again, from the same notebook.
    (tmp_path / "img2.jpg").write_text("")
    assert list(tree.frames(tmp_path)) == [1, 2]
