import warnings

import numpy as np
import pytest
import sklearn.metrics as sklearn_metrics
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.evaluation.metrics import (
    HEADLINE,
    METRICS,
    AbsentClassError,
    Counts,
    confusion,
    confusions,
    scores,
    uar,
    uf1,
)

# Confusion (rows = truth): [[2, 1, 0], [0, 2, 0], [1, 0, 0]].
TRUTH = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 1, 1, 0]


def test_confusion_has_truth_in_rows():
    matrix = confusion(TRUTH, PREDICTED, 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix.dtype == np.int64


def test_hand_computed_scores():
    # F1: 4/(3+3), 4/(2+3), 0/(1+0); recall: 2/3, 2/2, 0/1.
    assert uf1(TRUTH, PREDICTED, 3) == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert uar(TRUTH, PREDICTED, 3) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_perfect_predictions_score_one():
    assert set(scores(confusion(TRUTH, TRUTH, 3)).values()) == {1.0}


def test_constant_prediction_on_the_megc_class_table():
    """Always "negative" on 250/109/83 clips: recalls 1, 0, 0; F1 500/692, 0, 0."""
    truth = np.repeat([0, 1, 2], [250, 109, 83])
    assert uar(truth, np.zeros_like(truth), 3) == pytest.approx(1 / 3)
    assert uf1(truth, np.zeros_like(truth), 3) == pytest.approx(500 / 692 / 3)


@pytest.mark.parametrize("score", [uf1, uar])
def test_absent_class_is_an_error_that_names_it(score):
    with pytest.raises(AbsentClassError, match=r'class 1, 3.*absent="skip"') as caught:
        score([0, 2], [0, 2], 4)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, UserError)


def test_absent_class_rules():
    # Class 2 is absent but predicted once; F1 of class 0: 2/(2+1), of class 1: 2/(1+1).
    truth, predicted = [0, 0, 1], [0, 2, 1]
    assert uf1(truth, predicted, 3, absent="skip") == pytest.approx((2 / 3 + 1) / 2)
    assert uf1(truth, predicted, 3, absent="zero") == pytest.approx((2 / 3 + 1) / 3)
    assert uar(truth, predicted, 3, absent="skip") == pytest.approx((1 / 2 + 1) / 2)
    assert uar(truth, predicted, 3, absent="zero") == pytest.approx((1 / 2 + 1) / 3)


@pytest.mark.parametrize(
    ("labels", "predictions", "num_classes", "message"),
    [
        ([], [], 3, "labels is empty"),
        ([0, 1], [0], 3, "2 labels but 1 predictions"),
        ([0, 3], [0, 1], 3, "labels holds 3, expected 0 to 2"),
        ([0, 1], [0, -1], 3, "predictions holds -1"),
        ([0.0, 1.0], [0, 1], 3, "labels must be integers, got float64"),
        ([True, False], [0, 1], 3, "labels must be integers, got bool"),
        ([[0, 1]], [0, 1], 3, "labels must have one axis"),
        ([0], [0], 0, "num_classes must be at least 1"),
    ],
)
@pytest.mark.parametrize("score", [confusion, confusions, uf1, uar])
def test_bad_input(score, labels, predictions, num_classes, message):
    with pytest.raises(ValueError, match=message):
        score(labels, predictions, num_classes)


@pytest.mark.parametrize("score", [uf1, uar])
def test_unknown_rule(score):
    with pytest.raises(ValueError, match="'ignore'"):
        score([0, 1], [0, 1], 2, absent="ignore")


PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(PAIRS)
def test_scores_agree_with_a_direct_count(pairs):
    f1, recall = [], []
    for index in sorted({truth for truth, _ in pairs}):
        hits = sum(t == p == index for t, p in pairs)
        misses = sum(t == index != p for t, p in pairs)
        false_alarms = sum(p == index != t for t, p in pairs)
        f1.append(2 * hits / (2 * hits + misses + false_alarms))
        recall.append(hits / (hits + misses))
    truth, predicted = np.array(pairs).T
    assert uf1(truth, predicted, 4, absent="skip") == pytest.approx(np.mean(f1))
    assert uar(truth, predicted, 4, absent="skip") == pytest.approx(np.mean(recall))
    assert uf1(truth, predicted, 4, absent="zero") == pytest.approx(sum(f1) / 4)


