"""Kernel ridge against its formulas written out, and the invariances it claims."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htnet_jax.baselines import KernelRidge
from htnet_jax.baselines.kernel_ridge import kernels


def mirror(inputs):
    """The inputs of the mirrored faces; channels u, v, strain."""
    return (inputs * np.float32([-1, 1, 1]))[:, :, ::-1]


def by_hand(clip, compression, sigma):
    """The features of one clip, one channel at a time, the Gaussian as plain sums."""
    size = len(clip)
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-radius, radius + 1)]
    # Beyond the border the picture is mirrored, the border pixel repeated: d c b a | a b c d.
    inside = [*range(size), *reversed(range(size))]
    smooth = np.zeros((size, size))
    for row in range(size):
        for k, weight in zip(range(-radius, radius + 1), weights, strict=True):
            smooth[row, inside[(row + k) % (2 * size)]] += weight / sum(weights)
    parts = np.empty((size, size, 2, clip.shape[-1]))
    for channel in range(clip.shape[-1]):
        values = clip[..., channel].astype(np.float64)
        values = values - np.median(values)
        values = np.tanh(values / (compression * math.sqrt((values**2).mean())))
        parts[:, :, 0, channel] = smooth @ np.where(values > 0, values, 0) @ smooth.T
        parts[:, :, 1, channel] = smooth @ np.where(values < 0, -values, 0) @ smooth.T
    return parts


def test_features_by_hand(make_clips):
    inputs, _ = make_clips(3, seed=0)
    found = KernelRidge(compression=0.7, smoothing=1.2).features(inputs)
    np.testing.assert_allclose(found, [by_hand(clip, 0.7, 1.2) for clip in inputs], atol=1e-12)


def test_logits_by_hand(make_clips):
    """Every bandwidth and ridge solved on its own, distances one by one."""
    inputs, _ = make_clips(9, seed=0)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    unseen, _ = make_clips(4, seed=1)
    train, test, mirrored = (
        np.array([by_hand(clip, 1.0, 1.5).ravel() for clip in clips])
        for clips in (inputs, unseen, mirror(inputs))
    )

    def distance(a, b):
        return np.array([[math.dist(x, y) for y in b] for x in a])

    median = np.median(distance(train, train)[np.triu_indices(9, 1)])
    # Nine clips in three classes of 4, 3 and 2.
    weights = np.array([9 / 12] * 4 + [9 / 9] * 3 + [9 / 6] * 2)
    targets = np.where(labels[:, None] == [0, 1, 2], 2 / 3, -1 / 3)
    np.testing.assert_allclose(weights @ targets, 0, atol=1e-15)
    scores = []
    for bandwidth in (0.5, 2.0):

        def kernel(a, h=bandwidth * median):
            both = distance(a, train), distance(a, mirrored)
            return sum(np.exp(-(d**2) / (2 * h**2)) for d in both) / 2

        for ridge in (0.01, 0.3):
            # Least squares weighted by w: (K + ridge / w) c = y.
            dual = np.linalg.solve(kernel(train) + np.diag(ridge / weights), targets)
            scores.append(kernel(test) @ dual)
    fitted = KernelRidge(bandwidths=(0.5, 2.0), ridges=(0.01, 0.3)).fit(inputs, labels)
    np.testing.assert_allclose(fitted.logits(unseen), np.mean(scores, axis=0), atol=1e-6)


def test_a_mirrored_clip_has_the_same_kernel_and_logits(make_clips):
    inputs, labels = make_clips(12, seed=0)
    unseen, _ = make_clips(5, seed=1)
    baseline = KernelRidge()
    train = baseline.features(inputs)
    plain, flipped = (
        next(kernels(baseline.squared_distances(baseline.features(clips), train), (3.0,)))
        for clips in (unseen, mirror(unseen))
    )
    np.testing.assert_allclose(flipped, plain, rtol=1e-10)
    # It is the mirror image's motion that counts: flipped without negating u, it is another clip.
    wrong = baseline.features(unseen[:, :, ::-1])
    other = next(kernels(baseline.squared_distances(wrong, train), (3.0,)))
    assert np.abs(other - plain).max() > 0.01 * plain.max()
    fitted = baseline.fit(inputs, labels)
    np.testing.assert_allclose(
        fitted.logits(mirror(unseen)), fitted.logits(unseen), rtol=1e-5, atol=1e-6
    )


def test_mirroring_the_features_is_mirroring_the_clip(make_clips):
    inputs, _ = make_clips(4, seed=0)
    baseline = KernelRidge()
    np.testing.assert_allclose(
        baseline.mirrored(baseline.features(inputs)), baseline.features(mirror(inputs)), atol=1e-12
    )


def test_u_may_be_any_channel(make_clips):
    inputs, labels = make_clips(12, seed=0)
    unseen, _ = make_clips(5, seed=1)
    plain = KernelRidge().fit(inputs, labels).logits(unseen)
    turned = KernelRidge(channels="strain,v,u").fit(inputs[..., ::-1], labels)
    np.testing.assert_allclose(turned.logits(unseen[..., ::-1]), plain, rtol=1e-5, atol=1e-6)
    wrong = KernelRidge(channels="v,u,strain").fit(inputs, labels)
    assert np.abs(wrong.logits(unseen) - plain).max() > 1e-3


def test_the_kernel_is_symmetric_and_positive(make_clips):
    inputs, _ = make_clips(30, seed=0)
    baseline = KernelRidge()
    features = baseline.features(inputs)
    for kernel in kernels(baseline.squared_distances(features, features), (0.5, 2.0, 8.0)):
        np.testing.assert_allclose(kernel, kernel.T, atol=1e-12)
        assert np.linalg.eigvalsh(kernel).min() > -1e-10
        assert ((np.diag(kernel) >= 0.5) & (np.diag(kernel) <= 1)).all()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(-512, 512), min_size=9, max_size=9),
    st.lists(st.sampled_from([0.25, 0.5, 1.0, 4.0]), min_size=9, max_size=9),
)
def test_offset_and_factor_of_a_clips_channel_change_nothing(offsets, factors):
    """Whole numbers up to 255, so that the float32 inputs stay exact."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2])
    inputs = rng.integers(0, 256, (3, 8, 8, 3)).astype(np.float32)
    moved = inputs * np.float32(factors).reshape(3, 1, 1, 3)
    moved += np.float32(offsets).reshape(3, 1, 1, 3)
    fitted, other = (KernelRidge().fit(clips, labels) for clips in (inputs, moved))
    expected = fitted.logits(inputs)
    np.testing.assert_allclose(other.logits(moved), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fitted.logits(moved), expected, rtol=1e-5, atol=1e-6)


def test_a_channel_without_motion(make_clips):
    inputs, labels = make_clips(6, seed=0)
    inputs[0, ..., 1] = 128
    features = KernelRidge().features(inputs)
    assert not features[0, ..., 1].any()
    assert np.isfinite(KernelRidge().fit(inputs, labels).logits(inputs)).all()


def test_the_other_clips_predicted_change_nothing(make_clips):
    inputs, labels = make_clips(12, seed=0)
    unseen, _ = make_clips(6, seed=1)
    fitted = KernelRidge().fit(inputs, labels)
    alone = np.concatenate([fitted.logits(unseen[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(fitted.logits(unseen), alone, rtol=1e-5, atol=1e-7)


def test_wrong_channels(make_clips):
    inputs, labels = make_clips(6, seed=0)
    with pytest.raises(ValueError, match=r"3 channels, but channels='u,v'.*dataset.channels"):
        KernelRidge(channels="u,v").fit(inputs, labels)
