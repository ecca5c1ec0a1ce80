import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from htnet_jax.evaluation import metrics
from htnet_jax.evaluation.statistics import (
    Comparison,
    SubjectConfusions,
    compare,
    intervals,
    subject_confusions,
)

CLASSES = np.array([250, 109, 83]) / 442  # the class shares of MEGC 2019


def population(generator, subjects, effect, seeds=1, strength=1.6):
    """(S, P, 3, 3) counts of subjects with 1 to 30 clips, classes and a face of their own.

    `effect`: standard deviation of what a face adds to all its logits, in units of the clips' own.
    """
    clips = np.minimum(generator.geometric(1 / 6.5, subjects), 30)
    owner = np.repeat(np.arange(subjects), clips)
    shares = generator.dirichlet(3 * CLASSES, subjects)
    labels = (generator.random(owner.size)[:, None] > shares[owner].cumsum(axis=1)[:, :2]).sum(1)
    logits = strength * np.eye(3)[labels] + generator.normal(0, effect, (subjects, 3))[owner]
    logits = logits + generator.normal(0, 1, (owner.size, 3))
    predicted = (logits + generator.normal(0, 0.5, (seeds, owner.size, 3))).argmax(axis=-1)
    cells = (owner * 3 + labels) * 3 + predicted
    counts = [np.bincount(row, minlength=subjects * 9).reshape(subjects, 3, 3) for row in cells]
    return np.stack(counts).astype(np.int64)


def as_table(counts, strata=None):
    subjects = counts.shape[1]
    names = np.array([f"p{index:03}" for index in range(subjects)])
    return SubjectConfusions(counts, names, np.full(subjects, "s") if strata is None else strata)


def true_scores(generator, **options):
    return metrics.scores(population(generator, 100_000, **options).sum(axis=1)[0])


def run(seed=0, subjects=12, seeds=2, strength=1.6, **options):
    generator = np.random.default_rng(seed)
    return as_table(population(generator, subjects, 1.0, seeds, strength), **options)


def test_table_by_hand():
    table = subject_confusions(
        labels=[0, 1, 1, 0, 1],
        predicted=[[0, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
        subjects=["b", "a", "b", "b", 10],
        num_classes=2,
        sources=["x", "y", "x", "x", "x"],
    )
    assert table.subjects.tolist() == ["10", "a", "b"]
    assert table.strata.tolist() == ["x", "y", "x"]
    assert table.counts.dtype == np.int64
    assert table.counts[0].tolist() == [[[0, 0], [1, 0]], [[0, 0], [0, 1]], [[2, 0], [1, 0]]]
    assert table.counts[1].tolist() == [[[0, 0], [0, 1]], [[0, 0], [0, 1]], [[0, 2], [0, 1]]]


def test_strata_of_subjects():
    arguments = ([0, 1, 0], [[0, 1, 1]], ["a", "b", "a"], 2)
    assert subject_confusions(*arguments).strata.tolist() == ["", ""]
    # Someone of two data sets is resampled with those of the same two.
    both = subject_confusions(*arguments, sources=["z", "y", "x"])
    assert both.strata.tolist() == ["x+z", "y"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 3))
def test_table_adds_up_whatever_the_order_of_clips(seed, clips, seeds):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, clips)
    predicted = generator.integers(0, 3, (seeds, clips))
    subjects = generator.integers(0, 5, clips)
    table = subject_confusions(labels, predicted, subjects, 3)
    np.testing.assert_array_equal(
        table.counts.sum(axis=1), metrics.confusions(labels, predicted, 3)
    )
    order = generator.permutation(clips)
    again = subject_confusions(labels[order], predicted[:, order], subjects[order], 3)
    np.testing.assert_array_equal(table.counts, again.counts)
    np.testing.assert_array_equal(table.subjects, again.subjects)


@pytest.mark.parametrize(
    ("labels", "predicted", "subjects", "sources", "message"),
    [
        ([0, 1], [0, 1], ["a", "b"], None, r"predicted must have shape \(S, M\)"),
        ([0, 1], np.zeros((0, 2), int), ["a", "b"], None, r"predicted must have shape \(S, M\)"),
        ([0], [[0, 1]], ["a", "b"], None, r"labels must have shape \(2,\)"),
        ([0, 1], [[0, 1]], ["a"], None, r"subjects must have shape \(2,\)"),
        ([0, 1], [[0, 1]], ["a", "b"], ["s"], r"sources must have shape \(2,\)"),
        ([0, 1], [[0, 2]], ["a", "b"], None, "predictions holds 2"),
        ([], np.zeros((1, 0), int), [], None, "labels is empty"),
    ],
)
def test_bad_arrays(labels, predicted, subjects, sources, message):
    with pytest.raises(ValueError, match=message):
        subject_confusions(labels, predicted, subjects, 2, sources)