@given(PAIRS, st.permutations(range(4)), st.randoms())
def test_scores_ignore_the_order_of_clips_and_the_naming_of_classes(pairs, names, random):
    shuffled = random.sample(pairs, len(pairs))
    renamed = np.array(names)[np.array(shuffled)].T
    original = np.array(pairs).T
    for score in (uf1, uar):
        before = score(*original, 4, absent="skip")
        assert score(*renamed, 4, absent="skip") == pytest.approx(before)


MATRIX = np.array([[2, 1, 0], [0, 2, 0], [1, 0, 0]])


def test_confusions_over_leading_axes():
    # Two epochs of two seeds: the predictions above, all right, all 0, all 2.
    predictions = np.array([[PREDICTED, TRUTH], [[0] * 6, [2] * 6]])
    matrices = confusions(TRUTH, predictions, 3)
    assert matrices.shape == (2, 2, 3, 3)
    assert matrices.dtype == np.int64
    assert matrices[0, 0].tolist() == MATRIX.tolist()
    assert matrices[0, 1].tolist() == [[3, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert matrices[1, 0].tolist() == [[3, 0, 0], [2, 0, 0], [1, 0, 0]]
    assert matrices[1, 1].tolist() == [[0, 0, 3], [0, 0, 2], [0, 0, 1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 4), st.integers(1, 30))
def test_confusions_are_those_of_each_row_and_scikit_learns(seed, rows, num_classes, clips):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, num_classes, clips)
    predicted = generator.integers(0, num_classes, (rows, clips))
    matrices = confusions(truth, predicted, num_classes)
    for matrix, row in zip(matrices, predicted, strict=True):
        expected = sklearn_metrics.confusion_matrix(truth, row, labels=range(num_classes))
        np.testing.assert_array_equal(matrix, expected)
        np.testing.assert_array_equal(matrix, confusion(truth, row, num_classes))


def test_confusions_refuse_bad_shapes():
    with pytest.raises(ValueError, match="2 labels but 3 predictions"):
        confusions([0, 1], np.zeros((4, 3), int), 2)
    with pytest.raises(ValueError, match="predictions must have an axis of clips"):
        confusions([0], 0, 2)
    with pytest.raises(ValueError, match="predictions is empty"):
        confusions([0, 1], np.zeros((0, 2), int), 2)
    with pytest.raises(ValueError, match="predictions must have one axis"):
        confusion([0, 1], np.zeros((4, 2), int), 2)


def test_hand_computed_scores_of_a_matrix():
    # F1 4/6, 4/5, 0; recall 2/3, 1, 0; 4 of 6 right. Class 2 is in the truth, so it counts.
    values = scores(MATRIX)
    assert tuple(values) == tuple(METRICS)
    assert HEADLINE == ("uf1", "uar")
    assert values["uf1"] == pytest.approx((4 / 6 + 4 / 5) / 3)
    assert values["uar"] == pytest.approx((2 / 3 + 1) / 3)
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["macro_f1"] == pytest.approx((4 / 6 + 4 / 5) / 3)
    assert all(np.ndim(value) == 0 for value in values.values())


def test_macro_f1_counts_a_class_that_is_only_predicted_and_none_that_is_nowhere():
    # Truth 0 0 1, predicted 0 2 1, of 4 classes: F1 of 0: 2/(2+1), of 1: 1, of 2: 0/(0+1), no 3.
    truth, predicted = [0, 0, 1], [0, 2, 1]
    assert scores(confusion(truth, predicted, 4))["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert uf1(truth, predicted, 4, absent="skip") == pytest.approx((2 / 3 + 1) / 2)
    assert uf1(truth, predicted, 4, absent="zero") == pytest.approx((2 / 3 + 1) / 4)


def test_scores_of_weighted_counts():
    # Half-counted and tripled clips: a factor for the whole matrix changes nothing.
    for factor in (0.5, 3.0):
        for name, value in scores(MATRIX * factor).items():
            assert value == pytest.approx(float(scores(MATRIX)[name]))
    # Truth of class 0 counts twice: F1 8/(6+5), 4/(2+4), 0; recall 2/3, 1, 0; right 6 of 9.
    values = scores(MATRIX * np.array([[2.0], [1.0], [1.0]]))
    assert values["uf1"] == pytest.approx((8 / 11 + 4 / 6) / 3)
    assert values["uar"] == pytest.approx((2 / 3 + 1) / 3)
    assert values["accuracy"] == pytest.approx(6 / 9)


def test_scores_over_leading_axes_skip_the_absent_classes_of_each_matrix():
    # The second has no clip of class 1: recalls 1 and 0, F1 4/(2+3) and 0.
    found = scores([[MATRIX], [[[2, 0, 0], [0, 0, 0], [1, 0, 0]]]])
    assert found["uar"].shape == (2, 1)
    assert found["uar"][:, 0] == pytest.approx([5 / 9, 1 / 2])
    assert found["uf1"][1, 0] == pytest.approx(4 / 5 / 2)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros(9, int), r"shape \(\.\.\., C, C\)"),
        (np.zeros((2, 3), int), r"shape \(\.\.\., C, C\)"),
        (np.zeros((0, 0), int), r"shape \(\.\.\., C, C\)"),
        (np.eye(2) * 1j, "must hold numbers"),
        ([[1, -1], [0, 2]], "negative or not finite"),
        ([[1, np.nan], [0, 2]], "negative or not finite"),
        ([[1, np.inf], [0, 2]], "negative or not finite"),
        (np.stack([np.eye(2), np.zeros((2, 2))]), "no clips"),
    ],
)
def test_bad_matrices(matrix, message):
    with pytest.raises(ValueError, match=message):
        scores(matrix)


