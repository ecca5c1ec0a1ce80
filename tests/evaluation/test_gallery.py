import io

import numpy as np
import pytest
from fakes.html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.image import imread

from htnet_jax.evaluation import colours, gallery
from htnet_jax.evaluation.runs import Pictures, Run

# The probabilities of the final epoch of the six clips; truth 0 1 2 0 1 2, subjects a a a b b b.
PROBABILITIES = [
    [0.06, 0.90, 0.04],
    [0.80, 0.15, 0.05],
    [0.95, 0.03, 0.02],
    [0.99, 0.005, 0.005],
    [0.10, 0.30, 0.60],
    [0.10, 0.70, 0.20],
]


def final_only(probabilities):
    """(..., M, C) probabilities -> (S, E, M, C) logits whose earlier epochs are all right."""
    final = np.log(np.asarray(probabilities, np.float32).reshape(-1, 1, 6, 3))
    before = np.tile(np.eye(3, dtype=np.float32), (2, 1))
    return np.concatenate([np.broadcast_to(before, (len(final), 2, 6, 3)), final], axis=1)


@pytest.fixture
def mistaken(make_run):
    return make_run(logits=final_only(PROBABILITIES))


def test_the_most_confident_mistakes(mistaken):
    found = gallery.mistakes(mistaken)
    # a2 (0.80) is the third of subject a; b1 is right.
    assert [(one.clip, one.truth, one.predicted) for one in found] == [
        ("a3", 2, 0),
        ("a1", 0, 1),
        ("b3", 2, 1),
        ("b2", 1, 2),
    ]
    assert [one.probability for one in found] == pytest.approx([0.95, 0.90, 0.70, 0.60])
    assert [one.of_truth for one in found] == pytest.approx([0.02, 0.06, 0.20, 0.30])
    assert [(one.source, one.subject) for one in found[1:3]] == [("smic", "a"), ("samm", "b")]
    assert [one.clip for one in gallery.mistakes(mistaken, most=2)] == ["a3", "a1"]
    several = gallery.mistakes(mistaken, most_a_subject=3)
    assert [one.clip for one in several] == ["a3", "a1", "a2", "b3", "b2"]


def test_probabilities_are_means_over_seeds(make_run):
    second = [row[:] for row in PROBABILITIES]
    second[2] = [0.01, 0.01, 0.98]
    run = make_run(
        logits=final_only([PROBABILITIES, second]),
        seeds=[0, 1],
        train_loss=np.ones((2, 2, 3), np.float32),
    )
    found = gallery.mistakes(run)
    # a3: means 0.48, 0.02, 0.50: right, though the first seed is wrong.
    assert [one.clip for one in found] == ["a1", "a2", "b3", "b2"]


def test_people_of_one_name_in_two_sources_are_two(make_run):
    run = make_run(
        logits=final_only(PROBABILITIES),
        subjects=["x"] * 6,
        folds=["smic/x", "samm/x"],
        protocol_folds=["smic/x", "samm/x"],
    )
    assert [one.clip for one in gallery.mistakes(run)] == ["a3", "a1", "b3", "b2"]


@pytest.mark.parametrize(
    ("direction", "rgb"),
    [
        ((1, 0), (255, 0, 0)),  # right: hue 0
        ((0, 1), (128, 255, 0)),  # down: 90 degrees
        ((-1, 0), (0, 255, 255)),  # left: 180
        ((0, -1), (128, 0, 255)),  # up: 270
        ((0, 0), (0, 0, 0)),
    ],
)
def test_colours_of_known_directions(direction, rgb):
    field = np.zeros((2, 2, 2), np.float32)
    field[0, 1] = direction
    picture = colours.flow(field, largest=1.0)
    assert picture[0, 1].tolist() == list(rgb)
    assert picture[0, 0].tolist() == [0, 0, 0]


def test_brightness_is_the_magnitude():
    field = np.zeros((1, 3, 2))
    field[0, :, 0] = [1.0, 2.0, 4.0]
    assert colours.flow(field)[0, :, 0].tolist() == [64, 128, 255]
    assert colours.flow(field, largest=2.0)[0, :, 0].tolist() == [128, 255, 255]
    with pytest.raises(ValueError, match="must be"):
        colours.flow(np.zeros((3, 3, 3)))


def test_the_level_is_the_median_of_each_channel():
    field = np.zeros((1, 3, 2))
    field[0, :, 0] = [7, 7, 9]
    field[0, :, 1] = [1, 5, 6]
    assert colours.without_level(field)[0].tolist() == [[0, -4], [0, 0], [2, 1]]


