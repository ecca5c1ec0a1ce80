"""Faces and muscles: anatomy, symmetry, and what is drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.datasets.synthetic import faces, geometry, muscles

EVERY_MUSCLE = [*sum(muscles.CLASS_MUSCLES, ()), *muscles.IDLE_MUSCLES]

seeds = st.integers(0, 2**32)


@given(seeds)
def test_face_parts_are_in_their_places(seed):
    g = geometry.random_geometry(np.random.default_rng(seed))
    left_eye, right_eye, nose, left_mouth, right_mouth = g.landmarks
    assert g.landmarks.dtype == np.float32
    assert left_eye[0] + 20 < right_eye[0]
    assert left_mouth[0] + 20 < right_mouth[0]
    assert g.brow_y < left_eye[1] < nose[1] < left_mouth[1] < g.chin_y
    x, y = np.rint(g.landmarks.T).astype(int)
    assert g.inside(0.85)[y, x].all()
    assert not g.inside()[0].any()


@pytest.mark.parametrize("muscle", EVERY_MUSCLE)
@given(seed=seeds, strength=st.floats(0.1, 3))
def test_even_contraction_is_mirror_symmetric(muscle, seed, strength):
    g = geometry.random_geometry(np.random.default_rng(seed))
    patches = muscles.contracted((muscles.Contraction(muscle, strength, strength),), g)
    across, y = np.meshgrid(np.linspace(0, 50, 7), np.linspace(0, 127, 9))
    left = muscles.displacement(patches, g.centre[0] - across, y)
    right = muscles.displacement(patches, g.centre[0] + across, y)
    np.testing.assert_allclose(left[0], -right[0], atol=1e-9)
    np.testing.assert_allclose(left[1], right[1], atol=1e-9)
    # A strength is about the largest displacement, and nothing moves in the picture's corners.
    x, y = np.meshgrid(np.arange(128.0), np.arange(128.0))
    size = np.hypot(*muscles.displacement(patches, x, y))
    assert 0.7 * strength < size.max() < 1.5 * strength
    assert size[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.02 * strength


def test_each_half_of_a_muscle_moves_its_own_side():
    g = geometry.random_geometry(np.random.default_rng(0))
    patches = muscles.contracted((muscles.Contraction("AU12", 2.0, 0.0),), g)
    corners = g.landmarks[3:].astype(float)
    right, down = muscles.displacement(patches, corners[:, 0], corners[:, 1])
    assert right[0] < -1
    assert down[0] < -1
    assert np.abs([right[1], down[1]]).max() < 0.05


@given(seeds, st.sampled_from([0, 1, 2]))
def test_drawn_contractions_belong_to_the_class(seed, label):
    drawn = muscles.random_contractions(label, np.random.default_rng(seed))
    names = [c.muscle for c in drawn]
    assert names
    assert len(set(names)) == len(names)
    assert set(names) <= set(muscles.CLASS_MUSCLES[label])
    # 0.6 * 0.7 * 0.65 = 0.27 and 2.2 * 1.3 * 1.35 = 3.86 are the extremes.
    assert all(0.27 < strength < 3.87 for c in drawn for strength in (c.left, c.right))


def test_every_subset_of_a_class_occurs():
    for label, names in enumerate(muscles.CLASS_MUSCLES):
        subsets = {
            tuple(c.muscle for c in muscles.random_contractions(label, np.random.default_rng(i)))
            for i in range(300)
        }
        assert len(subsets) == 2 ** len(names) - 1


def test_face_is_a_picture_with_detail_everywhere():
    face = faces.make_face(np.random.default_rng(3))
    y, x = np.mgrid[:128, :128].astype(np.float32)
    picture = face.sample(x, y)
    assert picture.shape == (128, 128)
    assert picture.min() >= 0
    assert picture.max() <= 1.05
    assert not face.picture.flags.writeable
    # Eyes and mouth line are darker than the cheek between them.
    left_eye, *_, left_mouth, right_mouth = face.geometry.landmarks
    cheek = picture[int(left_eye[1]) + 15, int(left_eye[0])]
    mouth = picture[round(left_mouth[1]) - 1 : round(left_mouth[1]) + 3]
    assert picture[round(left_eye[1]), round(left_eye[0])] < 0.8 * cheek
    assert mouth[:, round((left_mouth[0] + right_mouth[0]) / 2)].min() < 0.8 * cheek
    # No patch of skin is flat: flow needs something to hold on to everywhere.
    inside = face.geometry.inside(0.8)
    blocks = [
        picture[r : r + 8, c : c + 8].std()
        for r in range(0, 128, 8)
        for c in range(0, 128, 8)
        if inside[r : r + 8, c : c + 8].all()
    ]
    assert len(blocks) > 40
    assert min(blocks) > 2 / 255
