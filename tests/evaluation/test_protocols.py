import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.evaluation.metrics import uar, uf1
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.protocols import Selection, classes_lost, loso_folds, select


def test_loso_folds_are_the_sorted_subjects():
    assert loso_folds(["s2", "s10", "s2", "a"]) == ["a", "s10", "s2"]
    assert loso_folds(np.array(["b", "a"])) == ["a", "b"]


def test_final_takes_the_last_epoch(make_run):
    labels, epochs = select(make_run(), "final")
    assert labels.tolist() == [0, 0, 2, 0, 0, 0]
    assert epochs.tolist() == [30, 30]


def test_oracle_takes_the_best_epoch_of_each_fold_and_the_earliest_of_equals(make_run):
    labels, epochs = select(make_run(), Selection.ORACLE)
    # Fold a: epochs 20 and 30 both have 2 correct; fold b: epoch 10 has all 3.
    assert labels.tolist() == [0, 1, 0, 0, 1, 2]
    assert epochs.tolist() == [20, 10]


def test_constant_logits_predict_class_zero_at_every_selection(make_run):
    run = make_run(logits=np.zeros((3, 6, 3), np.float32))
    for selection, epochs in ((Selection.FINAL, [30, 30]), (Selection.ORACLE, [10, 10])):
        labels, chosen = select(run, selection)
        assert labels.tolist() == [0] * 6
        assert chosen.tolist() == epochs
        # Two clips a class, all called 0: recalls 1, 0, 0; F1 of class 0: 4 / (6 + 2).
        assert uar(run.labels, labels, 3) == pytest.approx(1 / 3)
        assert uf1(run.labels, labels, 3) == pytest.approx(1 / 6)


@given(st.permutations([0, 1, 2, 0, 1, 2]))
def test_final_does_not_look_at_the_labels(labels):
    logits = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    run = Predictions(
        logits=logits,
        epochs=[1, 2, 3, 4],
        fold=[0, 1, 0, 1, 0, 1],
        folds=["a", "b"],
        clips=list("uvwxyz"),
        subjects=["a", "b"] * 3,
        sources=["s"] * 6,
        labels=labels,
        class_names=["n", "p", "s"],
        train_loss=np.ones((2, 4), np.float32),
    )
    predicted, epochs = select(run, "final")
    np.testing.assert_array_equal(predicted, logits[-1].argmax(axis=-1))
    assert epochs.tolist() == [4, 4]
    # The oracle is at least as good on every fold: it may choose the last epoch too.
    best, _ = select(run, "oracle")
    for fold in (0, 1):
        own = run.fold == fold
        assert np.sum((best == run.labels)[own]) >= np.sum((predicted == run.labels)[own])


def test_unknown_selection(make_run):
    with pytest.raises(ValueError, match="'best'"):
        select(make_run(), "best")


def test_every_oracle_label_carries_the_warning():
    assert (
        "selected on the test subject; for comparison with published tables only"
        in Selection.ORACLE.description
    )
    assert Selection.FINAL.description == "last epoch"


def test_classes_lost():
    labels = [0, 0, 1, 1, 2, 3, 3]
    subjects = ["a", "b", "b", "b", "b", "a", "c"]
    assert classes_lost(labels, subjects) == {"b": (1, 2)}
    assert classes_lost(labels[:2], subjects[:2]) == {}
    assert classes_lost([0, 1], ["z", "y"]) == {"y": (1,), "z": (0,)}
    with pytest.raises(ValueError, match="shorter"):
        classes_lost([0, 1], ["a"])
