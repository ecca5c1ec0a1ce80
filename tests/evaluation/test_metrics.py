import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.evaluation.metrics import AbsentClassError, accuracy, confusion, uar, uf1

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
    assert accuracy(TRUTH, PREDICTED, 3) == pytest.approx(4 / 6)


def test_perfect_predictions_score_one():
    assert uf1(TRUTH, TRUTH, 3) == uar(TRUTH, TRUTH, 3) == accuracy(TRUTH, TRUTH, 3) == 1.0


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
@pytest.mark.parametrize("score", [confusion, uf1, uar, accuracy])
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
