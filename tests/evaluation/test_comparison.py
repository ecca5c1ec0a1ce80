import numpy as np
import pytest

from htnet_jax.errors import UserError
from htnet_jax.evaluation.comparison import compare

NAMES = ("net", "base")


def predicting(make_run, predicted, **changes):
    """A run of one recorded epoch."""
    predicted = np.asarray(predicted)
    return make_run(
        logits=np.eye(3, dtype=np.float32)[predicted][None, None],
        epochs=[1],
        train_loss=np.ones((1, 2, 1), np.float32),
        **changes,
    )


def test_a_perfect_run_against_one_that_is_always_wrong(make_run):
    perfect = predicting(make_run, [0, 1, 2, 0, 1, 2])
    wrong = predicting(make_run, [1, 2, 0, 1, 2, 0])
    pair = compare(perfect, wrong, NAMES)
    assert (pair.first, pair.second) == NAMES
    assert list(pair.differences) == ["final"]
    assert list(pair.differences["final"]) == ["composite", "smic", "samm"]
    for score in ("uf1", "uar"):
        found = pair.differences["final"]["composite"][score]
        # Of the four ways to swap two people, none and both differ by 1; one of them leaves each
        # run half right, no difference.
        assert found == (pytest.approx(1), pytest.approx(1), pytest.approx(1), pytest.approx(0.5))
        alone = pair.differences["final"]["smic"][score]
        assert alone.difference == pytest.approx(1)
        assert np.isnan([alone.low, alone.high]).all()
        assert alone.p_value == 1
    back = compare(wrong, perfect, NAMES)
    assert back.differences["final"]["composite"]["uf1"].difference == pytest.approx(-1)


def test_a_run_against_itself(make_run, make_inner):
    run = make_run(inner=make_inner())
    differences = compare(run, run, NAMES).differences
    assert list(differences) == ["final", "inner"]
    for groups in differences.values():
        for scores in groups.values():
            assert {found.difference for found in scores.values()} == {0}
            assert {found.p_value for found in scores.values()} == {1}


def test_each_selection_compares_what_it_selects(make_run, make_inner):
    """At `inner` fold a takes epoch 20 (2 right), fold b epoch 10 (3); at `final` 2 and 1."""
    run = make_run(inner=make_inner())
    wrong = predicting(make_run, [1, 2, 0, 1, 2, 0])
    differences = compare(run, wrong, NAMES).differences
    # Accuracy 3/6 and 5/6; the single epoch stands for itself under both.
    assert differences["final"]["composite"]["accuracy"].difference == pytest.approx(1 / 2)
    assert differences["inner"]["composite"]["accuracy"].difference == pytest.approx(5 / 6)


def test_inner_is_compared_only_with_what_looked_at_no_test_subject(make_run, make_inner):
    with_inner, without = make_run(inner=make_inner()), make_run()
    assert list(compare(with_inner, without, NAMES).differences) == ["final"]
    assert list(compare(without, without, NAMES).differences) == ["final"]


def test_the_order_of_clips_and_the_number_of_seeds_do_not_matter(make_wide):
    first = make_wide(key=1, seeds=2)
    order = np.random.default_rng(0).permutation(len(first.clips))
    second = make_wide(key=2)
    fields = ("clips", "subjects", "sources", "labels", "fold")
    shuffled = make_wide(
        logits=second.logits[:, :, order],
        **{name: getattr(second, name)[order] for name in fields},
    )
    assert compare(first, shuffled, NAMES) == compare(first, second, NAMES)
    # Other folds of the same clips are fine too.
    halves = make_wide(
        key=2,
        fold=first.fold // 3,
        folds=["x", "y"],
        protocol_folds=["x", "y"],
        train_loss=np.ones((1, 2, 3), np.float32),
    )
    assert compare(first, halves, NAMES) == compare(first, second, NAMES)


def test_all_that_keeps_two_runs_apart_is_reported_at_once(make_run):
    first = make_run()
    second = make_run(
        clips=["a1", "a2", "x3", "b1", "b2", "b3"],
        labels=[0, 1, 2, 1, 1, 2],
        subjects=["a", "q", "a", "b", "b", "b"],
        class_names=["negative", "positive", "other"],
    )
    with pytest.raises(UserError) as caught:
        compare(first, second, NAMES)
    message = str(caught.value)
    for part in (
        "net and base cannot be compared",
        "classes: ['negative', 'positive', 'surprise'], ['negative', 'positive', 'other']",
        "1 clips only in net: a3",
        "1 clips only in base: x3",
        "1 clips have other labels: b1",
        "1 clips have other subjects: a2",
        "Compare runs on one data set",
    ):
        assert part in message
    assert "other sources" not in message


def test_a_long_list_of_clips_is_cut(make_wide):
    first = make_wide()
    second = make_wide(clips=[f"y{index}" for index in range(24)])
    with pytest.raises(UserError, match=r"24 clips only in net: s00_0, .* and 14 more"):
        compare(first, second, NAMES)
