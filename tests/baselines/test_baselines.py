"""What all baselines promise."""

import dataclasses

import numpy as np
import pytest

from htnet_jax.baselines import BASELINES, RBFSVM, KernelRidge, LogisticRegression, common

ALL = [*BASELINES]
LEARNING = [name for name in ALL if name != "MajorityClass"]


@pytest.mark.parametrize("name", LEARNING)
def test_learns_what_can_be_seen(name, make_clips):
    inputs, labels = make_clips(60, seed=0)
    fitted = BASELINES[name]().fit(inputs, labels)
    unseen, truth = make_clips(30, seed=1)
    logits = fitted.logits(unseen)
    assert logits.shape == (30, 3)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits.argmax(axis=1), truth)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("classes", [(0, 1), (1, 3), (2,), (0, 2, 3)])
def test_a_class_without_a_training_clip_is_last_and_finite(name, classes, make_clips):
    """Clips of rows and channels 0 to 2, whatever their labels are called."""
    inputs, index = make_clips(30, seed=0, classes=range(len(classes)))
    fitted = BASELINES[name](num_classes=5).fit(inputs, np.array(classes)[index])
    logits = fitted.logits(inputs)
    assert logits.shape == (30, 5)
    assert np.isfinite(logits).all()
    absent = [c for c in range(5) if c not in classes]
    seen = logits[:, list(classes)]
    expected = np.repeat(seen.min(axis=1, keepdims=True) - 30, len(absent), axis=1)
    np.testing.assert_allclose(logits[:, absent], expected, rtol=1e-6)
    if name in LEARNING:
        np.testing.assert_array_equal(logits.argmax(axis=1), np.array(classes)[index])


