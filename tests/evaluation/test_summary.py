import json

import numpy as np
import pytest

from htnet_jax.errors import UserError
from htnet_jax.evaluation import statistics
from htnet_jax.evaluation.selection import select
from htnet_jax.evaluation.summary import compare, describe, source_masks, subject_table, summarize

NAMES = ("net", "base")


def test_scores_of_a_hand_made_run(make_run):
    summary = summarize(make_run())
    assert list(summary) == ["final", "oracle"]
    assert list(summary["final"]) == ["composite", "smic", "samm"]
    # final, truth 0 1 2 0 1 2, predicted 0 0 2 0 0 0:
    # TP 2 0 1; predicted 5 0 1; truth 2 2 2 -> F1 4/7, 0, 2/3; recall 1, 0, 1/2.
    composite = summary["final"]["composite"]
    assert composite["uf1"] == pytest.approx((4 / 7 + 2 / 3) / 3)
    assert composite["uar"] == pytest.approx(1 / 2)
    assert composite["accuracy"] == pytest.approx(1 / 2)
    assert composite["macro_f1"] == pytest.approx((4 / 7 + 2 / 3) / 3)
    assert composite["clips"] == 6
    assert composite["subjects"] == 2
    assert composite["confusion"] == [[2, 0, 0], [2, 0, 0], [1, 0, 1]]
    assert composite["per_class"] == {
        "negative": {"precision": 2 / 5, "recall": 1, "f1": pytest.approx(4 / 7), "clips": 2},
        "positive": {"precision": None, "recall": 0, "f1": 0, "clips": 2},
        "surprise": {"precision": 1, "recall": 1 / 2, "f1": pytest.approx(2 / 3), "clips": 2},
    }
    assert not {"absent", "uf1_std", "ece_scaled", "temperature"} & set(composite)
    # oracle: smic predicts 0 1 0 -> F1 2/3, 1, 0; samm is perfect.
    assert summary["oracle"]["smic"]["uf1"] == pytest.approx(5 / 9)
    assert summary["oracle"]["samm"]["uf1"] == 1.0


def test_calibration_of_a_hand_made_run(make_run):
    composite = summarize(make_run())["final"]["composite"]
    # Logits 1 0 0: the predicted class has p = e / (e + 2); half of the clips are right.
    p = np.e / (np.e + 2)
    assert composite["ece"] == pytest.approx(abs(p - 1 / 2))
    assert composite["nll"] == pytest.approx(-(np.log(p) + np.log((1 - p) / 2)) / 2)


def test_intervals_are_those_of_the_bootstrap(make_wide):
    run = make_wide(seeds=2)
    summary = summarize(run)
    for group, mask in source_masks(run).items():
        table = subject_table(run, select(run, "final").predicted, mask)
        for name, ends in statistics.intervals(table).items():
            assert summary["final"][group][f"{name}_interval"] == list(ends)


def test_a_single_subject_has_no_interval(make_run):
    summary = summarize(make_run())
    assert summary["final"]["smic"]["subjects"] == 1
    assert summary["final"]["smic"]["uf1_interval"] == [None, None]
    assert None not in summary["final"]["composite"]["uf1_interval"]


def test_several_seeds_are_averaged_with_their_deviation(make_run):
    one = make_run()
    perfect = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    run = make_run(
        logits=np.stack([one.logits[0], np.broadcast_to(perfect, (3, 6, 3))]),
        seeds=[7, 8],
        train_loss=np.concatenate([one.train_loss, one.train_loss]),
    )
    composite = summarize(run)["final"]["composite"]
    # UAR 1/2 and 1: mean 3/4, deviation with n - 1: sqrt(2 * (1/4)^2) = sqrt(1/8).
    assert composite["uar"] == pytest.approx(3 / 4)
    assert composite["uar_std"] == pytest.approx(np.sqrt(1 / 8))
    # Counts are summed over seeds, clips are not.
    assert composite["confusion"] == [[4, 0, 0], [2, 2, 0], [1, 0, 3]]
    assert composite["per_class"]["negative"]["clips"] == 2
    assert composite["clips"] == 6


