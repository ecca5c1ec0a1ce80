import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fakes.html_page import Page

from htnet_jax import pages
from htnet_jax.datasets import frames, preview
from htnet_jax.datasets.process import Inspection, Job, Steps
from htnet_jax.datasets.recipe import Recipe
from htnet_jax.datasets.survey import RawClip
from htnet_jax.errors import UserError
from htnet_jax.motion import flow, regions

LANDMARKS = regions.TEMPLATE_POINTS
IMAGES_PER_CLIP = 8


@pytest.fixture
def step(faces):
    def make(subject=0, label=1, name="EP01_01", tensor=None, emotion="happiness"):
        rendered = faces(subject, label)
        onset, apex = rendered.frames[rendered.onset], rendered.frames[rendered.apex]
        clip = RawClip("casme2", f"sub{subject + 1:02d}", name, emotion, Path(), 46, 59, 86)
        if tensor is None:
            tensor = flow.flow_tensor(onset, apex, method="farneback")
        landmarks = (rendered.landmarks[rendered.onset] + 0.5) * 28 / 128 - 0.5
        inspection = Inspection((), 66, "midpoint", found="upsampled")
        steps = Steps(onset, apex, tensor, landmarks.astype(np.float32))
        return Job(clip, Recipe()), inspection, steps

    return make


def written(tmp_path, *args, **kwargs):
    preview.write_preview(tmp_path / "preview.html", *args, **kwargs)
    assert [path.name for path in tmp_path.iterdir()] == ["preview.html"]
    return Page((tmp_path / "preview.html").read_text(encoding="utf-8"))


def image(page, alt):
    """The one image whose alternative text holds `alt`: uint8, gray or RGB as it is stored."""
    pixels = np.rint(page.picture(alt) * 255).astype(np.uint8)
    return pixels[..., :3] if pixels.ndim == 3 else pixels


def test_page_is_self_contained_and_says_what_was_done(step, tmp_path):
    shown = [step(0, 1), step(1, 2, "EP02_01", emotion="surprise")]
    page = written(tmp_path, "CASME II", iter(shown), ["2 of 247 clips."])
    assert len(page.images) == 1 + 2 * IMAGES_PER_CLIP
    for image in page.images:
        assert image["alt"]
        assert image["src"].startswith("data:image/png;base64,")
    assert len({image["alt"] for image in page.images}) == len(page.images)
    assert all(reference.startswith("data:") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "preview.html").read_text()
    assert "http" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    for words in (
        "CASME II",
        "2 of 247 clips.",
        "casme2/sub01/EP01_01",
        "emotion happiness; onset 46, apex 66 (by the midpoint rule), offset 86; points: upsampled",
        "emotion surprise",
    ):
        assert words in page.text
    assert page.text.index("sub01/EP01_01") < page.text.index("sub02/EP02_01")


def test_images_on_the_page(step, tmp_path):
    shown = step()
    steps = shown[2]
    page = written(tmp_path, "t", [shown])
    # 128 px are enlarged 3 times, 28 px 12 times.
    apex = image(page, "apex, frame 66")
    np.testing.assert_array_equal(apex[::3, ::3], steps.apex)
    np.testing.assert_array_equal(apex[2::3, 1::3], steps.apex)
    colours = image(page, "flow; brightest")
    np.testing.assert_array_equal(colours[::12, ::12], pages.flow_colours(steps.tensor[..., :2]))
    strain = image(page, "optical strain")
    np.testing.assert_array_equal(strain[::12, ::12], preview.strain_colours(steps.tensor[..., 2]))
    assert f"largest: {steps.tensor[..., 2].max():.3g}" in page.text
    fastest = np.linalg.norm(steps.tensor[..., :2], axis=-1).max()
    assert f"brightest: {fastest:.3g} px of 28" in page.text
    scaled = np.round(flow.minmax_255(steps.tensor))
    for layout in regions.LAYOUTS:
        found = image(page, f": {layout} mosaic")
        mosaic = regions.mosaic(scaled, steps.landmarks, layout)
        np.testing.assert_array_equal(found[6::12, 6::12], mosaic)


