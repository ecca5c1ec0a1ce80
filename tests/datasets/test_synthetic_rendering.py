"""Rendered clips: repeatable, and their frames, landmarks and true flow tell one story."""

import dataclasses

import cv2
import numpy as np
import pytest
from htnet_jax.datasets.synthetic.muscles import IDLE_MUSCLES, Contraction

from htnet_jax.datasets.synthetic import recipe, rendering
from htnet_jax.motion.flow import optical_flow

PLAN = recipe.plan(7, 2, 4)
# A clip of every source and class.
SAMPLE = [
    next(p for p in PLAN if p.source == source and p.label == label)
    for source in recipe.SOURCES
    for label in range(3)
]


def _at(field, points):
    """The values of `(H, W, 2)` field at `(N, 2)` points (x, y), interpolated."""
    x, y = points.astype(np.float32).T
    return cv2.remap(field, x[None], y[None], cv2.INTER_LINEAR)[0]


def _size(flow, mask):
    return float(np.linalg.norm(flow, axis=-1)[mask].mean())


@pytest.mark.parametrize("planned", SAMPLE[::4])
def test_same_arguments_same_bits(planned):
    first = rendering.render_clip(7, planned)
    rendering.subject_face.cache_clear()
    second = rendering.render_clip(7, planned)
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert np.array_equal(a, b), field.name
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


def test_seed_subject_and_clip_all_matter():
    clips = [
        rendering.render_clip(7, PLAN[0]),
        rendering.render_clip(8, PLAN[0]),
        rendering.render_clip(7, PLAN[1]),
        rendering.render_clip(7, next(p for p in PLAN if p.number == 2)),
    ]
    assert len({c.frames[c.onset].tobytes() for c in clips}) == 4
    assert len({c.true_flow.tobytes() for c in clips}) == 4


@pytest.mark.parametrize("planned", SAMPLE)
def test_a_clip_is_complete(planned):
    clip = rendering.render_clip(7, planned)
    length = len(clip.frames)
    assert 9 <= length <= 17
    assert 0 <= clip.onset < clip.apex < clip.offset < length
    assert (clip.frames.shape, clip.frames.dtype) == ((length, 128, 128), np.uint8)
    assert (clip.landmarks.shape, clip.landmarks.dtype) == ((length, 5, 2), np.float32)
    assert (clip.true_flow.shape, clip.true_flow.dtype) == ((128, 128, 2), np.float32)
    assert clip.face_mask.mean() > 0.2
    assert clip.label == planned.label
    # The picture is neither black nor burnt out.
    assert 40 < clip.frames[:, clip.face_mask].mean() < 220
    assert (clip.frames == 255).mean() < 0.01


@pytest.mark.parametrize("planned", SAMPLE)
def test_landmarks_move_with_the_true_flow(planned):
    clip = rendering.render_clip(7, planned)
    moved = clip.landmarks[clip.apex] - clip.landmarks[clip.onset]
    # Linear interpolation between pixels is off by at most the curvature of the motion.
    np.testing.assert_allclose(_at(clip.true_flow, clip.landmarks[clip.onset]), moved, atol=0.02)


def test_landmarks_rise_to_the_apex_and_fall_back():
    contraction = (Contraction("AU12", 2.0, 2.0),)
    clip = rendering.render_clip(7, PLAN[0], drift=False, contractions=contraction)
    corner = clip.landmarks[:, 3, 1]  # goes up: y falls
    assert corner.argmin() == clip.apex
    assert (np.diff(corner[clip.onset : clip.apex + 1]) < 0).all()
    assert (np.diff(corner[clip.apex : clip.offset + 1]) > 0).all()
    assert (corner[: clip.onset + 1] == corner[clip.offset]).all()


@pytest.mark.parametrize("planned", SAMPLE)
def test_apex_warped_back_by_the_true_flow_is_the_onset(planned):
    clip = rendering.render_clip(7, planned, noise=False, lighting=False)
    onset = clip.frames[clip.onset].astype(np.float32)
    apex = clip.frames[clip.apex].astype(np.float32)
    y, x = np.mgrid[:128, :128].astype(np.float32)
    x, y = x + clip.true_flow[..., 0], y + clip.true_flow[..., 1]
    back = cv2.remap(apex, x, y, cv2.INTER_CUBIC)
    error = np.abs(back - onset)[clip.face_mask].mean()
    # Rounding two frames to whole grey levels alone makes 1/3. Measured: 0.43 to 0.51 grey levels;
    # unwarped, the two frames differ by 1.3 to 7.5.
    assert error < 0.6
    assert error < 0.5 * np.abs(apex - onset)[clip.face_mask].mean()


