"""The apex estimated on rendered clips, whose true apex is known."""

import functools

import numpy as np
import pytest

from htnet_jax.datasets.synthetic import recipe, rendering
from htnet_jax.motion import alignment, apex

# The largest contraction lies between frames that differ little from it.
WITHIN = 1


@functools.cache
def _clip(subject, label):
    planned = recipe.plan(0, 4, 12)
    subjects = list(dict.fromkeys(clip.subject for clip in planned))
    wanted = (c for c in planned if c.subject == subjects[subject] and c.label == label)
    return rendering.render_clip(0, next(wanted))


def _faces(clip, side=224):
    """The aligned faces of all frames from onset to offset, the onset's, and its points."""
    transform = alignment.face_transform(clip.landmarks[clip.onset], side)
    numbers = range(clip.onset, clip.offset + 1)
    faces = [(n, alignment.warp(clip.frames[n], transform, side)) for n in numbers]
    points = alignment.transform_points(transform, clip.landmarks[clip.onset])
    return faces[0][1], faces, points


@pytest.mark.parametrize("subject", [0, 4, 8])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_apex_of_a_rendered_clip_is_found(subject, label):
    clip = _clip(subject, label)
    onset, faces, points = _faces(clip)
    # Numbers on disk start anywhere; the answer is such a number.
    numbered = [(n + 5000, face) for n, face in faces]
    found = apex.estimate_apex(onset, iter(numbered), points)
    assert abs(found - 5000 - clip.apex) <= WITHIN


def test_a_small_face_is_used_as_it_is():
    clip = _clip(0, 2)
    onset, faces, points = _faces(clip, 100)
    assert abs(apex.estimate_apex(onset, faces, points) - clip.apex) <= WITHIN


def test_motion_outside_the_regions_does_not_count():
    rng = np.random.default_rng(0)
    onset = rng.integers(90, 160, (112, 112), dtype=np.uint8)
    points = alignment.canonical_points(112)
    mouth, corner = onset.copy(), onset.copy()
    mouth[80:96, 32:56] = onset[80:96, 34:58]  # beside the left mouth corner
    corner[:14] = onset[:14, ::-1]  # a change above the face
    faces = [(1, onset), (2, corner)]
    faces += [(3, onset), (4, onset), (5, mouth), (6, onset)]
    # Frames 4 to 6 share the strain of frame 5; the first of them is named.
    assert apex.estimate_apex(onset, faces, points) == 4
    # Two frames are not averaged.
    assert apex.estimate_apex(onset, [(2, corner), (5, mouth)], points) == 5


def test_a_clip_without_motion_gives_its_first_frame():
    clip = _clip(0, 0)
    onset, faces, points = _faces(clip)
    for count in (1, 2, 3, 7):
        still = [(number, onset) for number, _ in faces[:count]]
        assert apex.estimate_apex(onset, still, points) == still[0][0]


def test_estimate_apex_refuses():
    face = np.zeros((64, 64), np.uint8)
    points = alignment.canonical_points(64)
    with pytest.raises(ValueError, match="no frames"):
        apex.estimate_apex(face, [], points)
    with pytest.raises(ValueError, match=r"frame 3 .*64, 63"):
        apex.estimate_apex(face, [(3, face[:, :63])], points)
    with pytest.raises(ValueError, match="square"):
        apex.estimate_apex(face[:, :63], [(3, face)], points)
    with pytest.raises(ValueError, match="uint8"):
        apex.estimate_apex(face, [(3, face.astype(float))], points)
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        apex.estimate_apex(face, [(3, face)], points[:4])
    with pytest.raises(ValueError, match="near the face"):
        apex.estimate_apex(face, [(3, face)], points + 1000)
