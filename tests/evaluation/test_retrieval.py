import itertools
import json

import numpy as np
import pytest

from htnet_jax.evaluation import retrieval, statistics
from htnet_jax.evaluation.predictions import Described
from htnet_jax.evaluation.summary import subject_table


@pytest.fixture
def run(make_run, make_described):
    return make_run(described=make_described())


def test_nearest_are_sets_of_the_folds_training_clips(run):
    described = run.described
    order = retrieval.ranking(described.similarities, described.trained[run.fold])
    expected = [[1, 2, 0], [2, 1, 0], [1, 2, 0], [2, 0, 3], [0, 3, 2], [3, 2, 0]]
    np.testing.assert_array_equal(order[0], [[*row, -1] for row in expected])
    truth, each, mean = retrieval.in_words(run)
    assert truth.tolist() == ["4", "4+7", "12", "0", "4+7", ""]
    assert each.tolist() == [mean.tolist()] == [["4", "4+7", "4", "4+7", "0", "12"]]


def test_of_equally_near_sets_the_first_counts():
    order = retrieval.ranking(np.zeros((1, 3)), np.array([[False, True, True]]))
    np.testing.assert_array_equal(order, [[1, 2, -1]])


def test_scores_by_hand(run):
    found = retrieval.summarize(run)
    assert found["recall_at_1"] == pytest.approx(2 / 5)
    assert found["recall_at_5"] == pytest.approx(4 / 5)
    # Unit 4: 2 right, 2 too many, 1 missed; 7: 1, 1, 1; 12: never found.
    assert found["unit_macro_f1"] == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    assert found["unseen"] == pytest.approx(1 / 5)
    assert found["positives"] == 2.0
    counts = ("clips", "subjects", "clips_without_units", "sets")
    assert [found[name] for name in counts] == [5, 2, 1, 4]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_chance_is_the_mean_over_permutations_of_the_truth(
    run, make_run, make_described, monkeypatch
):
    found = retrieval.summarize(run)
    # All 24 of the clips that can be recalled, each as if it were the truth.
    monkeypatch.setattr(retrieval, "PERMUTATIONS", 1)
    every = [
        retrieval.summarize(make_run(described=make_described(truth=[a, b, 3, c, d, -1])))
        for a, b, c, d in itertools.permutations([1, 2, 0, 2])
    ]
    expected = {name: np.mean([one[name] for one in every]) for name in retrieval.SCORES}
    # By hand: how often the nearest set is drawn, or any that the fold has trained on.
    assert expected["recall_at_1"] == pytest.approx((1 + 2 + 2 + 1) / 4 / 5)
    assert expected["recall_at_5"] == pytest.approx((4 + 4 + 3 + 3) / 4 / 5)
    for name, value in expected.items():
        assert found[f"{name}_chance"] == pytest.approx(value, abs=0.02)
    # 2 of the 24 give all four their nearest set.
    assert found["recall_at_1_chance_range"] == [0.0, pytest.approx(4 / 5)]


def test_what_cannot_be_recalled_cannot_by_chance(make_run, make_described):
    """A set of one subject, whose clips train on none of it."""
    trained = np.array([[True, False, False, False], [False, True, True, True]])
    found = retrieval.summarize(
        make_run(described=make_described(truth=[1, 2, 3, 0, 0, 0], trained=trained))
    )
    assert found["unseen"] == 1.0
    assert [found[f"recall_at_{top}_chance"] for top in retrieval.TOP] == [0.0, 0.0]
    assert found["unit_macro_f1_chance"] > 0


def test_one_set_a_class_is_scored_as_a_class(make_wide):
    """Recall@1 is then the accuracy, and the macro-F1 of units that of classes; intervals too."""
    plain = make_wide(seeds=2)
    described = Described(
        similarities=plain.logits[:, -1],
        sets=["1", "2", "4"],
        sentences=["a", "b", "c"],
        truth=plain.labels,
        trained=np.ones((6, 3), bool),
        positives=np.ones(6, np.float32),
    )
    found = retrieval.summarize(make_wide(seeds=2, described=described))
    table = subject_table(plain, plain.logits[:, -1].argmax(axis=-1))
    spans = statistics.intervals(table)
    for name, metric in (("recall_at_1", "accuracy"), ("unit_macro_f1", "macro_f1")):
        np.testing.assert_allclose(found[f"{name}_interval"], spans[metric])
    right = (plain.logits[:, -1].argmax(axis=-1) == plain.labels).mean(axis=1)
    assert found["recall_at_1"] == pytest.approx(right.mean())
    assert found["recall_at_1_std"] == pytest.approx(right.std(ddof=1))
    assert (found["recall_at_5"], found["recall_at_5_chance"]) == (1.0, 1.0)


def test_no_units_no_scores(make_run, make_described):
    assert retrieval.summarize(make_run()) is None
    assert retrieval.summarize(make_run(described=make_described(truth=[-1] * 6))) is None
    assert retrieval.in_words(make_run()) is None
    # Clips without any unit are known, but there is no unit to have an F1.
    sets = {"sets": ["0", "4", "4+7", "12"], "truth": [0] * 6, "trained": [[1, 0, 0, 0]] * 2}
    sets["trained"] = np.array(sets["trained"], bool)
    found = retrieval.summarize(make_run(described=make_described(**sets)))
    assert found["recall_at_1"] == 1.0
    assert found["unit_macro_f1"] is None
    assert found["unit_macro_f1_interval"] == [None, None]