def balanced_accuracy(truth, predicted):
    with warnings.catch_warnings():
        # It warns of predicted classes that are not in the truth, and of a single class.
        warnings.simplefilter("ignore", UserWarning)
        return sklearn_metrics.balanced_accuracy_score(truth, predicted)


# What each score must be, independently: (truth, predicted) -> number.
EXPECTED = {
    # Only the classes of the truth: the others are skipped.
    "uf1": lambda truth, predicted: sklearn_metrics.f1_score(
        truth, predicted, labels=np.unique(truth), average="macro"
    ),
    "uar": balanced_accuracy,
    "accuracy": sklearn_metrics.accuracy_score,
    "macro_f1": lambda truth, predicted: sklearn_metrics.f1_score(
        truth, predicted, average="macro"
    ),
}


@given(PAIRS)
def test_every_score_agrees_with_an_independent_one(pairs):
    truth, predicted = np.array(pairs).T
    values = scores(confusion(truth, predicted, 4))
    assert set(values) == set(EXPECTED)
    for name, expected in EXPECTED.items():
        assert values[name] == pytest.approx(expected(truth, predicted)), name
    zero = sklearn_metrics.f1_score(
        truth, predicted, labels=range(4), average="macro", zero_division=0
    )
    assert uf1(truth, predicted, 4, absent="zero") == pytest.approx(zero)
    assert uf1(truth, predicted, 4, "zero") <= values["macro_f1"] + 1e-12
    assert values["macro_f1"] <= values["uf1"] + 1e-12


def test_every_score_says_what_it_is():
    for metric in METRICS.values():
        assert metric.title.strip() and metric.meaning.strip()


def test_hand_computed_scores_of_classes():
    # Class 0: 2 right of 3 predicted and 3 true; 1: 2 of 3 and 2; 2: 0 of 0 and 1; 3: nowhere.
    matrix = np.zeros((4, 4), int)
    matrix[:3, :3] = MATRIX
    found = Counts(matrix)
    np.testing.assert_allclose(found.precision, [2 / 3, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(found.recall, [2 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(found.f1, [4 / 6, 4 / 5, 0, np.nan])
    assert found.truth.tolist() == [3, 2, 1, 0]


@given(PAIRS)
def test_scores_of_classes_agree_with_scikit_learn(pairs):
    truth, predicted = np.array(pairs).T
    expected = sklearn_metrics.precision_recall_fscore_support(
        truth, predicted, labels=range(4), zero_division=np.nan
    )
    found = Counts(confusion(truth, predicted, 4))
    ours = (found.precision, found.recall, found.f1, found.truth)
    for one, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, theirs, rtol=1e-12)
