"""Clips of frames and flow, and the text of action units, as a network is fed them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from htnet_jax import features
from htnet_jax.config import default_config
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.features import augment
from htnet_jax.models import AttributeNet
from htnet_jax.training import settings

FRAMES, SIDE = 6, 28


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    return loading.load("synthetic", config="tiny_clips", data_dir=folder)


def make_config(weight=0.5, **augmentation):
    config = default_config()
    config.inputs = "rgb_clip,flow_clip"
    config.losses.attribute_contrastive = weight
    config.dataset.clip_frames = FRAMES
    config.text.kind = "multi_hot"
    config.augmentation.update(augmentation)
    config.model = ConfigDict({"name": "AttributeNet", "num_classes": 3})
    return config


def network(arrays, **attributes):
    units = {unit for text in arrays.action_units for unit in text.split("+")}
    sizes = {"width": 2, "depth": 10, "frames": FRAMES, "image_size": SIDE, "num_classes": 3}
    return AttributeNet(**{**sizes, "text_width": len(units), **attributes})


def test_a_clip_is_frames_from_onset_to_offset_and_the_flow_to_each(arrays):
    config = make_config()
    config.dataset.flow_gain = 0.3
    feed = features.make_feed(arrays, config, network(arrays))
    assert feed.shapes == ((FRAMES, SIDE, SIDE, 3), (FRAMES, SIDE, SIDE, 2))
    rgb, flow = feed.exact(feed.arrays, np.array([3, 0]))
    for clip, found_rgb, found_flow in zip([3, 0], rgb, flow, strict=True):
        rows = arrays.frames.rows_evenly(FRAMES)[clip]
        numbers = arrays.frames.numbers[rows]
        assert numbers[0] == arrays.frames.span[clip, 0]
        assert numbers[-1] == arrays.frames.span[clip, 2]
        pixels = arrays.frames.pixels[rows] / 255
        expected = (pixels - augment.KINETICS[0]) / augment.KINETICS[1]
        np.testing.assert_allclose(found_rgb, expected, rtol=0, atol=1e-5)
        # Rounded once, to halves.
        expected = arrays.frames.flow[rows].astype(np.float32) * np.float32(0.3)
        np.testing.assert_array_equal(found_flow, expected.astype(np.float16))
        assert not found_flow[0].any()
        assert found_flow[1:].any(axis=(1, 2, 3)).all()
    assert flow.dtype == np.float32


def test_frames_and_flow_of_a_clip_are_moved_alike(arrays):
    feed = features.make_feed(arrays, make_config(flip=1.0), network(arrays))
    rows = np.array([1, 2])
    (rgb, flow), _ = jax.jit(feed.varied)(feed.arrays, rows, jax.random.key(0))
    exact_rgb, exact_flow = feed.exact(feed.arrays, rows)
    np.testing.assert_allclose(rgb, exact_rgb[..., ::-1, :], rtol=0, atol=1e-5)
    mirrored = exact_flow[..., ::-1, :] * np.float32([-1, 1])
    np.testing.assert_array_equal(flow, mirrored)


def test_the_shift_of_a_clip_is_one_for_all_its_frames(arrays):
    feed = features.make_feed(arrays, make_config(shift=5), network(arrays))
    rows = np.arange(4)
    (rgb, flow), _ = jax.jit(feed.varied)(feed.arrays, rows, jax.random.key(2))
    exact_rgb, exact_flow = (np.asarray(x) for x in feed.exact(feed.arrays, rows))
    for clip in rows:
        fits = []
        for down in range(-5, 6):
            for right in range(-5, 6):
                inner = slice(5, SIDE - 5)
                moved = slice(5 - down, SIDE - 5 - down), slice(5 - right, SIDE - 5 - right)
                same = [
                    np.allclose(found[clip][:, inner, inner], exact[clip][:, *moved], atol=1e-4)
                    for found, exact in ((rgb, exact_rgb), (flow, exact_flow))
                ]
                if all(same):
                    fits.append((down, right))
        assert len(fits) == 1


def test_clips_of_one_set_of_units_have_one_text(arrays):
    feed = features.make_feed(arrays, make_config(), network(arrays))
    assert feed.privileged == ("text", "au_set")
    rows = np.arange(len(arrays.clips))
    _, found = feed.varied(feed.arrays, rows, jax.random.key(0))
    columns = sorted({int(unit) for text in arrays.action_units for unit in text.split("+")})
    for text, embedding in zip(arrays.action_units, found["text"], strict=True):
        units = {int(unit) for unit in text.split("+")}
        np.testing.assert_array_equal(embedding, [unit in units for unit in columns])
    same = found["au_set"][:, None] == found["au_set"]
    units = [frozenset(text.split("+")) for text in arrays.action_units]
    np.testing.assert_array_equal(same, [[one == other for other in units] for one in units])


def test_text_is_centred_on_the_sets_of_the_training_clips(arrays):
    """Each set counts once, whatever clips have it; padding and clips without units do not."""
    stored = np.array(["1", "1", "2", "1+2", "", *arrays.action_units[5:]])
    feed = features.make_feed(
        dataclasses.replace(arrays, action_units=stored), make_config(), network(arrays)
    )
    assert feed.centred == ("text",)
    rows, valid = np.array([0, 1, 2, 4, 3, 3]), np.array([1, 1, 1, 1, 0, 0], bool)
    fitted = jax.jit(feed.fitted)(feed.arrays, rows, valid)
    table = feed.arrays["text"]
    one, other = (table[feed.arrays["text/exact"][clip]] for clip in (0, 2))
    centre = (one + other) / 2
    np.testing.assert_allclose(fitted["text/centre"], centre, rtol=1e-6)
    _, found = feed.varied(fitted, np.array([2]), jax.random.key(0))
    np.testing.assert_allclose(found["text"][0], other - centre, rtol=1e-6)
    config = make_config()
    config.text.centred = False
    assert features.make_feed(arrays, config, network(arrays)).centred == ()


def test_data_without_units_have_no_text_and_need_no_text_model(arrays):
    config = make_config()
    config.text.kind, config.text.model = "sentence", "no/such/folder"
    for stored in (None, np.full(len(arrays.clips), "")):
        nothing = dataclasses.replace(arrays, action_units=stored)
        feed = features.make_feed(nothing, config, network(arrays))
        assert (feed.privileged, feed.absent) == ((), ("text", "au_set"))
        settings.check_fit(config, network(arrays), nothing, feed)


def test_without_the_contrastive_loss_no_text_is_loaded(arrays):
    config = make_config(weight=0.0)
    config.text.kind, config.text.model = "sentence", "no/such/folder"
    feed = features.make_feed(arrays, config, network(arrays))
    assert (feed.privileged, feed.absent) == ((), ())


def test_units_that_are_not_facs_are_reported_together(arrays):
    stored = np.array(["1+99", "2", "x", *arrays.action_units[3:]])
    with pytest.raises(UserError, match=r"(?s)clip01.*99.*clip03.*x"):
        features.make_feed(
            dataclasses.replace(arrays, action_units=stored), make_config(), network(arrays)
        )


def test_a_text_of_another_width_is_refused_with_the_remedy(arrays):
    model = network(arrays, text_width=768)
    feed = features.make_feed(arrays, make_config(), model)
    with pytest.raises(UserError, match="set text_width=") as refused:
        settings.check_fit(make_config(), model, arrays, feed)
    assert "AttributeNet does not fit" in str(refused.value)


def test_clips_of_another_size_are_refused_with_the_remedy(arrays):
    model = network(arrays, image_size=56)
    feed = features.make_feed(arrays, make_config(), model)
    with pytest.raises(UserError, match="set frames=6 and image_size=28"):
        settings.check_fit(make_config(), model, arrays, feed)


def test_more_frames_than_are_stored_are_refused(arrays):
    config = make_config()
    config.dataset.clip_frames = 9
    with pytest.raises(UserError, match=r"frames-9, or --config\.dataset\.clip_frames=8"):
        features.make_feed(arrays, config, network(arrays))


def test_frames_without_flow_are_refused_with_the_recipe(arrays):
    bare = dataclasses.replace(arrays, frames=dataclasses.replace(arrays.frames, flow=None))
    with pytest.raises(UserError, match=r"stores none; choose .*frames-16"):
        features.make_feed(bare, make_config(), network(arrays))


def test_a_network_without_what_a_loss_needs_is_refused(arrays):
    config = make_config()
    config.inputs, config.model = "mosaic", ConfigDict({"name": "HTNet"})
    model = settings.build_model(config)
    feed = features.make_feed(arrays, config, model)
    with pytest.raises(UserError, match="attribute_contrastive needs visual, text from the net"):
        settings.check_fit(config, model, arrays, feed)


def test_a_baseline_takes_no_clips(arrays):
    config = make_config(weight=0.0)
    config.inputs, config.model = "flow_clip", ConfigDict({"name": "MajorityClass"})
    config.update({"epochs": 1, "checkpoints": "none"})
    model = settings.build_model(config)
    feed = features.make_feed(arrays, config, model)
    with pytest.raises(UserError, match="MajorityClass takes one flow image; set"):
        settings.check_fit(config, model, arrays, feed)


def test_smaller_clips_have_smaller_flow(arrays):
    config = make_config()
    config.dataset.frame_size = 14
    feed = features.make_feed(arrays, config, network(arrays))
    _, flow = feed.exact(feed.arrays, np.arange(5))
    config.dataset.frame_size = 0
    feed = features.make_feed(arrays, config, network(arrays))
    _, large = feed.exact(feed.arrays, np.arange(5))
    cells = large.reshape(5, FRAMES, 14, 2, 14, 2, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(flow, cells / 2, rtol=0, atol=2e-3 * float(jnp.abs(cells).max()))