@pytest.mark.parametrize(
    ("counts", "subjects", "message"),
    [
        (np.ones((1, 2, 3), int), ["a", "b"], r"\(S, P, C, C\)"),
        (np.ones((1, 2, 3, 2), int), ["a", "b"], r"\(S, P, C, C\)"),
        (np.ones((1, 2, 2, 2), int), ["a"], "subjects and strata"),
        (np.array([[[[1, 0], [0, 0]]], [[[0, 0], [0, 1]]]]), ["a"], "true classes differ"),
        (np.zeros((1, 2, 2, 2), int), ["a", "b"], "a subject has no clip"),
    ],
)
def test_bad_tables(counts, subjects, message):
    with pytest.raises(ValueError, match=message):
        SubjectConfusions(counts, np.array(subjects), np.full(len(subjects), "s"))


def test_interval_by_hand():
    """Two subjects of one clip, one right and one wrong: every resample has 0, 1/2 or 1 right."""
    table = subject_confusions([0, 0], [[0, 1]], ["a", "b"], 2)
    # One degree of freedom: the quantiles are so far out that the range of the resamples is left.
    assert intervals(table)["accuracy"] == (0.0, 1.0)
    # Many subjects: sqrt(n / (n - 1)) * t times the standard error of a share, p = 1/2, n = 400.
    labels = np.zeros(400, int)
    table = subject_confusions(labels, [np.arange(400) % 2], np.arange(400), 2)
    low, high = intervals(table, resamples=20000)["accuracy"]
    half = math.sqrt(400 / 399) * stats.t.ppf(0.975, 399) * math.sqrt(0.25 / 400)
    # Shares come in steps of 1/400; a quantile of 20000 resamples has an error of about 0.0005.
    assert low == pytest.approx(0.5 - half, abs=0.004)
    assert high == pytest.approx(0.5 + half, abs=0.004)
    # 80 % of a normal: 1.2816 standard errors.
    low, high = intervals(table, resamples=20000, level=0.8)["accuracy"]
    assert high - low == pytest.approx(2 * 1.2816 * 0.025, abs=0.005)


def test_intervals_have_every_score_and_hold_the_estimate():
    table = run(subjects=20)
    found = intervals(table)
    assert tuple(found) == tuple(metrics.METRICS)
    values = metrics.scores(table.counts.sum(axis=1))
    for name, (low, high) in found.items():
        assert 0 <= low < values[name].mean() < high <= 1
        narrow = intervals(table, level=0.5)[name]
        assert low < narrow[0] < narrow[1] < high


def test_a_single_subject_has_no_interval():
    table = run(subjects=1)
    for low, high in intervals(table).values():
        assert math.isnan(low)
        assert math.isnan(high)
    for name, result in compare(table, run(subjects=1)).items():
        assert result.difference == 0, name
        assert math.isnan(result.low)
        assert math.isnan(result.high)
        assert result.p_value == 1


def test_subjects_are_drawn_within_their_stratum():
    """Half of the clips of each of two data sets: all right in one, all wrong in the other."""
    labels = np.zeros(40, int)
    predicted = [np.repeat([0, 1], 20)]
    subjects, sources = np.repeat(np.arange(20), 2), np.repeat(["x", "y"], 20)
    fixed = subject_confusions(labels, predicted, subjects, 2, sources)
    assert intervals(fixed)["accuracy"] == (0.5, 0.5)
    low, high = intervals(subject_confusions(labels, predicted, subjects, 2))["accuracy"]
    assert low < 0.35
    assert high > 0.65


def test_subjects_alone_in_their_stratum_join_the_largest():
    table = run(subjects=9)
    alone = [f"s{index}" for index in range(9)]
    assert intervals(as_table(table.counts, np.array(alone))) == intervals(table)
    mixed = np.array(["x", "x", "y", "y", "y", "y", "x", "z", "w"])
    joined = np.array(["x", "x", "y", "y", "y", "y", "x", "y", "y"])
    assert intervals(as_table(table.counts, mixed)) == intervals(as_table(table.counts, joined))


def test_seeds_are_averaged_not_resampled():
    table = run(subjects=15, seeds=1)
    assert intervals(as_table(np.tile(table.counts, (4, 1, 1, 1)))) == intervals(table)


