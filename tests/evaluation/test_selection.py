import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htnet_jax.evaluation import metrics
from htnet_jax.evaluation.selection import (
    Selection,
    available,
    inner_choice,
    oracle_choices,
    select,
)

fixtures_are_reused = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_selection_says_how_it_was_made():
    assert Selection.FINAL.description == "last epoch"
    assert "validation subjects, taken from the training subjects" in Selection.INNER.description
    assert Selection.ORACLE.description.endswith(
        "selected on the test subject; for comparison with published tables only"
    )


def test_what_a_run_allows(make_run, make_inner):
    assert available(make_run()) == ("final", "oracle")
    assert available(make_run(inner=make_inner())) == ("final", "inner", "oracle")
    single = make_run(
        logits=np.zeros((1, 1, 6, 3), np.float32),
        epochs=[5],
        train_loss=np.ones((1, 2, 1), np.float32),
    )
    assert available(single) == ("final",)


def test_final_takes_the_last_epoch(make_run):
    run = make_run()
    chosen = select(run, "final")
    assert chosen.predicted.tolist() == [[0, 0, 2, 0, 0, 0]]
    assert chosen.epochs.tolist() == [[30, 30]]
    np.testing.assert_array_equal(chosen.logits, run.logits[:, -1])


def test_oracle_takes_the_best_epoch_of_each_fold_and_the_latest_of_equals(make_run):
    chosen = select(make_run(), Selection.ORACLE)
    # Fold a: epochs 20 and 30 both have 2 correct; fold b: epoch 10 has all 3.
    assert chosen.predicted.tolist() == [[0, 0, 2, 0, 1, 2]]
    assert chosen.epochs.tolist() == [[30, 10]]


def test_the_oracle_had_training_ended_earlier(make_run):
    assert oracle_choices(make_run()).tolist() == [[[0, 0], [1, 0], [2, 0]]]


def test_inner_takes_the_best_epoch_on_the_validation_clips(make_run, make_inner):
    run = make_run(inner=make_inner())
    # Fold a validates best at 20 and 30, fold b at 10 and 20: the earliest of each.
    assert inner_choice(run).tolist() == [[1, 0]]
    chosen = select(run, "inner")
    assert chosen.epochs.tolist() == [[20, 10]]
    # Refitted: the fold's own model at that epoch.
    assert chosen.predicted.tolist() == [[0, 1, 0, 0, 1, 2]]


def test_inner_without_a_refit_takes_the_inner_models_own_predictions(make_run, make_inner):
    chosen = select(make_run(inner=make_inner(refit=np.bool_(False))), "inner")
    # The inner models call everything 2 at epoch 20 and 1 at epoch 10.
    assert chosen.predicted.tolist() == [[2, 2, 2, 1, 1, 1]]


def test_several_inner_models_are_averaged_as_probabilities(make_run, make_inner):
    # Mean of (.9 .05 .05) and (.001 .6 .399): .4505 .325 .2245, so class 0; the mean of the
    # logits would be class 1.
    pair = np.log([[0.9, 0.05, 0.05], [0.001, 0.6, 0.399]]).astype(np.float32)
    test_logits = np.broadcast_to(pair[None, :, None, None], (1, 2, 3, 6, 3))
    assert pair.mean(axis=0).argmax() == 1
    inner = make_inner(
        test_logits=test_logits,
        part=[0, 0, 1, 0, 0, 1],
        refit=np.bool_(False),
    )
    chosen = select(make_run(inner=inner), "inner")
    assert chosen.predicted.tolist() == [[0] * 6]
    np.testing.assert_allclose(
        np.exp(chosen.logits), np.broadcast_to([0.4505, 0.325, 0.2245], (1, 6, 3)), rtol=1e-5
    )


def test_validation_clips_of_all_inner_folds_are_pooled(make_run, make_inner):
    # Fold a: its first part (truth 0) alone prefers epoch 10; pooled UF1 is (2/4 + 0) / 2 there
    # and (0 + 4/5) / 2 at epoch 20. Fold b: the same for its second part (truth 1).
    inner = make_inner(
        labels=[0, 1, 1, 0, 0, 1],
        part=[0, 1, 1, 0, 0, 1],
        logits=np.eye(3, dtype=np.float32)[
            [[[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [2, 2, 2, 2, 2, 2]]]
        ],
        test_logits=np.zeros((1, 2, 3, 6, 3), np.float32),
    )
    assert inner_choice(make_run(inner=inner)).tolist() == [[1, 1]]


def test_seeds_choose_on_their_own(make_run, make_inner):
    one, inner = make_run(), make_inner()
    run = make_run(
        logits=np.concatenate([one.logits, one.logits[:, ::-1]]),
        seeds=[7, 8],
        train_loss=np.concatenate([one.train_loss, one.train_loss]),
        inner=make_inner(
            logits=np.concatenate([inner.logits, inner.logits[:, ::-1]]),
            test_logits=np.concatenate([inner.test_logits, inner.test_logits]),
        ),
    )
    # The second seed's epochs run backwards: best of fold a first at 10, of fold b at 20.
    assert select(run, "inner").epochs.tolist() == [[20, 10], [10, 20]]
    assert select(run, "oracle").epochs.tolist() == [[30, 10], [20, 30]]


def test_inner_needs_inner_folds(make_run):
    with pytest.raises(ValueError, match="no selection 'inner'"):
        select(make_run(), "inner")
    with pytest.raises(ValueError, match="'best'"):
        select(make_run(), "best")


@fixtures_are_reused
@given(st.permutations([0, 1, 2, 0, 1, 2]))
def test_neither_final_nor_inner_looks_at_the_test_labels(make_run, make_inner, labels):
    for refit in (True, False):
        inner = make_inner(refit=np.bool_(refit))
        for selection in ("final", "inner"):
            before = select(make_run(inner=inner), selection)
            after = select(make_run(inner=inner, labels=labels), selection)
            np.testing.assert_array_equal(after.logits, before.logits)
            np.testing.assert_array_equal(after.epochs, before.epochs)


@fixtures_are_reused
@given(st.integers(0, 2**32 - 1))
def test_the_oracle_is_at_least_as_good_as_any_epoch_on_every_fold(make_wide, key):
    run = make_wide(key=key, seeds=2, epochs=5)
    right = select(run, "oracle").predicted == run.labels
    every = run.logits.argmax(axis=-1) == run.labels
    for fold in range(len(run.folds)):
        mine = right[:, run.fold == fold].sum(axis=-1)
        np.testing.assert_array_equal(mine, every[..., run.fold == fold].sum(axis=-1).max(axis=1))


def test_constant_logits_predict_class_zero_at_every_selection(make_run):
    run = make_run(logits=np.zeros((1, 3, 6, 3), np.float32))
    for selection in (Selection.FINAL, Selection.ORACLE):  # the latest of equal epochs
        chosen = select(run, selection)
        assert chosen.predicted.tolist() == [[0] * 6]
        assert chosen.epochs.tolist() == [[30, 30]]
        # Two clips a class, all called 0: recalls 1, 0, 0; F1 of class 0: 4 / (6 + 2).
        assert metrics.uar(run.labels, chosen.predicted[0], 3) == pytest.approx(1 / 3)
        assert metrics.uf1(run.labels, chosen.predicted[0], 3) == pytest.approx(1 / 6)