def test_face_frames_on_the_page(step, tmp_path):
    job, inspection, steps = step()
    colours = ((250, 0, 0), (0, 250, 0), (0, 0, 250), (200, 200, 0), (0, 200, 200))
    numbers = (46, 47, 65, 66, 67)
    filled = {n: np.full((224, 224, 3), c, np.uint8) for n, c in zip(numbers, colours, strict=True)}
    groups = ({n: filled[n] for n in some} for some in (numbers[:2], numbers[2:]))
    steps = dataclasses.replace(steps, frames=frames.clip_frames(46, 66, *groups))
    page = written(tmp_path, "t", [(job, inspection, steps)])
    assert page.tags.count("img") == 1 + IMAGES_PER_CLIP + 2
    tile = preview.TILE
    onset = image(page, "face frames around the onset: 46, 47")
    apex = image(page, "face frames around the apex: 65, 66, 67")
    assert onset.shape == (tile, 2 * tile, 3)
    assert apex.shape == (2 * tile, 2 * tile, 3)
    middles = [
        (sheet, row, column)
        for sheet, row, column in (
            (onset, 0, 0),
            (onset, 0, 1),
            (apex, 0, 0),
            (apex, 0, 1),
            (apex, 1, 0),
            (apex, 1, 1),
        )
    ]
    for (sheet, row, column), colour in zip(middles, (*colours, (0, 0, 0)), strict=True):
        y, x = row * tile, column * tile
        assert tuple(sheet[y + tile // 2, x + tile // 2]) == colour
        # The exact ones, 46 and 66, have a frame.
        has_frame = colour in (colours[0], colours[3])
        assert (tuple(sheet[y, x]) != colour) == has_frame


def test_even_face_frames_are_one_image(step, tmp_path):
    job, inspection, steps = step()
    job = dataclasses.replace(job, recipe=Recipe(frames="4"))
    face = np.zeros((224, 224, 3), np.uint8)
    groups = {46: face}, dict.fromkeys((59, 66, 72, 86), face)
    steps = dataclasses.replace(steps, frames=frames.clip_frames(46, 66, *groups, times={}))
    page = written(tmp_path, "t", [(job, inspection, steps)])
    assert page.tags.count("img") == 1 + IMAGES_PER_CLIP + 1
    sheet = image(page, "face frames evenly, and the apex: 46, 59, 66, 72, 86")
    # The third of five, the apex, has a frame.
    tops = [sheet[y, x].any() for y in (0, preview.TILE) for x in range(0, 480, preview.TILE)]
    assert tops == [False, False, True, False, False, False]


def test_text_from_outside_is_escaped(step, tmp_path):
    nasty = "<script>alert('\"&x')</script>"
    shown = step(name=nasty, emotion=nasty)
    page = written(tmp_path, nasty, [shown], [nasty])
    assert "script" not in page.tags
    assert page.text.count(nasty) >= 4
    assert nasty in page.images[-1]["alt"]


def test_no_clips(tmp_path):
    page = written(tmp_path, "Nothing", [])
    assert "No clips." in page.text
    assert len(page.images) == 1


def test_no_motion(step, tmp_path):
    shown = step(tensor=np.zeros((28, 28, 3), np.float32))
    page = written(tmp_path, "t", [shown])
    assert not image(page, "flow; brightest").any()
    np.testing.assert_array_equal(image(page, "no flow")[::3, ::3, 0], shown[2].onset)
    assert (image(page, "optical strain") == preview.strain_colours(np.zeros((1, 1)))).all()
    assert "largest: 0" in page.text


def test_a_file_in_the_way(step, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot be written"):
        preview.write_preview(tmp_path / "file" / "preview.html", "t", [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        preview.write_preview(tmp_path / "folder", "t", [step()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_an_old_page_stays_when_a_clip_fails(tmp_path):
    (tmp_path / "preview.html").write_text("old")

    def broken():
        raise UserError("unreadable")
        yield

    with pytest.raises(UserError, match="unreadable"):
        preview.write_preview(tmp_path / "preview.html", "t", broken())
    assert (tmp_path / "preview.html").read_text() == "old"


def test_strain_grows_brighter():
    colours = preview.strain_colours(np.array([[0.0, 0.1, 0.2, 0.4]], np.float32))
    brightness = colours.astype(int).sum(axis=-1)[0]
    assert brightness[0] < 10
    assert (np.diff(brightness) > 0).all()
    np.testing.assert_array_equal(
        colours, preview.strain_colours(np.array([[0.0, 10, 20, 40]], np.float32))
    )


def test_hardly_any_motion_is_drawn_as_well():
    face, tiny = np.zeros((112, 112), np.uint8), np.full((28, 28, 2), 1e-40, np.float32)
    assert preview.strain_colours(tiny[..., 0])[0, 0].sum() > 300
    assert preview.draw_arrows(face, tiny)[0].any()


@pytest.mark.parametrize("layout", regions.LAYOUTS)
def test_points_and_crops_are_drawn_where_they_are(layout):
    face = np.full((112, 112), 90, np.uint8)
    image = preview.draw_points(face, LANDMARKS, 28, layout)
    assert image.shape == (336, 336, 3)
    for (x, y), colour in zip(LANDMARKS, preview.POINT_COLOURS, strict=True):
        # A pixel of the tensor is 12 wide.
        assert tuple(image[round(y * 12 + 5.5), round(x * 12 + 5.5)]) == colour
    # The left eye's crop starts 7 px before its point; the release reads (x, y) as (row, column).
    row, column = (9, 11) if layout == "release" else (11, 9)
    top, left = (row - 7) * 12, (column - 7) * 12
    colour = preview.POINT_COLOURS[0]
    assert tuple(image[top, left + 20]) == colour
    assert tuple(image[top + 20, left]) == colour
    assert tuple(image[top + 14 * 12 - 1, left + 20]) == colour
    # Where nothing is drawn the face stays.
    assert (image[0] == 90).all()
    assert (image[:, 0] == 90).all()


def test_crops_of_a_wide_image():
    landmarks = np.array([[7, 7], [21, 7], [14, 14], [7, 21], [21, 21]], np.float32)
    image = preview.draw_points(np.zeros((480, 640), np.uint8), landmarks, 28, "upright")
    assert image.shape == (480, 640, 3)
    right_eye, left_mouth = preview.POINT_COLOURS[1], preview.POINT_COLOURS[3]
    assert tuple(image[100, 639]) == right_eye
    assert tuple(image[479, 100]) == left_mouth
    assert tuple(image[round(7.5 / 28 * 480 - 0.5), round(21.5 / 28 * 640 - 0.5)]) == right_eye


def test_points_outside_the_image_are_left_out():
    landmarks = LANDMARKS.copy()
    landmarks[2] = (-40, 300)
    image = preview.draw_points(np.zeros((112, 112), np.uint8), landmarks, 28, "upright")
    assert not (image == preview.POINT_COLOURS[2]).all(axis=-1).any()


@pytest.mark.parametrize("vector", [(1, 0), (0, -1), (-0.5, 0)])
def test_arrows_point_the_way_of_the_flow(vector):
    vectors = np.zeros((28, 28, 2), np.float32)
    vectors[12:14, 12:14] = vector
    image, times = preview.draw_arrows(np.zeros((112, 112), np.uint8), vectors)
    # One of 14 x 14 cells moves; its arrow is one and a half cells of 2 px long.
    assert times == pytest.approx(3 / np.abs(vector).max())
    rows, columns = np.nonzero(image.any(axis=-1))
    tail = 13 * 12
    length = 36
    head = np.sign(vector) * length
    low, high = np.minimum(head, 0) + tail, np.maximum(head, 0) + tail
    along = int(np.argmax(np.abs(vector)))
    spans = [(columns.min(), columns.max()), (rows.min(), rows.max())]
    np.testing.assert_allclose(spans[along], (low[along], high[along]), atol=3)
    # The head's barbs are on both sides, and only at the head.
    np.testing.assert_allclose(np.mean(spans[1 - along]), tail, atol=2)
    positions = np.stack([columns, rows], axis=-1)
    widest = positions[np.abs(positions[:, 1 - along] - tail).argmax(), along]
    assert abs(widest - (tail + head[along])) < abs(widest - tail)


def test_large_images_are_reduced():
    vectors = np.zeros((28, 28, 2), np.float32)
    image, times = preview.draw_arrows(np.full((1080, 1920), 7, np.uint8), vectors)
    assert image.shape == (360, 640, 3)
    assert times == 0
    assert (image == 7).all()


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (20, 3, [0, 1, 2]),
        (3, 3, [0, 1, 2]),
        (1, 9, [4]),
        (2, 10, [2, 7]),
        (4, 100, [12, 37, 62, 87]),
        (0, 5, []),
        (5, 0, []),
    ],
)
def test_sample(count, total, expected):
    assert preview.sample(count, total) == expected


@pytest.mark.parametrize("total", [7, 20, 23, 442])
def test_sample_is_spread_evenly(total):
    chosen = preview.sample(7, total)
    steps = np.diff(chosen)
    assert len(chosen) == 7
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1
    assert set(chosen) <= set(range(total))
