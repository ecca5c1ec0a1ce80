"""Flow, strain, resizing and scaling on hand-made images, and flow on rendered clips."""

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from htnet_jax.datasets.synthetic import recipe, rendering
from htnet_jax.motion import flow

METHODS = sorted(flow.METHODS)
SYMMETRIC = sorted(set(flow.STRAIN_FORMULAS) - {"four_terms"})


def _texture(dx: float, dy: float, height: int = 72, width: int = 80) -> np.ndarray:
    """A smooth texture whose content is moved by (dx, dy) pixels: a sum of plane waves."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x - dx, y - dy
    waves = np.sin(0.5 * x + 0.2 * y) + np.sin(0.35 * y - 0.3 * x) + np.sin(0.15 * x + 0.45 * y)
    return np.round(127.5 + 40 * waves).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_optical_flow_of_a_shift_is_the_shift(method):
    # The content moves 1.5 pixels to the right and 0.5 up.
    found = flow.optical_flow(_texture(0, 0), _texture(1.5, -0.5), method)
    assert found.shape == (72, 80, 2)
    assert found.dtype == np.float32
    inside = found[16:-16, 16:-16]
    assert np.abs(inside[..., 0] - 1.5).mean() < 0.05
    assert np.abs(inside[..., 1] + 0.5).mean() < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_optical_flow_of_the_same_frame_is_zero(method):
    frame = _texture(0, 0)
    # Farneback invents up to 0.1 pixel next to the border.
    assert np.abs(flow.optical_flow(frame, frame, method)[16:-16, 16:-16]).max() < 1e-3


def test_optical_flow_reads_views():
    onset, apex = _texture(0, 0), _texture(1, 0)
    both = np.stack([onset, apex], axis=-1)
    found = flow.optical_flow(both[..., 0], both[..., 1], "farneback")
    np.testing.assert_array_equal(found, flow.optical_flow(onset, apex, "farneback"))


@pytest.mark.parametrize(
    ("onset", "apex", "method", "message"),
    [
        (np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8), "tvl1", "onset .* float32"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8), "tvl1", "apex .*8, 8, 3"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8), "tvl1", "the same shape"),
        (np.zeros((0, 8), np.uint8), np.zeros((0, 8), np.uint8), "tvl1", "onset"),
        (
            np.zeros((8, 8), np.uint8),
            np.zeros((8, 8), np.uint8),
            "lucas",
            "lucas.*farneback, tvl1, dis",
        ),
        (np.zeros((15, 99), np.uint8), np.zeros((15, 99), np.uint8), "dis", "16x16.*15x99"),
    ],
)
def test_optical_flow_refuses(onset, apex, method, message):
    with pytest.raises(ValueError, match=message):
        flow.optical_flow(onset, apex, method)


@pytest.mark.parametrize("shape", [(16, 16), (16, 300), (300, 16), (28, 28)])
def test_dis_on_small_images(shape):
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(flow.optical_flow(frame, frame, "dis"), 0)


def test_dis_has_the_parameters_that_are_written_out():
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    setters = {name[3:] for name in dir(solver) if name.startswith("set")}
    assert setters == set(flow.DIS)
    for name, value in flow.DIS.items():
        assert getattr(solver, f"get{name}")() == pytest.approx(value)


@pytest.mark.parametrize("method", METHODS)
def test_mirrored_frames_mirror_the_flow(method):
    onset, apex = _texture(0, 0), _texture(1.5, -0.5)
    found = flow.optical_flow(onset, apex, method)[16:-16, 16:-16]
    mirrored = flow.optical_flow(onset[:, ::-1], apex[:, ::-1], method)[16:-16, 16:-16]
    np.testing.assert_allclose(mirrored[:, ::-1], found * (-1, 1), atol=0.1)


@pytest.fixture(scope="module")
def clips():
    """Rendered clips of one subject, one for each class: (onset, apex, true flow, inside)."""
    planned = recipe.plan(0, 4, 12)
    first = {c.label: c for c in reversed(planned) if c.subject == planned[0].subject}
    found = []
    for label in sorted(first):
        r = rendering.render_clip(0, first[label])
        found.append((r.frames[r.onset], r.frames[r.apex], r.true_flow, r.face_mask))
    assert len(found) == 3
    return found


@pytest.mark.parametrize("method", METHODS)
def test_optical_flow_of_rendered_faces_is_near_the_truth(method, clips):
    errors, motions = [], []
    for onset, apex, truth, inside in clips:
        found = flow.optical_flow(onset, apex, method)
        errors.append(np.linalg.norm(found - truth, axis=-1)[inside].mean())
        motions.append(np.linalg.norm(truth, axis=-1)[inside].mean())
    assert np.mean(errors) < 0.5 * np.mean(motions), (errors, motions)


def test_strain_of_a_linear_flow():
    # u = 3x + 2y, v = 4x + 5y: sqrt(3^2 + 5^2 + (2 + 4)^2 / 2) = sqrt(52) everywhere.
    y, x = np.mgrid[:6, :7].astype(np.float32)
    strain = flow.optical_strain(np.stack([3 * x + 2 * y, 4 * x + 5 * y], axis=-1))
    assert strain.shape == (6, 7)
    assert strain.dtype == np.float32
    np.testing.assert_allclose(strain, np.sqrt(52), rtol=1e-6)


def test_strain_is_zero_for_a_shift_and_a_small_rotation():
    y, x = np.mgrid[:6, :7].astype(np.float32)
    rotation = np.stack([2 - 0.1 * y, 0.1 * x - 3], axis=-1)
    np.testing.assert_allclose(flow.optical_strain(rotation), 0, atol=1e-6)


def _linear(ux: float, uy: float, vx: float, vy: float) -> np.ndarray:
    y, x = np.mgrid[:6, :7].astype(np.float32)
    return np.stack([ux * x + uy * y, vx * x + vy * y], axis=-1)


@pytest.mark.parametrize(
    ("formula", "general"),
    # u = 3x + 2y, v = 4x + 5y: normal strains 3 and 5, shears 2 and 4.
    [
        ("green_lagrange_small", 9 + 25 + 36 / 2),
        ("symmetric_norm", 9 + 25 + 3**2),
        ("four_terms", 9 + 4 + 16 + 25),
        ("engineering_shear", 9 + 25 + 36),
    ],
)
def test_every_strain_formula_by_hand(formula, general):
    np.testing.assert_allclose(
        flow.optical_strain(_linear(3, 2, 4, 5), formula), np.sqrt(general), rtol=1e-6
    )
    # A pure expansion has no shear, about which alone the formulas disagree.
    expansion = flow.optical_strain(_linear(0.3, 0, 0, 0.3), formula)
    np.testing.assert_allclose(expansion, 0.3 * np.sqrt(2), rtol=1e-5)
    np.testing.assert_array_equal(flow.optical_strain(_linear(0, 0, 0, 0) + 3, formula), 0)


def test_only_four_terms_sees_a_rotation():
    rotation = _linear(0, -0.1, 0.1, 0)
    for formula in SYMMETRIC:
        np.testing.assert_allclose(flow.optical_strain(rotation, formula), 0, atol=1e-6)
    strain = flow.optical_strain(rotation, "four_terms")
    np.testing.assert_allclose(strain, 0.1 * np.sqrt(2), rtol=1e-5)


def test_strain_uses_central_differences():
    # u = x^2 on five columns: differences 1 at the border, then 2, 4, 6, and 7 at the border.
    x = np.arange(5, dtype=np.float32)
    field = np.stack([np.tile(x**2, (2, 1)), np.zeros((2, 5), np.float32)], axis=-1)
    np.testing.assert_allclose(flow.optical_strain(field), [[1, 2, 4, 6, 7]] * 2)


def test_strain_refuses():
    with pytest.raises(ValueError, match="green_lagrange_small"):
        flow.optical_strain(np.zeros((4, 4, 2)), "other")
    with pytest.raises(ValueError, match="H, W, 2"):
        flow.optical_strain(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="2x2"):
        flow.optical_strain(np.zeros((1, 4, 2)))


def test_resize_averages_areas_and_scales_the_vectors():
    # 4 rows x 8 columns -> 2 x 2: u shrinks by 4, v by 2.
    field = np.zeros((4, 8, 2), np.float32)
    field[:2, :4, 0] = [[0, 8, 0, 8], [4, 4, 4, 4]]  # mean 4 -> 1
    field[2:, 4:, 1] = 6  # -> 3
    small = flow.resize_flow(field, 2)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small[..., 0], [[1, 0], [0, 0]])
    np.testing.assert_allclose(small[..., 1], [[0, 0], [0, 3]])


def test_resize_refuses():
    with pytest.raises(ValueError, match="at least 1"):
        flow.resize_flow(np.zeros((4, 4, 2)), 0)
    with pytest.raises(ValueError, match="H, W, 2"):
        flow.resize_flow(np.zeros((4, 4)), 2)


def test_flow_tensor_is_in_pixels_of_its_own_size():
    # 80x80 -> 20x20: a shift of 2 pixels becomes half a pixel, without strain.
    onset, apex = _texture(0, 0, 80, 80), _texture(2, 0, 80, 80)
    tensor = flow.flow_tensor(onset, apex, size=20)
    assert tensor.shape == (20, 20, 3)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[5:-5, 5:-5, 0], 0.5, atol=0.02)
    np.testing.assert_allclose(tensor[5:-5, 5:-5, 1:], 0, atol=0.02)
    np.testing.assert_array_equal(tensor[..., 2], flow.optical_strain(tensor[..., :2]))


@pytest.mark.parametrize("order", flow.ORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_flow_tensor_of_every_method_and_order(method, order):
    # 72x80 -> 40x40: 2 pixels to the right become 1, 1.8 down become 1.
    onset, apex = _texture(0, 0), _texture(2, 1.8)
    inside = slice(10, -10)
    still = flow.flow_tensor(onset, onset, method=method, size=40, order=order)
    assert still.shape == (40, 40, 3)
    assert still.dtype == np.float32
    np.testing.assert_allclose(still[inside, inside], 0, atol=1e-3)
    moved = flow.flow_tensor(onset, apex, method=method, size=40, order=order)
    assert moved.shape == (40, 40, 3)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved[inside, inside, :2].mean(axis=(0, 1)), 1, atol=0.1)
    assert moved[inside, inside, 2].mean() < 0.05


def test_flow_tensor_in_order_size_is_the_flow_of_the_resized_frames():
    onset, apex = _texture(0, 0, 80, 80), _texture(2, 0, 80, 80)
    small = [f.reshape(40, 2, 40, 2).mean(axis=(1, 3)) for f in (onset, apex)]
    small = [np.rint(f).astype(np.uint8) for f in small]
    tensor = flow.flow_tensor(onset, apex, method="farneback", size=40, order="size")
    expected = flow.optical_flow(*small, "farneback")
    # OpenCV rounds halves another way: single grey levels differ.
    np.testing.assert_allclose(tensor[..., :2], expected, atol=0.02)
    crop = flow.flow_tensor(onset, apex, method="farneback", size=40)
    assert np.abs(crop[..., :2] - expected).max() > 0.05


def test_flow_tensor_refuses():
    frame = _texture(0, 0)
    with pytest.raises(ValueError, match="'both'; use one of crop, size"):
        flow.flow_tensor(frame, frame, order="both")
    for order in flow.ORDERS:
        with pytest.raises(ValueError, match="same shape"):
            flow.flow_tensor(frame, frame[1:], order=order, method="farneback")
        with pytest.raises(ValueError, match="at least 1"):
            flow.flow_tensor(frame, frame, order=order, size=0, method="farneback")
        with pytest.raises(ValueError, match="2x2"):
            flow.flow_tensor(frame, frame, order=order, size=1, method="farneback")
    with pytest.raises(ValueError, match="float32"):
        flow.flow_tensor(frame.astype(np.float32), frame, order="size")


def test_minmax_255_by_hand():
    clip = np.zeros((2, 2, 3), np.float32)
    clip[..., 0] = [[-1, 0], [1, 3]]
    clip[..., 1] = [[0, 0], [0, 51]]
    clip[..., 2] = 7  # constant
    scaled = flow.minmax_255(clip)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[..., 0], [[0, 63.75], [127.5, 255]])
    np.testing.assert_allclose(scaled[..., 1], [[0, 0], [0, 255]])
    np.testing.assert_array_equal(scaled[..., 2], 0)


def test_minmax_255_scales_each_clip_alone():
    clips = np.stack([np.arange(8.0).reshape(2, 2, 2), 1000 * np.arange(8.0).reshape(2, 2, 2)])
    scaled = flow.minmax_255(clips)
    np.testing.assert_array_equal(scaled[0], scaled[1])
    np.testing.assert_allclose(scaled[0, ..., 0].ravel(), [0, 85, 170, 255])


@hypothesis.given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=4, max_side=4),
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    )
)
def test_minmax_255_stays_in_range(clips):
    scaled = flow.minmax_255(clips)
    assert scaled.shape == clips.shape
    assert scaled.min() >= 0
    assert scaled.max() <= 255
    constant = np.ptp(clips.astype(np.float64), axis=(-3, -2)) == 0
    np.testing.assert_array_equal(scaled.max(axis=(-3, -2)) == 0, constant)


def test_minmax_255_refuses():
    with pytest.raises(ValueError, match="finite"):
        flow.minmax_255(np.full((2, 2, 1), np.nan))
    with pytest.raises(ValueError, match="H, W, C"):
        flow.minmax_255(np.zeros((2, 2)))
