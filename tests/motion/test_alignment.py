"""The similarity transform onto the template, and the warped face."""

import cv2
import numpy as np
import pytest

from htnet_jax.datasets.synthetic import recipe, rendering
from htnet_jax.motion import alignment, regions


def _similarity(scale, degrees, shift):
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def _inverse(transform):
    return np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]


def _dots(points, height, width, sigma=3.0):
    """Bright Gaussian dots at (x, y) on black."""
    y, x = np.mgrid[:height, :width]
    dots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points]
    return np.rint(250 * np.sum(dots, axis=0).clip(0, 1)).astype(np.uint8)


def _centre_of_brightness(image, near, reach):
    x0, y0 = np.rint(near).astype(int) - reach
    patch = image[y0 : y0 + 2 * reach + 1, x0 : x0 + 2 * reach + 1].astype(np.float64)
    y, x = np.mgrid[: 2 * reach + 1, : 2 * reach + 1]
    return np.array([(patch * x).sum(), (patch * y).sum()]) / patch.sum() + (x0, y0)


def test_canonical_points_are_the_template():
    np.testing.assert_allclose(
        alignment.canonical_points(28), regions.TEMPLATE_POINTS, rtol=0, atol=1e-6
    )
    # Twice the size: a pixel's centre x moves to (x + 0.5) * 2 - 0.5.
    np.testing.assert_allclose(
        alignment.canonical_points(56), regions.TEMPLATE_POINTS * 2 + 0.5, rtol=0, atol=1e-5
    )
    with pytest.raises(ValueError, match="read-only"):
        alignment.CANONICAL[0] = 0


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(1, 0, (0, 0)), (0.3, 20, (40, -7)), (5, -75, (3, 900))]
)
def test_a_known_similarity_is_recovered(scale, degrees, shift):
    truth = _similarity(scale, degrees, shift)
    points = alignment.transform_points(_inverse(truth), alignment.canonical_points(224))
    found = alignment.face_transform(points, 224)
    assert found.shape == (2, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, truth, atol=1e-9 * (1 + np.abs(truth).max()))


def test_noisy_points_give_the_least_squares():
    rng = np.random.default_rng(0)
    points = alignment.canonical_points(100) * 0.7 + rng.normal(0, 3, (5, 2))
    target = alignment.canonical_points(224)

    def error(transform):
        return ((alignment.transform_points(transform, points) - target) ** 2).sum()

    best = alignment.face_transform(points, 224)
    # As a linear problem: x' = a x - b y + c, y' = b x + a y + d.
    x, y, one, zero = points[:, 0], points[:, 1], np.ones(5), np.zeros(5)
    matrix = np.concatenate(
        [np.stack([x, -y, one, zero], axis=1), np.stack([y, x, zero, one], axis=1)]
    )
    (a, b, c, d), *_ = np.linalg.lstsq(matrix, target.T.ravel(), rcond=None)
    np.testing.assert_allclose(best, [[a, -b, c], [b, a, d]], rtol=1e-9)
    assert error(best) < error(best + np.array([[0, 0, 0.1], [0, 0, 0]]))


def test_a_reflection_is_never_produced():
    mirrored = alignment.canonical_points(224) * (-1, 1) + (224, 0)
    linear = alignment.face_transform(mirrored, 224)[:, :2]
    assert np.linalg.det(linear) > 0
    np.testing.assert_allclose(linear @ linear.T, np.linalg.det(linear) * np.eye(2), atol=1e-12)


@pytest.mark.parametrize(
    ("points", "side", "message"),
    [
        (np.zeros((4, 2)), 224, r"\(5, 2\)"),
        (np.full((5, 2), 7.0), 224, "coincide"),
        (np.full((5, 2), 1e6) + 1e-5 * np.eye(5, 2), 224, "coincide"),
        (np.full((5, 2), np.nan), 224, "finite"),
        (regions.TEMPLATE_POINTS, 0, "at least 1"),
    ],
)
def test_face_transform_refuses(points, side, message):
    with pytest.raises(ValueError, match=message):
        alignment.face_transform(points, side)


