"""From a config and a data set to what a network is fed, exact and varied; and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from htnet_jax import features
from htnet_jax.config import default_config
from htnet_jax.datasets import loading
from htnet_jax.datasets.frames import FrameArrays
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.features import augment
from htnet_jax.features.features import Feed, reach
from htnet_jax.models import HTNet, MMNet
from htnet_jax.training import settings

SIDE = 16
INPUTS = "mosaic, flow, onset, apex, rgb_clip, flow_clip"
# Frame numbers around the onset and around the apex of each clip, which says `SPANS`.
ONSETS = [[10, 11, 12], [100], [7, 9, 10]]
APEXES = [[48, 49, 50, 51, 52, 53], [119, 120, 121], [45, 47, 48]]
SPANS = [(10, 50, 110), (100, 120, 140), (7, 47, 67)]

# A shade of 0..255 more is 0.017; the division by 255 is rounded otherwise in compiled code.
ROUNDING = 1e-5
assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=ROUNDING)


def make_frames(share=0.05):
    """With gaps: of the third clip, frames 8 and 46 are missing."""
    numbers, onset, apex = [], [], []
    for around_onset, around_apex, (on, peak, _) in zip(ONSETS, APEXES, SPANS, strict=True):
        start, middle = len(numbers), len(numbers) + len(around_onset)
        end = middle + len(around_apex)
        onset.append((start, start + around_onset.index(on), middle))
        apex.append((middle, middle + around_apex.index(peak), end))
        numbers += [*around_onset, *around_apex]
    rng = np.random.default_rng(0)
    return FrameArrays(
        pixels=rng.integers(0, 256, (len(numbers), SIDE, SIDE, 3), dtype=np.uint8),
        numbers=np.array(numbers, np.int32),
        onset=np.array(onset, np.int32),
        apex=np.array(apex, np.int32),
        span=np.array(SPANS, np.int32),
        share=share,
    )


def make_arrays(frames=None):
    rng = np.random.default_rng(1)
    count = len(SPANS)
    return ClipArrays(
        flow=rng.normal(size=(count, 28, 28, 3)).astype(np.float32),
        landmarks=rng.uniform(4, 24, (count, 5, 2)).astype(np.float32),
        labels=np.array([0, 1, 2], np.int32),
        subjects=np.array(["s1", "s2", "s3"]),
        sources=np.array(["x"] * count),
        clips=np.array([f"x/s{i}/c" for i in range(count)]),
        emotions=np.array(["?"] * count),
        class_names=("negative", "positive", "surprise"),
        fingerprint="0" * 64,
        name="invented/frames/1.0.0",
        frames=frames,
    )


@pytest.fixture
def arrays():
    return make_arrays(make_frames())


def make_config(names, dataset=(), **varied):
    config = default_config()
    config.inputs = names
    config.dataset.update(dict(dataset))
    config.augmentation.update(varied)
    return config


def drawn(feed, name):
    """The frame numbers that each clip draws from, and the exact one."""
    numbers = make_frames().numbers
    first, count = feed.arrays[f"{name}/first"], feed.arrays[f"{name}/count"]
    exact = numbers[feed.arrays[f"{name}/exact"]].tolist()
    ranges = [numbers[f : f + n].tolist() for f, n in zip(first, count, strict=True)]
    return exact, ranges


# --- what is fed ----------------------------------------------------------------------------------


def test_shapes_and_values_of_frames(arrays):
    feed = features.make_feed(arrays, make_config("onset,apex"))
    assert feed.names == ("onset", "apex")
    assert feed.shapes == ((SIDE, SIDE, 3),) * 2
    assert feed.clip_bytes == 2 * 4 * SIDE * SIDE * 3
    assert not feed.geometry
    assert feed.arrays.keys() == {"frames", "onset/exact", "apex/exact"}
    exact = feed.exact(feed.arrays, np.array([2, 0]))
    for found, name, numbers in zip(exact, ("onset", "apex"), ((7, 10), (47, 50)), strict=True):
        rows = getattr(arrays.frames, name)[[2, 0], 1]
        assert arrays.frames.numbers[rows].tolist() == [*numbers]
        assert found.dtype == np.float32
        assert_close(found, augment.normalise(jnp.asarray(arrays.frames.pixels[rows])))


def test_inputs_come_in_the_order_of_the_config(arrays):
    forwards = features.make_feed(arrays, make_config("onset,apex"))
    backwards = features.make_feed(arrays, make_config("apex, onset"))
    rows = np.array([1])
    first, second = forwards.exact(forwards.arrays, rows)
    assert not np.array_equal(first, second)
    for found, expected in zip(
        backwards.exact(backwards.arrays, rows), (second, first), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_frames_may_be_made_smaller(arrays):
    feed = features.make_feed(arrays, make_config("apex", {"frame_size": 8}))
    assert feed.shapes == ((8, 8, 3),)
    np.testing.assert_array_equal(feed.arrays["frames"], arrays.frames.resized(8).pixels)


def test_flow_mosaic_and_frames_side_by_side(arrays):
    """A network of several kinds of inputs; flow is the whole image whatever the layout."""
    config = make_config("flow,onset,mosaic", {"layout": "upright", "channels": "v, strain"})
    feed = features.make_feed(arrays, config)
    assert feed.shapes == ((28, 28, 2), (SIDE, SIDE, 3), (28, 28, 2))
    options = {"channels": ["v", "strain"], "scaling": "none"}
    flow, onset, mosaic = feed.exact(feed.arrays, np.array([2]))
    for found, layout in ((flow, "none"), (mosaic, "upright")):
        expected = loading.network_inputs(arrays, layout=layout, **options)
        np.testing.assert_array_equal(found, expected[2:])
    np.testing.assert_array_equal(flow, arrays.flow[2:, ..., 1:])
    assert not np.array_equal(flow, mosaic)
    assert onset.shape == (1, SIDE, SIDE, 3)


def test_one_array_is_a_feed_of_one_input():
    feed = Feed.of_array(np.arange(12).reshape(4, 3))
    assert (feed.names, feed.shapes, feed.clip_bytes) == (("inputs",), ((3,),), 12)
    (found,), privileged = feed.varied(feed.arrays, np.array([1, 3]), jax.random.key(0))
    assert privileged == {}
    np.testing.assert_array_equal(found, np.float32([[3, 4, 5], [9, 10, 11]]))


def test_without_augmentation_training_sees_the_exact_frames(arrays):
    feed = features.make_feed(arrays, make_config("onset,apex"))
    rows = np.array([0, 2])
    for found, expected in zip(
        feed.varied(feed.arrays, rows, jax.random.key(0))[0],
        feed.exact(feed.arrays, rows),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_flow_beside_frames_is_moved_like_them(arrays):
    """Mirrored with the face: each vector at its mirrored place, u of the other sign."""
    config = make_config("flow,onset", {"channels": "strain,v,u"}, flip=1.0)
    feed = features.make_feed(arrays, config)
    (flow, onset), _ = jax.jit(feed.varied)(feed.arrays, np.array([0, 2]), jax.random.key(0))
    mirrored = arrays.flow[[0, 2], :, ::-1][..., ::-1] * np.float32([1, 1, -1])
    np.testing.assert_array_equal(flow, mirrored)
    frames = arrays.frames.pixels[arrays.frames.onset[[0, 2], 1]][:, :, ::-1]
    assert_close(onset, augment.normalise(jnp.asarray(frames)))


def test_tables_stay_and_privileged_features_come_by_name(arrays):
    feed = features.make_feed(arrays, make_config("onset", flip=1.0))
    table = np.arange(3, dtype=np.float32)
    feed = Feed(
        ("onset",),
        feed.arrays | {"hint": table},
        feed.geometry,
        privileged=("hint",),
        banks=feed.banks,
    )
    _, privileged = feed.varied(feed.arrays, np.array([2, 0]), jax.random.key(0))
    np.testing.assert_array_equal(privileged["hint"], [2, 0])
    assert feed.shapes == ((SIDE, SIDE, 3),)


def test_privileged_features_are_checked_like_inputs():
    class Net:
        inputs, privileged = ("flow",), ("nope",)

    with pytest.raises(UserError, match="sees nope in training, which is no feature"):
        features.check_names(make_config(""), Net)
    Net.privileged = ("mosaic",)
    with pytest.raises(UserError, match=r"flip=0\.5: mosaic cannot be varied"):
        features.check_names(make_config("", flip=0.5), Net)


def test_channels_are_named_once(arrays):
    with pytest.raises(UserError, match="channels u, u, v: name each once"):
        features.make_feed(arrays, make_config("flow", {"channels": "u,u,v"}))


def test_inputs_are_those_the_model_declares_where_the_config_names_none(arrays):
    assert features.check_names(make_config(""), MMNet()) == ("onset", "apex")
    assert features.make_feed(arrays, make_config(""), HTNet()).names == ("mosaic",)


# --- jitter ---------------------------------------------------------------------------------------


def test_ranges_of_the_jitter_by_number(arrays):
    """Shares of the way; gaps stay gaps, and the numbers, not the rows, say how far a frame is."""
    config = make_config("onset,apex", onset_late=0.05, apex_early=0.05, apex_late=0.05)
    feed = features.make_feed(arrays, config)
    assert drawn(feed, "onset") == ([10, 100, 7], [[10, 11, 12], [100], [7, 9]])
    expected = [[48, 49, 50, 51, 52, 53], [119, 120, 121], [45, 47, 48]]
    assert drawn(feed, "apex") == ([50, 120, 47], expected)
    for name in ("onset", "apex"):
        for key in ("exact", "first", "count"):
            assert feed.arrays[f"{name}/{key}"].dtype == np.int32


def test_less_jitter_than_the_data_set_allows(arrays):
    config = make_config("onset,apex", onset_late=0.025, apex_late=0.02)
    feed = features.make_feed(arrays, config)
    assert drawn(feed, "onset") == ([10, 100, 7], [[10, 11], [100], [7]])
    assert drawn(feed, "apex") == ([50, 120, 47], [[50, 51], [120], [47]])
    early = features.make_feed(arrays, make_config("onset,apex", apex_early=0.025))
    assert "onset/first" not in early.arrays
    assert drawn(early, "apex") == ([50, 120, 47], [[49, 50], [120], [47]])


@pytest.mark.parametrize("release", [0.15, 0.2])
def test_reach_is_the_releases(release):
    """`int(.15 * distance / 4)`: no distance is rounded to the other side."""
    distances = np.arange(2001)
    found = reach(distances, release / 4)
    assert found.tolist() == [int(release * distance / 4) for distance in range(2001)]
    config_value = {0.15: 0.0375, 0.2: 0.05}[release]
    np.testing.assert_array_equal(reach(distances, config_value), found)


def test_an_offset_before_the_apex_reaches_nowhere():
    assert reach(np.array([-40, -1]), 0.05).tolist() == [0, 0]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "varied", "message"),
    [
        ("onset,offset", {}, "config.inputs='onset,offset': name the network's inputs in their"),
        ("apex,apex", {}, f"each once, comma-separated; there are {INPUTS}"),
        (" ,", {}, "config.inputs=' ,': name the network's inputs"),
        ("mosaic", {"flip": 0.5}, "config.augmentation.flip=0.5: mosaic cannot be varied"),
        ("flow", {"apex_early": 0.05}, "that frame is no input (config.inputs='flow'); set to 0"),
        (
            *("mosaic,onset", {"flip": 0.5, "shift": 2}),
            "config.augmentation.flip=0.5, config.augmentation.shift=2: mosaic cannot be varied",
        ),
        (
            "onset",
            {"apex_late": 0.01},
            "config.augmentation.apex_late=0.01: that frame is no input",
        ),
        ("onset", {"shift": 16}, "config.augmentation.shift=16 moves images of 16 px out of sight"),
        ("onset", {"onset_late": 0.2}, "onset_late=0.2 of the way, but invented/frames/1.0.0"),
        ("apex", {"apex_late": 0.06}, "lower it, or choose a config.dataset.config with more"),
    ],
)
def test_refused_settings(arrays, names, varied, message):
    with pytest.raises(UserError, match=re.escape(message)):
        features.make_feed(arrays, make_config(names, **varied))


@pytest.mark.parametrize(
    ("dataset", "varied", "message"),
    [
        (
            {"scaling": "minmax_255"},
            {"flip": 0.5},
            "config.augmentation.flip=0.5 moves the flow, but config.dataset.scaling='minmax_255'",
        ),
        (
            {"channels": "u,strain"},
            {"rotation": 4.0},
            "config.augmentation.rotation=4.0 turns u into v, but config.dataset.channels='u,str",
        ),
        ({}, {"shift": 28}, "config.augmentation.shift=28 moves images of 28 px out of sight"),
    ],
)
def test_a_flow_that_cannot_be_moved(arrays, dataset, varied, message):
    with pytest.raises(UserError, match=re.escape(message)):
        features.make_feed(arrays, make_config("flow", dataset, **varied))


def test_a_data_set_without_frames():
    with pytest.raises(UserError, match=r"invented.* has no face frames; choose a config\.dataset"):
        features.make_feed(make_arrays(), make_config("mosaic,apex"))


def test_frames_are_not_made_larger(arrays):
    message = (
        r"config\.dataset\.frame_size=17, but invented.* stores frames of 16 px; set it to 16 or"
    )
    with pytest.raises(UserError, match=message):
        features.make_feed(arrays, make_config("apex", {"frame_size": 17}))


MM = {"name": "MMNet", "num_classes": 3, "image_size": SIDE}
HT = {"name": "HTNet", "num_classes": 3, "image_size": 28}


@pytest.mark.parametrize(
    ("names", "attributes", "dataset", "message"),
    [
        (
            *("onset,flow", MM, {"channels": "u,v"}),
            "MMNet does not fit invented/frames/1.0.0, which gives onset 16 x 16 x 3, flow 28 x",
        ),
        ("onset,apex", MM | {"image_size": 32}, {}, "16 x 16 x 3: onset has shape (1, 16, 16, 3)"),
        ("onset,apex", MM | {"image_size": 32}, {}, "--config.dataset.frame_size (of face frames)"),
        ("mosaic", HT | {"image_size": 56}, {}, "mosaic 28 x 28 x 3: x has shape (1, 28, 28, 3)"),
        ("mosaic", HT | {"image_size": 56}, {}, "choose another --config.dataset.config"),
        (
            *("onset,apex", MM | {"num_classes": 5}, {}),
            "num_classes=5, but invented/frames/1.0.0 has 3 classes; set "
            "--config.model.num_classes=3",
        ),
    ],
)
def test_a_network_that_does_not_fit(arrays, names, attributes, dataset, message):
    config = make_config(names, dataset)
    config.model = ConfigDict(attributes)
    sizes = {key: value for key, value in attributes.items() if key != "name"}
    module = {"MMNet": MMNet, "HTNet": HTNet}[attributes["name"]](**sizes)
    feed = features.make_feed(arrays, config)
    with pytest.raises(UserError, match=re.escape(message)):
        settings.check_fit(config, module, arrays, feed)


@pytest.mark.parametrize(
    ("names", "module", "message"),
    [
        (
            "onset",
            MMNet(),
            "names 1, but MMNet takes 2 of them; MMNet usually takes --config.inputs=onset",
        ),
        (
            "flow,onset",
            HTNet(),
            "HTNet takes 1 of them; HTNet usually takes --config.inputs=mosaic",
        ),
        ("onset,apx", MMNet(), f"there are {INPUTS}; MMNet usually takes"),
        # What only training sees would be seen in the test too.
        ("text", HTNet(), f"there are {INPUTS}; HTNet usually takes"),
        ("onset,au_set", MMNet(), f"there are {INPUTS}; MMNet usually takes"),
    ],
)
def test_inputs_that_the_network_does_not_take(names, module, message):
    config = make_config(names)
    config.model = ConfigDict({"name": type(module).__name__})
    with pytest.raises(UserError, match=re.escape(message)):
        features.check_names(config, module)


def test_spare_outputs_are_part_of_the_fit(arrays):
    config = make_config("onset,apex")
    config.model, config.spare_outputs = ConfigDict(MM | {"num_classes": 5}), 2
    feed = features.make_feed(arrays, config)
    settings.check_fit(config, MMNet(num_classes=5, image_size=SIDE), arrays, feed)
    config.model.num_classes = 3
    message = "has 3 classes and config.spare_outputs=2; set --config.model.num_classes=5"
    with pytest.raises(UserError, match=re.escape(message)):
        settings.check_fit(config, MMNet(num_classes=3, image_size=SIDE), arrays, feed)