def test_inner_folds_add_a_selection_and_a_temperature(make_run, make_inner):
    summary = summarize(make_run(inner=make_inner()))
    assert list(summary) == ["final", "inner", "oracle"]
    # At the last epoch fold a validates with 3 of 3 right and fold b with 1 of 3, all by a margin
    # of 1: a is trusted more (T < 1), b less.
    final = summary["final"]
    own = [final[name]["temperature"] for name in ("smic", "samm")]
    assert own[0] < 1 < own[1]
    assert final["composite"]["temperature"] == pytest.approx(sum(own) / 2)
    # Logits of 1, 0, 0 divided by T; 1 of the 3 clips of fold b is right.
    weight = np.exp(1 / own[1])
    likelihoods = np.log(np.array([weight, 1, 1]) / (weight + 2))
    assert final["samm"]["nll_scaled"] == pytest.approx(-likelihoods.mean())
    assert "temperature" not in summary["oracle"]["composite"]


def test_absent_classes_are_skipped_and_named(make_run):
    summary = summarize(make_run(labels=[0, 1, 1, 0, 1, 2]))
    entry = summary["final"]["smic"]
    # Truth 0 1 1, predicted 0 0 2: F1 of class 0: 2/3, of class 1: 0; class 2 is absent.
    assert entry["uf1"] == pytest.approx(1 / 3)
    assert entry["absent"] == ["surprise"]
    assert entry["per_class"]["surprise"] == {"precision": 0, "recall": None, "f1": 0, "clips": 0}
    assert "absent" not in summary["final"]["samm"]


def test_a_summary_is_plain_json(make_run, make_inner):
    run = make_run(inner=make_inner())
    for content in (summarize(run), describe(run)):
        assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_known_sources_come_in_the_order_of_the_papers(make_run):
    run = make_run(
        sources=["zoo", "mmew", "samm", "casme2", "smic", "art"], subjects=list("uvwxyz")
    )
    names = ["composite", "smic", "casme2", "samm", "mmew", "art", "zoo"]
    masks = source_masks(run)
    assert list(masks) == names
    assert masks["composite"].all()
    assert masks["samm"].tolist() == [False, False, True, False, False, False]


def test_a_source_called_composite_is_refused(make_run):
    with pytest.raises(UserError, match="rename it"):
        summarize(make_run(sources=["composite"] * 6))


def test_what_was_run(make_run, make_inner):
    run = make_run(inner=make_inner(), protocol_folds=["a", "b", "c"])
    assert describe(run) == {
        "dataset": "megc2019/release/1.0.0",
        "fingerprint": "f" * 64,
        "protocol": "loso",
        "protocol_in_words": "leave one subject out",
        "folds": 2,
        "missing_folds": ["c"],
        "clips": 6,
        "classes": ["negative", "positive", "surprise"],
        "seeds": [7],
        "recorded_epochs": 3,
        "last_epoch": 30,
        "inner_folds": 1,
        "inner_refit": True,
    }
    assert describe(make_run())["inner_folds"] == 0
    assert describe(make_run())["inner_refit"] is None


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
        # Of the four ways to swap two subjects, none and both differ by 1; one of them leaves each
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
        "1 clip only in net: a3",
        "1 clip only in base: x3",
        "1 clip has other labels: b1",
        "1 clip has other subjects: a2",
        "Compare runs on one data set",
    ):
        assert part in message
    assert "other sources" not in message


def test_a_long_list_of_clips_is_cut(make_wide):
    first = make_wide()
    second = make_wide(clips=[f"y{index}" for index in range(24)])
    with pytest.raises(UserError, match=r"24 clips only in net: s00_0, .* and 14 more"):
        compare(first, second, NAMES)