@pytest.mark.parametrize("scale", [0.25, 0.6, 1.0, 1.8])
def test_warp_puts_marks_where_they_belong(scale):
    marks = np.array([[150.0, 120.0], [230.3, 131.6], [190.0, 205.0]])
    frame = _dots(marks, 360, 400, sigma=max(2.0, 2 / scale))
    side = 240
    linear = _similarity(scale, 12, (0, 0))[:, :2]
    transform = np.column_stack([linear, np.array([120, 120]) - linear @ (190, 160)])
    warped = alignment.warp(frame, transform, side)
    assert warped.shape == (side, side)
    assert warped.dtype == np.uint8
    wanted = alignment.transform_points(transform, marks)
    wanted = wanted[((wanted > 20) & (wanted < side - 21)).all(axis=1)]
    assert len(wanted) == 3
    for mark in wanted:
        reach = 10 if scale <= 1 else 18
        found = _centre_of_brightness(warped, mark, reach)
        assert np.abs(found - mark).max() < 0.1


def test_warp_by_the_identity_copies():
    frame = np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)
    identity = np.eye(2, 3)
    np.testing.assert_array_equal(alignment.warp(frame, identity, 50), frame)
    # Views are read too.
    np.testing.assert_array_equal(alignment.warp(frame[:, ::-1], identity, 50), frame[:, ::-1])


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_warp_of_a_colour_image_is_that_of_its_channels(scale):
    frame = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    transform = _similarity(scale, 9, (3, -2))
    warped = alignment.warp(frame, transform, 32)
    assert warped.shape == (32, 32, 3)
    for channel in range(3):
        alone = alignment.warp(frame[..., channel], transform, 32)
        np.testing.assert_array_equal(warped[..., channel], alone)


def test_warp_replicates_the_border():
    frame = np.full((10, 10), 200, np.uint8)
    frame[:, :5] = 50
    warped = alignment.warp(frame, np.array([[1.0, 0, 10], [0, 1.0, 10]]), 30)
    assert (warped[:, :12] == 50).all()
    assert (warped[:, 18:] == 200).all()


@pytest.mark.parametrize("scale", [0.5, 0.37, 0.14])
def test_shrinking_a_checkerboard_gives_grey(scale):
    board = (255 * (np.indices((480, 640)).sum(axis=0) % 2)).astype(np.uint8)
    transform = _similarity(scale, 5, (0, 0))
    transform[:, 2] = (24, 24) - transform[:, :2] @ (320, 240)
    warped = alignment.warp(board, transform, 48)
    assert np.abs(warped.astype(int) - 127).max() <= 6
    # Without the blur it would be moire.
    plain = cv2.warpAffine(board, transform, (48, 48))
    assert np.ptp(plain) > 100


@pytest.mark.parametrize(
    ("frame", "transform", "side", "message"),
    [
        (np.zeros((8, 8)), np.eye(2, 3), 8, "uint8"),
        (np.zeros((8, 8, 4), np.uint8), np.eye(2, 3), 8, "8, 8, 4"),
        (np.zeros((0, 8), np.uint8), np.eye(2, 3), 8, "0, 8"),
        (np.zeros((8, 8), np.uint8), np.eye(3), 8, r"\(2, 3\)"),
        (np.zeros((8, 8), np.uint8), np.full((2, 3), np.nan), 8, "finite"),
        (np.zeros((8, 8), np.uint8), np.zeros((2, 3)), 8, "no inverse"),
        (np.zeros((8, 8), np.uint8), np.eye(2, 3), 0, "at least 1"),
    ],
)
def test_warp_refuses(frame, transform, side, message):
    with pytest.raises(ValueError, match=message):
        alignment.warp(frame, transform, side)


def test_a_rendered_face_lands_on_the_template():
    clip = rendering.render_clip(0, recipe.plan(0, 4, 12)[0])
    points = clip.landmarks[clip.onset]
    # The image is turned and enlarged; its face comes out upright and of the template's size.
    moved = _similarity(2.5, 25, (60, -20))
    frame = cv2.warpAffine(clip.frames[clip.onset], moved, (420, 420), flags=cv2.INTER_CUBIC)
    transform = alignment.face_transform(alignment.transform_points(moved, points), 112)
    landed = alignment.transform_points(transform, alignment.transform_points(moved, points))
    # Faces differ from the template, but by little against an eye distance of 47 pixels.
    assert np.linalg.norm(landed - alignment.canonical_points(112), axis=1).max() < 10
    assert np.abs(landed.mean(axis=0) - alignment.canonical_points(112).mean(axis=0)).max() < 1e-9
    straight = alignment.warp(
        clip.frames[clip.onset], alignment.face_transform(points, 112), 112
    ).astype(float)
    turned = alignment.warp(frame, transform, 112).astype(float)
    assert np.abs(turned - straight)[20:100, 20:92].mean() < 4