@pytest.mark.parametrize("name", LEARNING)
def test_classes_weigh_the_same_however_rare(name, make_clips):
    """Twenty times one clip of class 0, once its like of class 1: equally sure of both."""
    clip = np.zeros((1, 8, 8, 3), np.float32)
    clip[0, 1, :, 0] = 1
    other = np.zeros_like(clip)
    other[0, 6, :, 0] = 1
    inputs = np.concatenate([clip] * 20 + [other])
    fitted = BASELINES[name](num_classes=2).fit(inputs, np.array([0] * 20 + [1]))
    logits = fitted.logits(np.concatenate([clip, other]))
    margins = logits[:, 0] - logits[:, 1]
    assert margins[0] > 0
    np.testing.assert_allclose(margins[1], -margins[0], rtol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_the_unit_of_the_inputs_does_not_matter(name, make_clips):
    """Powers of two, so that the float32 inputs stay exact."""
    inputs, labels = make_clips(40, seed=2)
    unseen, _ = make_clips(10, seed=3)
    plain = BASELINES[name]().fit(inputs, labels).logits(unseen)
    for factor in (2.0**-12, 2.0**9):
        scaled = BASELINES[name]().fit(inputs * np.float32(factor), labels)
        np.testing.assert_allclose(
            scaled.logits(unseen * np.float32(factor)), plain, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", ALL)
def test_fits_repeat_bit_for_bit(name, make_clips):
    inputs, labels = make_clips(40, seed=4)
    unseen, _ = make_clips(10, seed=5)
    first, second = (BASELINES[name]().fit(inputs, labels).logits(unseen) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_fitting_changes_no_input(name, make_clips):
    inputs, labels = make_clips(12, seed=4)
    before = inputs.copy(), labels.copy()
    BASELINES[name]().fit(inputs, labels).logits(inputs)
    np.testing.assert_array_equal(inputs, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("name", ALL)
def test_clips_that_are_all_the_same(name):
    """Nothing can be learnt, and nothing breaks: every clip gets the same finite logits."""
    inputs = np.full((6, 8, 8, 3), 0.1, np.float32)
    inputs[:, 3] = 0.7
    fitted = BASELINES[name]().fit(inputs, np.array([0, 1, 2, 0, 1, 2]))
    logits = fitted.logits(inputs)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, np.repeat(logits[:1], 6, axis=0))


@pytest.mark.parametrize("name", ALL)
def test_a_single_training_clip(name, make_clips):
    inputs, labels = make_clips(1, seed=0)
    logits = BASELINES[name]().fit(inputs, labels).logits(make_clips(3, seed=1)[0])
    assert logits.shape == (3, 3)
    assert logits.argmax(axis=1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((4, 8, 8)), [0, 1, 2, 0], "axes"),
        (np.zeros((4, 8, 8, 3)), [0, 1, 2], "clips differ"),
        (np.zeros((0, 8, 8, 3)), np.zeros(0, int), "none"),
        (np.zeros((2, 8, 8, 3)), [0, 3], "from 0 to 2"),
        (np.zeros((2, 8, 8, 3)), [-1, 0], "from 0 to 2"),
        (np.zeros((2, 8, 8, 3)), [0.0, 1.0], "integers"),
        (np.full((2, 8, 8, 3), np.nan), [0, 1], "not finite"),
    ],
)
def test_wrong_training_sets(name, inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        BASELINES[name]().fit(inputs, np.asarray(labels))


@pytest.mark.parametrize(
    ("name", "attribute", "values"),
    [
        *((name, "num_classes", (0, -1, 2.5, "3", True, None)) for name in ALL),
        ("LogisticRegression", "components", (-1, 1.5, True, False, 0.0, (), (10, -1), "10")),
        ("LogisticRegression", "C", (0, -1.0, float("nan"), float("inf"), "1", (), (1.0, 0.0))),
        ("RBFSVM", "components", (-1, (0, 2.5))),
        ("RBFSVM", "C", (0, None)),
        ("RBFSVM", "gamma", (0, -1, "scale", ())),
        ("KernelRidge", "channels", ("", "v,strain", "u,u,v", None, ("u", "v"))),
        ("KernelRidge", "compression", (0, -1, (1.0, 2.0), (1.0,))),
        ("KernelRidge", "smoothing", (0, float("inf"), (1.5,))),
        ("KernelRidge", "bandwidths", ((), (1.0, 0.0), -1.0, "1")),
        ("KernelRidge", "ridges", ((), (0.0,), (1.0, float("nan")))),
    ],
)
def test_impossible_hyper_parameters(name, attribute, values):
    BASELINES[name]().check()
    for value in values:
        with pytest.raises(ValueError, match=f"{attribute}="):
            BASELINES[name](**{attribute: value}).check()


def test_candidates_in_the_order_given_the_last_attribute_fastest():
    grid = LogisticRegression(components=(20, 10), C=(1.0, 0.1))
    found = [(one.components, one.C) for one in grid.candidates()]
    assert found == [(20, 1.0), (20, 0.1), (10, 1.0), (10, 0.1)]
    assert grid.candidates()[1].chosen_from(grid) == {"components": 20, "C": 0.1}


def test_a_tuple_of_one_value_leaves_no_choice():
    grid = RBFSVM(components=(7,), C=(1.0, 2.0), gamma=3.0)
    assert [dataclasses.astuple(one) for one in grid.candidates()] == [
        (3, 7, 1.0, 3.0),
        (3, 7, 2.0, 3.0),
    ]
    assert grid.candidates()[1].chosen_from(grid) == {"C": 2.0}


def test_the_tuples_of_kernel_ridge_are_averaged_not_chosen_from():
    assert KernelRidge().candidates() == [KernelRidge()]
    assert KernelRidge().chosen_from(KernelRidge()) == {}


def test_a_grid_cannot_be_fitted(make_clips):
    with pytest.raises(ValueError, match="leaves a choice"):
        LogisticRegression(C=(1.0, 2.0)).fit(*make_clips(6, seed=0))


def test_a_tuple_of_one_value_can_be_fitted(make_clips):
    inputs, labels = make_clips(12, seed=0)
    plain = LogisticRegression(components=5, C=2.0).fit(inputs, labels)
    tuples = LogisticRegression(components=(5,), C=(2.0,)).fit(inputs, labels)
    np.testing.assert_array_equal(plain.logits(inputs), tuples.logits(inputs))


def test_majority_hand_computed(make_clips):
    """Of 4 clips 1, 3, 0 have the classes 0, 1, 2."""
    inputs, _ = make_clips(4, seed=0)
    fitted = BASELINES["MajorityClass"]().fit(inputs, np.array([1, 0, 1, 1]))
    expected = [np.log(0.25), np.log(0.75), np.log(0.25) - 30]
    np.testing.assert_allclose(fitted.logits(inputs[:2]), [expected] * 2, rtol=1e-6)


def test_majority_of_equals_is_the_first(make_clips):
    inputs, _ = make_clips(4, seed=0)
    fitted = BASELINES["MajorityClass"]().fit(inputs, np.array([2, 1, 1, 2]))
    assert fitted.logits(inputs).argmax(axis=1).tolist() == [1, 1, 1, 1]


def test_two_classes_share_one_score():
    logits = common.all_classes(np.array([3.0, -1.0]), np.array([0, 2]), 3)
    np.testing.assert_array_equal(logits, np.float32([[-1.5, -31.5, 1.5], [0.5, -30.5, -0.5]]))


def test_squared_distances_by_hand():
    a, b = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[3.0, 4.0], [0.1, 0.2], [3.0, 0.0]])
    expected = [[25, 0.05, 9], [0, 2.9**2 + 3.8**2, 16]]
    np.testing.assert_allclose(common.squared_distances(a, b), expected, rtol=1e-12)
    rows = np.random.default_rng(0).normal(size=(20, 300))
    assert not np.diag(common.squared_distances(rows, rows)).any()
