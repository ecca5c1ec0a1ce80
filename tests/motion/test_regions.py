"""The mosaic against a slow, literal rendering of its definition."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from htnet_jax.motion import regions


def _slow_release_mosaic(flow, points):
    """Pixel by pixel, at 28 px: 14x14 crops around row = x, column = y."""
    result = np.zeros_like(flow)
    for block, point in enumerate((0, 1, 3, 4)):  # the nose, 2, is not used
        x, y = (int(min(max(float(value), 7.0), 21.0)) for value in points[point])
        for row in range(14):
            for column in range(14):
                to = (14 * (block // 2) + row, 14 * (block % 2) + column)
                result[to] = flow[x - 7 + row, y - 7 + column]
    return result


def _image(dtype=np.float32, channels=3):
    return np.arange(28 * 28 * channels).reshape(28, 28, channels).astype(dtype)


def test_release_layout_by_hand():
    # Every point is clipped to a corner of [7, 21]^2, so each crop is a quarter of the image.
    row, column = np.mgrid[:28, :28]
    image = np.stack([row, column], axis=-1)
    points = np.array([[0, 0], [30, 0], [14, 14], [0, 30], [30, 30]], np.float32)
    # Row = x: the right eye (x large, y small) comes from the lower left quarter.
    release = regions.mosaic(image, points)
    np.testing.assert_array_equal(release[:14, :14], image[:14, :14])
    np.testing.assert_array_equal(release[:14, 14:], image[14:, :14])
    np.testing.assert_array_equal(release[14:, :14], image[:14, 14:])
    np.testing.assert_array_equal(release[14:, 14:], image[14:, 14:])
    # Row = y: every region stays where it is.
    np.testing.assert_array_equal(regions.mosaic(image, points, layout="upright"), image)


def test_coordinates_are_truncated_not_rounded():
    points = np.full((5, 2), 9.99, np.float32)
    image = _image()
    np.testing.assert_array_equal(
        regions.mosaic(image, points), regions.mosaic(image, np.full((5, 2), 9.0))
    )
    np.testing.assert_array_equal(regions.mosaic(image, points)[0, 0], image[2, 2])


def test_template_points():
    assert regions.TEMPLATE_POINTS.shape == (5, 2)
    assert regions.TEMPLATE_POINTS.dtype == np.float32
    image = _image(np.uint8, 1)
    release = regions.mosaic(image, regions.TEMPLATE_POINTS, layout="release")
    # Centres (row = x, column = y): (9, 11), (21, 10), (10, 21), (20, 21).
    np.testing.assert_array_equal(release[:14, :14], image[2:16, 4:18])
    np.testing.assert_array_equal(release[:14, 14:], image[14:28, 3:17])
    np.testing.assert_array_equal(release[14:, :14], image[3:17, 14:28])
    np.testing.assert_array_equal(release[14:, 14:], image[13:27, 14:28])


@hypothesis.given(
    points=st.lists(
        st.floats(-50, 80, width=32) | st.floats(-1e30, 1e30), min_size=10, max_size=10
    ),
    dtype=st.sampled_from([np.uint8, np.int32, np.float16, np.float32, np.float64]),
    channels=st.integers(1, 4),
)
def test_release_is_the_slow_mosaic_and_upright_its_mirror(points, dtype, channels):
    points = np.array(points).reshape(5, 2)
    image = _image(dtype, channels)
    release = regions.mosaic(image, points, layout="release")
    assert release.dtype == image.dtype
    np.testing.assert_array_equal(release, _slow_release_mosaic(image, points))
    # Cutting upright from an image is cutting in release order from its mirror image, crop by
    # crop mirrored back.
    upright = regions.mosaic(image, points, layout="upright")
    mirrored = regions.mosaic(image.transpose(1, 0, 2), points, layout="release")
    for rows in (slice(0, 14), slice(14, 28)):
        for columns in (slice(0, 14), slice(14, 28)):
            np.testing.assert_array_equal(
                upright[rows, columns], mirrored[rows, columns].transpose(1, 0, 2)
            )


def test_other_sizes():
    # At 8 px the crops are 4x4 and centres lie in [2, 6].
    image = np.arange(64).reshape(8, 8, 1)
    points = np.array([[3, 4], [0, 0], [0, 0], [9, 9], [5, 2]])
    upright = regions.mosaic(image, points, layout="upright")
    np.testing.assert_array_equal(upright[:4, :4], image[2:6, 1:5])
    np.testing.assert_array_equal(upright[:4, 4:], image[:4, :4])
    np.testing.assert_array_equal(upright[4:, :4], image[4:, 4:])
    np.testing.assert_array_equal(upright[4:, 4:], image[:4, 3:7])


@pytest.mark.parametrize(
    ("shape", "points", "layout", "message"),
    [
        ((28, 28, 3), np.full((5, 2), np.nan), "release", "finite"),
        ((28, 28, 3), np.full((5, 2), np.inf), "release", "finite"),
        ((28, 28, 3), np.zeros((4, 2)), "release", r"\(5, 2\)"),
        ((28, 28, 3), np.zeros(10), "release", r"\(5, 2\)"),
        ((28, 28), np.zeros((5, 2)), "release", "square"),
        ((28, 24, 3), np.zeros((5, 2)), "release", "square"),
        ((30, 30, 3), np.zeros((5, 2)), "release", "divisible by 4"),
        ((0, 0, 3), np.zeros((5, 2)), "release", "divisible by 4"),
        ((28, 28, 3), np.zeros((5, 2)), "sideways", "release, upright"),
    ],
)
def test_mosaic_refuses(shape, points, layout, message):
    with pytest.raises(ValueError, match=message):
        regions.mosaic(np.zeros(shape), points, layout=layout)


def test_one_meaning_of_outside_the_image():
    points = [[0, 0], [-0.5, 27.5], [-0.75, 3], [3, 28], [30.5, -2]]
    np.testing.assert_array_equal(regions.outside(points, 28), [0, 0, 0.25, 0.5, 3])