def test_the_same_seed_gives_the_same_result():
    a, b = run(0, subjects=16), run(0, subjects=16, seeds=3)
    assert intervals(a) == intervals(a)
    assert intervals(a, seed=1) != intervals(a)
    assert compare(a, b) == compare(a, b)
    assert compare(a, b, seed=1) != compare(a, b)


@pytest.mark.parametrize("subjects", [6, 20])
def test_groups_of_resamples_change_nothing(monkeypatch, subjects):
    a, b = paired(0, subjects)
    whole = intervals(a), compare(a, b)
    monkeypatch.setattr("htnet_jax.evaluation.statistics._CELLS_AT_ONCE", 1000)
    assert (intervals(a), compare(a, b)) == whole


def test_coverage_and_that_clips_in_place_of_subjects_would_fail():
    """Strong faces: 95 % intervals hold the truth about 95 times in 100; over clips far fewer."""
    generator = np.random.default_rng(3)
    truth = true_scores(generator, effect=2.0)
    populations, by_clips, held, held_by_clips = 400, 100, 0, 0
    for index in range(populations):
        counts = population(generator, 40, effect=2.0)
        low, high = intervals(as_table(counts), resamples=500, seed=index)["uf1"]
        held += low <= truth["uf1"] <= high
        if index >= by_clips:
            continue
        # Each clip a subject of its own.
        cells = np.repeat(np.tile(np.arange(9), 40), counts.reshape(-1))
        clips = as_table(np.eye(9, dtype=np.int64)[cells].reshape(1, -1, 3, 3))
        low, high = intervals(clips, resamples=500, seed=index)["uf1"]
        held_by_clips += low <= truth["uf1"] <= high
    # The 0.1 % tails of so many draws: 93 % is what we promise, 97 % would be too wide.
    assert stats.binom.ppf(0.001, populations, 0.93) <= held
    assert held <= stats.binom.ppf(0.999, populations, 0.97)
    assert held_by_clips < stats.binom.ppf(0.001, by_clips, 0.93)


def test_coverage_of_sixteen_subjects():
    generator = np.random.default_rng(4)
    truth = true_scores(generator, effect=1.0)
    populations = 400
    held = dict.fromkeys(metrics.METRICS, 0)
    for index in range(populations):
        table = as_table(population(generator, 16, effect=1.0))
        for name, (low, high) in intervals(table, resamples=500, seed=index).items():
            held[name] += bool(low <= truth[name] <= high)
    for name, count in held.items():
        # A plain percentile interval holds about 90 %: 360, below this bound.
        assert stats.binom.ppf(0.001, populations, 0.94) <= count, name


def paired(seed, subjects, better=0.0, seeds=(1, 1)):
    """Two runs on the same clips, equally good on every face but for `better`."""
    generator = np.random.default_rng(seed)
    clips = np.minimum(generator.geometric(1 / 6.5, subjects), 30)
    owner = np.repeat(np.arange(subjects), clips)
    labels = generator.choice(3, owner.size, p=CLASSES)
    shared = 1.6 * np.eye(3)[labels] + generator.normal(0, 1, (subjects, 3))[owner]
    tables = []
    for number, extra in zip(seeds, (better, 0.0), strict=True):
        # A face may suit one run and not the other.
        own = generator.normal(0, 0.7, (subjects, 3))[owner] + extra * np.eye(3)[labels]
        noise = generator.normal(0, 1, (number, owner.size, 3))
        predicted = (shared + own + noise).argmax(axis=-1)
        tables.append(subject_confusions(labels, predicted, owner, 3))
    return tables


