import numpy as np
import pytest
from fakes.report_page import show
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from htnet_jax.evaluation import gallery
from htnet_jax.evaluation.summary import Images, Run

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
        ("a3", "surprise", "negative"),
        ("a1", "negative", "positive"),
        ("b3", "surprise", "positive"),
        ("b2", "positive", "surprise"),
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


def test_subjects_of_one_name_in_two_sources_are_two(make_run):
    run = make_run(
        logits=final_only(PROBABILITIES),
        subjects=["x"] * 6,
        folds=["smic/x", "samm/x"],
        protocol_folds=["smic/x", "samm/x"],
    )
    assert [one.clip for one in gallery.mistakes(run)] == ["a3", "a1", "b3", "b2"]


def test_colours_of_a_mosaic():
    channels = np.zeros((1, 3, 4))
    channels[0, :, 0] = [-1, 0, 1]
    channels[0, :, 1] = [4, 2, 0]
    channels[0, :, 2] = 5
    channels[0, :, 3] = [1, 2, 3]
    assert gallery.mosaic_colours(channels)[0].tolist() == [[0, 255, 0], [128, 128, 0], [255, 0, 0]]
    assert gallery.mosaic_colours(channels[..., :2])[0, 0].tolist() == [0, 255, 0]
    assert gallery.mosaic_colours(channels[..., :1])[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    with pytest.raises(ValueError, match="must be"):
        gallery.mosaic_colours(np.zeros((0, 3, 3)))


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_each_channel_of_a_mosaic_fills_its_range(channels):
    image = gallery.mosaic_colours(channels)
    assert image.shape == (*channels.shape[:2], 3)
    for index in range(min(3, channels.shape[-1])):
        constant = np.ptp(channels[..., index].astype(np.float64)) == 0
        assert (image[..., index].min(), image[..., index].max()) == (0, 0 if constant else 255)


@pytest.fixture
def images():
    """Of four clips, 4 x 4: a1 moves right in its upper left pixel, the others do not move."""
    flow = np.zeros((4, 4, 4, 3), np.float32)
    flow[0, 0, 0, 0] = 2
    mosaic = np.zeros((4, 4, 4, 3), np.float32)
    mosaic[0, 3, 3] = [1, 0, 2]
    return Images(np.array(["a1", "a3", "b2", "b3"]), flow, mosaic, centred=True)


def test_the_image_of_a_clip(images):
    image = gallery.draw(images, 0)
    # 4 pixels of 56 each, a gap of 16, 4 of 56.
    assert image.shape == (224, 464, 4)
    red, black, magenta = [255, 0, 0, 255], [0, 0, 0, 255], [255, 0, 255, 255]
    assert image[28, 28].tolist() == red
    assert image[55, 55].tolist() == red
    assert image[56, 56].tolist() == black
    assert image[100, 232, 3] == 0
    assert image[200, 440].tolist() == magenta
    assert image[28, 268].tolist() == black


def test_a_single_pixel_that_moves_is_seen():
    flow = np.zeros((1, 28, 28, 3), np.float32)
    flow[0, 3, 5, 1] = 0.01
    shown = Images(np.array(["a1"]), flow, None, centred=True)
    image = gallery.draw(shown, 0)
    assert image[3 * 8 + 4, 5 * 8 + 4, :3] == pytest.approx([128, 255, 0])
    assert image[..., :3].sum(axis=-1).astype(bool).sum() == 64


def test_a_level_is_taken_away_only_where_zero_is_unknown(images):
    lifted = images.flow + np.float32([100, 50, 0])
    for centred, expected in ((False, [255, 0, 0]), (True, None)):
        shown = Images(images.clips, lifted, None, centred)
        image = gallery.draw(shown, 0)
        assert image.shape == (224, 224, 4)
        if expected:
            assert image[28, 28, :3].tolist() == expected
            assert image[100, 100, :3].tolist() == [0, 0, 0]
        else:
            assert image[100, 100, :3].max() > 230


WHEEL = "Colour wheel: right red, down yellow-green, left cyan, up violet."


def shown_mistakes(run):
    """(text, the page, alternative texts) of the gallery on the page of a run."""
    found = show([run])
    text = found.text[found.text.index("The most confident mistakes") :]
    alts = [image["alt"] for image in found.images]
    # The plot of the calibration is the last one above.
    own = alts[alts.index("calibration") + 1 :]
    return text[: text.index("How to read this")], found, own


def test_cards_of_a_run_with_images(mistaken, images):
    text, page, alts = shown_mistakes(Run.of("net", mistaken, images=images))
    assert alts == [
        WHEEL,
        *(f"Flow (left) and mosaic (right) of clip {clip}." for clip in ("a3", "a1", "b3", "b2")),
    ]
    assert page.picture("clip a1")[28, 28].tolist() == [1, 0, 0, 1]
    assert "negative 95%, but it is surprise (2%) SMIC, subject a a3" in text.replace(" ,", ",")
    assert "final (last epoch) of net" in text
    assert "median" not in text
    assert "truth" not in text


def test_clips_without_an_image_are_listed(mistaken, images):
    only = Images(images.clips[:1], images.flow[:1], None, centred=False)
    text, _, alts = shown_mistakes(Run.of("net", mistaken, images=only))
    assert alts == [WHEEL, "Flow of clip a1."]
    assert "each channel's median is taken for it" in text
    assert "a3 SMIC a surprise negative (95%)" in text


def test_a_run_without_images_says_how_to_get_them(mistaken):
    text, _, alts = shown_mistakes(Run.of("net", mistaken))
    assert alts == []
    assert "--data_dir" in text
    assert "a3 SMIC a surprise negative (95%)" in text


def test_a_run_without_mistakes(make_run):
    right = np.tile(np.eye(3, dtype=np.float32), (2, 1))
    run = make_run(logits=np.broadcast_to(right, (1, 3, 6, 3)))
    assert "There is none" in shown_mistakes(Run.of("net", run))[0]
