import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

from htnet_jax.evaluation.calibration import (
    BINS,
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    scaled,
    softmax,
    temperatures,
)
from htnet_jax.evaluation.selection import select

# Highest probabilities .6 .6 .8 .9 and .5 (on an edge, so in the bin below it), right 1 0 1 1 0.
PROBABILITIES = np.array([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.5, 0.5]])
LABELS = np.array([0, 1, 1, 0, 1])


def simulated(temperature, clips=4000, seed=0):
    """Logits whose softmax at `temperature` is the chance of each class."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (clips, 3)) * temperature
    draws = generator.random(clips)[:, None]
    labels = (draws > softmax(logits / temperature).cumsum(axis=1)[:, :2]).sum(axis=1)
    return logits, labels


def test_softmax():
    # exp(0) : exp(log 3) = 1 : 3; equal logits share equally, however large.
    found = softmax([[[0, np.log(3)]], [[1e300, 1e300]]])
    assert found.shape == (2, 1, 2)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[[0.25, 0.75]], [[0.5, 0.5]]], rtol=1e-14)
    assert softmax(np.float32([0, 1000])).tolist() == [0.0, 1.0]


def test_reliability_by_hand():
    table = reliability(PROBABILITIES, LABELS, bins=4)
    assert table.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert table.count.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(table.confidence, [np.nan, 0.5, 0.6, 0.85])
    np.testing.assert_allclose(table.accuracy, [np.nan, 0, 1 / 2, 1])


def test_calibration_error_by_hand():
    # Four bins: (1 |0 - .5| + 2 |.5 - .6| + 2 |1 - .85|) / 5 = (.5 + .2 + .3) / 5.
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=4) == pytest.approx(0.2)
    # One bin: 3 of 5 right, mean probability 3.4 / 5.
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=1) == pytest.approx(0.08)
    assert BINS == 15
    # 15 bins: .6 is the edge 9/15; .5, .8 and .9 have bins of their own: gaps .5, .1 twice, .2, .1.
    assert expected_calibration_error(PROBABILITIES, LABELS) == pytest.approx(1.0 / 5)


def test_certain_and_right_is_perfect_and_certain_and_wrong_the_worst():
    certain = np.eye(3)
    assert expected_calibration_error(certain, [0, 1, 2]) == 0
    assert expected_calibration_error(certain, [1, 2, 0]) == 1
    # float32 rounding may take a probability just past 1.
    rounded = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]], np.float32)
    assert reliability(rounded, [0]).count.tolist() == [0] * 14 + [1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 5), st.integers(1, 20))
def test_calibration_error_agrees_with_a_direct_count(seed, clips, classes, bins):
    generator = np.random.default_rng(seed)
    probabilities = softmax(generator.normal(0, 2, (clips, classes)))
    labels = generator.integers(0, classes, clips)
    total = 0.0
    for index in range(bins):
        gap = 0.0
        for row, label in zip(probabilities, labels, strict=True):
            if index / bins < row.max() <= (index + 1) / bins:
                gap += (row.argmax() == label) - row.max()
        total += abs(gap)
    found = expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(total / clips, abs=1e-12)
    assert reliability(probabilities, labels, bins).count.sum() == clips


def test_negative_log_likelihood_by_hand():
    # Probabilities of the truth: 1/4, 1/2; with a certain and right clip: + 0.
    logits = np.array([[0, np.log(3)], [7, 7]])
    assert negative_log_likelihood(logits, [0, 1]) == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert negative_log_likelihood([[1e4, 0]], [0]) == 0
    assert negative_log_likelihood([[1e4, 0]], [1]) == pytest.approx(1e4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature):
    logits, labels = simulated(temperature)
    # 4000 clips: the estimate has a standard error of about 2.5 %; four of them.
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)


def test_the_temperature_mends_overconfidence():
    logits, labels = simulated(3.0)
    fitted = fit_temperature(logits, labels)
    before = expected_calibration_error(softmax(logits), labels)
    after = expected_calibration_error(softmax(logits / fitted), labels)
    assert before > 0.15
    assert after < 0.03


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 4), st.floats(0.01, 100))
def test_the_temperature_is_the_best_one_within_the_bounds(seed, clips, classes, scale):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (clips, classes))
    labels = generator.integers(0, classes, clips)
    fitted = fit_temperature(logits, labels)
    low, high = TEMPERATURES
    assert low <= fitted <= high
    best = negative_log_likelihood(logits / fitted, labels)
    assert best <= negative_log_likelihood(logits, labels) + 1e-9
    # An independent minimiser over 1/T finds nothing better.
    other = minimize_scalar(
        lambda inverse: negative_log_likelihood(logits * inverse, labels),
        bounds=(1 / high, 1 / low),
        method="bounded",
    )
    assert best <= other.fun + 1e-9
    # The scale of the logits is the scale of the temperature.
    if low < fitted / 2 < high and low < fitted < high:
        assert fit_temperature(logits / 2, labels) == pytest.approx(fitted / 2)


def test_temperature_by_hand():
    # Two clips of logits (0, 1), one of each class: the best chance of class 1 is a half, T high.
    assert fit_temperature([[0, 1], [0, 1]], [0, 1]) == TEMPERATURES[1]
    # Three of four right: sigmoid(1 / T) = 3/4, T = 1 / log 3.
    assert fit_temperature([[0, 1]] * 4, [1, 1, 1, 0]) == pytest.approx(1 / np.log(3))


def test_temperatures_at_the_bounds():
    low, high = TEMPERATURES
    # All right: no temperature is too low, even where the slope underflows to 0.
    assert fit_temperature([[0, 1], [1, 0]], [1, 0]) == low
    assert fit_temperature([[0, 1e6], [1e6, 0]], [1, 0]) == low
    # All wrong: none is too high.
    assert fit_temperature([[0, 1], [1, 0]], [0, 1]) == high


def test_a_prior_keeps_a_separated_set_near_1():
    # Two clips, all right by a margin of 4: 2 log(1 + exp(-4 b)) + (b - 1)^2 / 2 is smallest where
    # b - 1 = 8 / (1 + exp(4 b)), at b = 1.0970: 8 / (1 + 80.5) = 0.098.
    assert 1 / fit_temperature([[0, 4], [4, 0]], [1, 0], prior=1) == pytest.approx(1.097, abs=2e-3)
    # Many clips outweigh it: log 3 = 1.0986 without, three of four right.
    many = fit_temperature([[0, 1]] * 4000, [1, 1, 1, 0] * 1000, prior=1)
    assert 1 / many == pytest.approx(np.log(3), rel=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_temperature_with_a_prior_is_the_best_one(seed, clips, scale, prior):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (clips, 3))
    labels = generator.integers(0, 3, clips)

    def objective(inverse):
        likelihood = clips * negative_log_likelihood(logits * inverse, labels)
        return likelihood + prior / 2 * (inverse - 1) ** 2

    low, high = TEMPERATURES
    other = minimize_scalar(objective, bounds=(1 / high, 1 / low), method="bounded")
    assert objective(1 / fit_temperature(logits, labels, prior=prior)) <= other.fun + 1e-9


def test_equal_logits_keep_the_temperature():
    assert fit_temperature(np.zeros((4, 3)), [0, 1, 2, 0]) == 1.0
    assert fit_temperature([[2, 2], [-5, -5]], [0, 1]) == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([1.0, 2.0], [0], "shape"),
        ([[1.0, 2.0]], [0, 1], "shape"),
        ([[1.0, 2.0]], 0, "shape"),
        (np.zeros((0, 2)), np.zeros(0, int), "empty"),
        ([[1.0, np.nan]], [0], "NaN or infinity"),
        ([[1.0, np.inf]], [0], "NaN or infinity"),
        ([[1.0, 2.0]], [0.0], "labels must be integers"),
        ([[1.0, 2.0]], [2], "labels holds 2, expected 0 to 1"),
        ([[1.0, 2.0]], [-1], "labels holds -1"),
    ],
)
@pytest.mark.parametrize("function", [negative_log_likelihood, fit_temperature])
def test_bad_logits(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        ([0.5, 0.5], [0, 1], 15, "shape"),
        ([[0.5, 0.5]], [0, 1], 15, "shape"),
        (np.zeros((0, 2)), np.zeros(0, int), 15, "empty"),
        ([[0.5, 0.6]], [0], 15, "add up to 1"),
        ([[1.5, -0.5]], [0], 15, "in \\[0, 1\\]"),
        ([[np.nan, 1.0]], [0], 15, "in \\[0, 1\\]"),
        ([[0.5, 0.5]], [2], 15, "labels holds 2"),
        ([[0.5, 0.5]], [True], 15, "labels must be integers"),
        ([[0.5, 0.5]], [0], 0, "bins must be at least 1"),
    ],
)
@pytest.mark.parametrize("function", [reliability, expected_calibration_error])
def test_bad_probabilities(function, probabilities, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        function(probabilities, labels, bins)


@pytest.mark.parametrize("logits", [1.0, np.zeros((2, 0)), [0.0, np.nan]])
def test_bad_logits_of_softmax(logits):
    with pytest.raises(ValueError, match="logits"):
        softmax(logits)


def best(margin):
    """The T for two classes with a margin m and a right answer in 3 of 4 clips.

    The slope of the likelihood and the prior by b = 1/T is 4 m sigmoid(m b) - 3 m + (b - 1): 0.
    """
    return 1 / brentq(lambda b: 4 * margin / (1 + np.exp(-margin * b)) - 3 * margin + b - 1, 0, 9)


@pytest.fixture
def overconfident(make_wide, make_inner):
    """Two subjects of two classes; at each's epoch 4 logits of +-m on the other's 4 clips, 3 right.

    The margin m is 2 for fold 0 and 6 for fold 1; see `best`.
    """
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    # Rows: fold 0 validates on the second subject, fold 1 on the first; the fourth answer is wrong.
    sign = np.array([1, -1, 1, 1, 1, -1, 1, 1])
    margin = sign * np.repeat([2.0, 6.0], 4)
    logits = np.stack([margin / 2, -margin / 2], axis=-1)[None, None].repeat(2, axis=1)
    return make_wide(
        number=2,
        epochs=2,
        labels=labels,
        class_names=["no", "yes"],
        logits=np.full((1, 2, 8, 2), [4.0, 1.0], np.float32),
        inner=make_inner(
            logits=logits.astype(np.float32),
            test_logits=np.zeros((1, 1, 2, 8, 2), np.float32),
            fold=[0, 0, 0, 0, 1, 1, 1, 1],
            part=[0] * 8,
            clips=[
                f"s0{subject}_{i}"
                for subject, i in ((p, i + 4 * p) for p in (1, 0) for i in range(4))
            ],
            subjects=["s01"] * 4 + ["s00"] * 4,
            sources=["smic"] * 4 + ["samm"] * 4,
            labels=labels,
        ),
    )


def test_the_temperature_of_each_fold(overconfident):
    found = temperatures(overconfident, select(overconfident, "final"))
    np.testing.assert_allclose(found, [[best(2), best(6)]], rtol=1e-6)


def test_each_clips_logits_are_divided_by_its_folds_temperature(overconfident):
    selected = select(overconfident, "final")
    logits = scaled(overconfident, selected)
    low, high = 1 / best(2), 1 / best(6)
    np.testing.assert_allclose(logits[0, :4], [[4 * low, low]] * 4, rtol=1e-6)
    np.testing.assert_allclose(logits[0, 4:], [[4 * high, high]] * 4, rtol=1e-6)
    given_them = scaled(overconfident, selected, temperatures(overconfident, selected))
    np.testing.assert_array_equal(given_them, logits)


def test_the_epoch_of_the_selection_is_the_one_fitted(overconfident):
    inner = overconfident.inner
    inner.logits[0, 0] *= 2
    # `inner` takes the first of two epochs that validate equally well; `final` the last.
    found = temperatures(overconfident, select(overconfident, "inner"))
    np.testing.assert_allclose(found, [[best(4), best(12)]], rtol=1e-6)
    found = temperatures(overconfident, select(overconfident, "final"))
    np.testing.assert_allclose(found, [[best(2), best(6)]], rtol=1e-6)


def test_no_temperature_without_inner_folds_or_under_the_oracle(make_run, make_inner):
    run = make_run()
    assert temperatures(run, select(run, "final")) is None
    assert scaled(run, select(run, "final")) is None
    run = make_run(inner=make_inner())
    assert scaled(run, select(run, "oracle")) is None
    assert temperatures(run, select(run, "inner")).shape == (1, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([0, 1, 2, 0, 1, 2]))
def test_no_label_of_a_test_clip_is_looked_at(make_run, make_inner, labels):
    for selection in ("final", "inner"):
        found = [
            temperatures(run, select(run, selection))
            for run in (make_run(inner=make_inner()), make_run(inner=make_inner(), labels=labels))
        ]
        np.testing.assert_array_equal(*found)