@pytest.mark.parametrize("subjects", [6, 20])
def test_a_run_equals_itself(subjects):
    table = run(subjects=subjects)
    for result in compare(table, table).values():
        assert result == Comparison(0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("subjects", [6, 20])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_swapping_the_runs_negates(subjects, seed):
    a, b = paired(seed, subjects, seeds=(2, 3))
    forth = compare(a, b, resamples=200, permutations=500)
    back = compare(b, a, resamples=200, permutations=500)
    for name in metrics.METRICS:
        assert back[name].difference == -forth[name].difference
        assert back[name].low == pytest.approx(-forth[name].high, abs=1e-12)
        assert back[name].high == pytest.approx(-forth[name].low, abs=1e-12)
        assert back[name].p_value == forth[name].p_value


def test_difference_is_that_of_the_mean_scores_over_seeds():
    a, b = paired(1, 10, seeds=(2, 3))
    found = compare(a, b, resamples=100, permutations=100)
    mean = [metrics.scores(table.counts.sum(axis=1)) for table in (a, b)]
    for name in metrics.METRICS:
        expected = mean[0][name].mean() - mean[1][name].mean()
        assert found[name].difference == pytest.approx(expected, abs=1e-12)
        assert found[name].low < found[name].difference < found[name].high


def test_exact_p_value_by_hand():
    """Three subjects of two clips of one class; a has 2, 2, 1 right and b 0, 1, 1."""
    labels, subjects = np.zeros(6, int), np.repeat(["x", "y", "z"], 2)
    a = subject_confusions(labels, [[0, 0, 0, 0, 0, 1]], subjects, 2)
    b = subject_confusions(labels, [[1, 1, 0, 1, 0, 1]], subjects, 2)
    # Right clips of a less those of b: 2, 1, 0. All signs: +-3 twice each, +-1 twice each.
    result = compare(a, b, permutations=8)["accuracy"]
    assert result.difference == pytest.approx(3 / 6)
    assert result.p_value == 4 / 8
    # One swap fewer than needed for all: random ones, p = (1 + hits) / (1 + 7).
    assert compare(a, b, permutations=7)["accuracy"].p_value * 8 in range(1, 9)


def test_exact_p_value_agrees_with_a_direct_enumeration():
    a, b = paired(5, 7, better=0.5, seeds=(2, 2))
    result = compare(a, b)["uf1"]
    count = 0
    for swaps in itertools.product([False, True], repeat=7):
        mask = np.array(swaps)[None, :, None, None]
        first, second = np.where(mask, b.counts, a.counts), np.where(mask, a.counts, b.counts)
        scores = [metrics.scores(run.sum(axis=1))["uf1"].mean() for run in (first, second)]
        count += abs(scores[0] - scores[1]) >= abs(result.difference) - 1e-12
    assert result.p_value == count / 2**7


def test_random_swaps_agree_with_all_swaps():
    a, b = paired(2, 14, better=0.6)
    exact = compare(a, b, permutations=2**14)
    random = compare(a, b, permutations=2**14 - 1)
    for name in metrics.METRICS:
        p = exact[name].p_value
        # Four standard errors of a share of 16383.
        assert random[name].p_value == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p)) / 128)
        assert name not in ("uf1", "uar") or 0.001 < p < 0.9


def test_p_values_are_uniform_under_the_null():
    p_values = [
        compare(*paired(seed, 20), resamples=1, permutations=399, seed=seed)["uf1"].p_value
        for seed in range(600)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    counts, _ = np.histogram(p_values, bins=10, range=(0, 1))
    assert stats.binom.ppf(0.0005, 600, 0.1) <= counts.min()
    assert counts.max() <= stats.binom.ppf(0.9995, 600, 0.1)


def test_a_true_difference_is_found():
    results = [
        compare(*paired(seed, 40, better=1.0), resamples=500, permutations=999, seed=seed)["uf1"]
        for seed in range(40)
    ]
    assert np.median([result.p_value for result in results]) < 0.01
    assert all(result.difference > 0 for result in results)
    assert np.mean([result.low > 0 for result in results]) > 0.8


def test_the_interval_of_no_difference_holds_zero():
    results = [
        compare(*paired(seed, 30), resamples=400, permutations=1, seed=seed)["uf1"]
        for seed in range(300)
    ]
    held = sum(result.low <= 0 <= result.high for result in results)
    assert stats.binom.ppf(0.001, 300, 0.93) <= held <= stats.binom.ppf(0.999, 300, 0.97)


def test_runs_that_do_not_belong_together():
    table = run(subjects=5)
    with pytest.raises(ValueError, match="differ in subjects or classes"):
        compare(table, run(subjects=4))
    names = np.array(["q", *table.subjects[1:]])
    with pytest.raises(ValueError, match="different subjects"):
        compare(table, SubjectConfusions(table.counts, names, table.strata))
    with pytest.raises(ValueError, match="different strata"):
        compare(table, as_table(table.counts, np.array(["x", "x", "x", "y", "y"])))
    counts = table.counts.copy()
    counts[:, [1, 3]] += 1
    with pytest.raises(ValueError, match="truth differs between the runs for p001, p003"):
        compare(table, as_table(counts))


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, math.nan])
def test_bad_levels(level):
    table = run(subjects=3)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        intervals(table, level=level)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        compare(table, table, level=level)


def test_bad_numbers_of_resamples():
    table = run(subjects=3)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        intervals(table, resamples=0)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        compare(table, table, resamples=0)
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        compare(table, table, permutations=0)