def test_colours_of_a_mosaic():
    channels = np.zeros((1, 3, 4))
    channels[0, :, 0] = [-1, 0, 1]
    channels[0, :, 1] = [4, 2, 0]
    channels[0, :, 2] = 5
    channels[0, :, 3] = [1, 2, 3]
    assert colours.mosaic(channels)[0].tolist() == [[0, 255, 0], [128, 128, 0], [255, 0, 0]]
    assert colours.mosaic(channels[..., :2])[0, 0].tolist() == [0, 255, 0]
    assert colours.mosaic(channels[..., :1])[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    with pytest.raises(ValueError, match="must be"):
        colours.mosaic(np.zeros((0, 3, 3)))


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_each_channel_of_a_mosaic_fills_its_range(channels):
    picture = colours.mosaic(channels)
    assert picture.shape == (*channels.shape[:2], 3)
    for index in range(min(3, channels.shape[-1])):
        constant = np.ptp(channels[..., index].astype(np.float64)) == 0
        assert (picture[..., index].min(), picture[..., index].max()) == (0, 0 if constant else 255)


def test_the_wheel_shows_directions_and_is_transparent_outside():
    wheel = colours.wheel(101)
    assert wheel[50, 100].tolist() == [255, 0, 0, 255]
    assert wheel[100, 50].tolist() == [128, 255, 0, 255]
    assert wheel[50, 0].tolist() == [0, 255, 255, 255]
    assert wheel[0, 50].tolist() == [128, 0, 255, 255]
    assert wheel[0, 0, 3] == 0


@pytest.fixture
def pictures():
    """Of four clips, 4 x 4: a1 moves right in its upper left pixel, the others do not move."""
    flow = np.zeros((4, 4, 4, 3), np.float32)
    flow[0, 0, 0, 0] = 2
    mosaic = np.zeros((4, 4, 4, 3), np.float32)
    mosaic[0, 3, 3] = [1, 0, 2]
    return Pictures(np.array(["a1", "a3", "b2", "b3"]), flow, mosaic, centred=True)


def test_the_picture_of_a_clip(pictures):
    picture = imread(io.BytesIO(gallery.draw(pictures, 0)), format="png")
    # 4 pixels of 56 each, a gap of 16, 4 of 56.
    assert picture.shape == (224, 464, 4)
    red, black, magenta = [1, 0, 0, 1], [0, 0, 0, 1], [1, 0, 1, 1]
    assert picture[28, 28].tolist() == red
    assert picture[55, 55].tolist() == red
    assert picture[56, 56].tolist() == black
    assert picture[100, 232, 3] == 0
    assert picture[200, 440].tolist() == magenta
    assert picture[28, 268].tolist() == black


def test_a_single_pixel_that_moves_is_seen():
    flow = np.zeros((1, 28, 28, 3), np.float32)
    flow[0, 3, 5, 1] = 0.01
    shown = Pictures(np.array(["a1"]), flow, None, centred=True)
    picture = imread(io.BytesIO(gallery.draw(shown, 0)), format="png")
    assert picture[3 * 8 + 4, 5 * 8 + 4, :3] == pytest.approx([128 / 255, 1, 0])
    assert picture[..., :3].sum(axis=-1).astype(bool).sum() == 64


def test_a_level_is_taken_away_only_where_zero_is_unknown(pictures):
    lifted = pictures.flow + np.float32([100, 50, 0])
    for centred, expected in ((False, [1, 0, 0]), (True, None)):
        shown = Pictures(pictures.clips, lifted, None, centred)
        picture = imread(io.BytesIO(gallery.draw(shown, 0)), format="png")
        assert picture.shape == (224, 224, 4)
        if expected:
            assert picture[28, 28, :3].tolist() == expected
            assert picture[100, 100, :3].tolist() == [0, 0, 0]
        else:
            assert picture[100, 100, :3].max() > 0.9


def test_cards_of_a_run_with_pictures(mistaken, pictures):
    page = Page(gallery.section(Run.of("net", mistaken, pictures=pictures)))
    alts = [image["alt"] for image in page.images]
    assert alts == [
        "Colour wheel: right red, down yellow-green, left cyan, up violet.",
        *(f"Flow (left) and mosaic (right) of clip {clip}." for clip in ("a3", "a1", "b3", "b2")),
    ]
    assert page.picture("clip a1")[28, 28].tolist() == [1, 0, 0, 1]
    assert "negative 95%, but it is surprise (2%) SMIC, subject a a3" in page.text
    assert "final (last epoch) of net" in page.text
    assert "median" not in page.text
    assert "table" not in page.tags


def test_clips_without_a_picture_are_listed(mistaken, pictures):
    only = Pictures(pictures.clips[:1], pictures.flow[:1], None, centred=False)
    page = Page(gallery.section(Run.of("net", mistaken, pictures=only)))
    assert [image["alt"] for image in page.images][1:] == ["Flow of clip a1."]
    assert "each channel's median is taken for it" in page.text
    assert "a3 SMIC a surprise negative (95%)" in page.text


def test_a_run_without_pictures_says_how_to_get_them(mistaken):
    page = Page(gallery.section(Run.of("net", mistaken)))
    assert page.images == []
    assert "--data_dir" in page.text
    assert "a3 SMIC a surprise negative (95%)" in page.text


def test_a_run_without_mistakes(make_run):
    right = np.tile(np.eye(3, dtype=np.float32), (2, 1))
    run = make_run(logits=np.broadcast_to(right, (1, 3, 6, 3)))
    assert "There is none" in Page(gallery.section(Run.of("net", run))).text