def test_switches_leave_everything_else_as_it_is():
    planned = SAMPLE[0]
    clip = rendering.render_clip(7, planned)
    quiet = rendering.render_clip(7, planned, noise=False, lighting=False)
    assert np.array_equal(clip.true_flow, quiet.true_flow)
    assert np.array_equal(clip.landmarks, quiet.landmarks)
    still = rendering.render_clip(7, planned, drift=False)
    assert still.contractions == clip.contractions
    assert np.abs(still.true_flow[:4]).max() < 0.01
    frozen = rendering.render_clip(
        7, planned, noise=False, drift=False, lighting=False, contractions=()
    )
    assert (frozen.frames == frozen.frames[0]).all()
    assert not frozen.true_flow.any()
    lit = rendering.render_clip(7, planned, noise=False, drift=False, contractions=())
    assert (lit.frames[lit.apex] != lit.frames[lit.onset]).any()


def test_noise_has_the_strength_of_its_source():
    for planned in SAMPLE[::3]:
        clip = rendering.render_clip(7, planned)
        clean = rendering.render_clip(7, planned, noise=False)
        difference = clip.frames[:, clip.face_mask].astype(float) - clean.frames[:, clip.face_mask]
        # Rounding to whole grey levels adds at most a variance of 1/6.
        assert difference.std() == pytest.approx(planned.source.noise, rel=0.08)


def test_nothing_but_the_muscles_depends_on_the_label():
    for planned in SAMPLE[:3]:
        clips = [
            rendering.render_clip(7, dataclasses.replace(planned, label=label), contractions=())
            for label in range(3)
        ]
        assert all(np.array_equal(clip.frames, clips[0].frames) for clip in clips)
        assert all(np.array_equal(clip.true_flow, clips[0].true_flow) for clip in clips)
        idle = [
            [c for c in rendering.render_clip(7, p).contractions if c.muscle in IDLE_MUSCLES]
            for p in (dataclasses.replace(planned, label=label) for label in range(3))
        ]
        assert idle[0] == idle[1] == idle[2]


def test_contractions_that_fold_the_skin_are_refused():
    with pytest.raises(ValueError, match="weaker"):
        rendering.render_clip(7, PLAN[0], contractions=(Contraction("AU45", 60.0, 60.0),))


@pytest.mark.parametrize(("method", "clips"), [("farneback", SAMPLE), ("tvl1", SAMPLE[::4])])
def test_flow_methods_find_the_true_flow(method, clips):
    errors, sizes = [], []
    for planned in clips:
        clip = rendering.render_clip(7, planned)
        flow = optical_flow(clip.frames[clip.onset], clip.frames[clip.apex], method)
        errors.append(_size(flow - clip.true_flow, clip.face_mask))
        sizes.append(_size(clip.true_flow, clip.face_mask))
    # Mean endpoint error inside the face, measured: Farneback 0.16 px of 0.85 px of motion, TV-L1
    # 0.15 px of 0.91 px; the worst clip (noisy, motion of 0.28 px) is wrong by 0.45 of its motion.
    assert sum(errors) <= 0.3 * sum(sizes)
    assert max(error / size for error, size in zip(errors, sizes, strict=True)) <= 0.6


# Where each muscle is seen best, as (landmark, offset in pixels on the image's left), and the
# direction of its pull there (right, down), from the Facial Action Coding System.
DIRECTIONS = {
    "AU4": (0, (6, -11), (0.6, 0.8)),
    "AU15": (3, (0, 1), (-0.2, 1)),
    "AU9": (2, (-8, -4), (0, -1)),
    "AU12": (3, (0, -1), (-0.7, -0.7)),
    "AU6": (0, (-4, 14), (0, -1)),
    "AU1+2": (0, (0, -12), (0, -1)),
    "AU26": (2, (0, 29), (0, 1)),
}


@pytest.mark.parametrize("muscle", DIRECTIONS)
def test_muscles_pull_the_way_they_do_in_a_face(muscle):
    clip = rendering.render_clip(
        7, PLAN[0], drift=False, contractions=(Contraction(muscle, 2.5, 2.5),)
    )
    landmark, offset, direction = DIRECTIONS[muscle]
    place = clip.landmarks[clip.onset, landmark] + np.array(offset, np.float32)
    direction = np.array(direction) / np.linalg.norm(direction)
    measured = optical_flow(clip.frames[clip.onset], clip.frames[clip.apex], "farneback")
    for flow, strength in ((clip.true_flow, 1.5), (measured, 1.0)):
        motion = _at(flow, place[None])[0]
        assert motion @ direction > strength
        assert motion @ direction > 0.9 * np.linalg.norm(motion)
