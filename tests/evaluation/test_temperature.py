import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from htnet_jax.evaluation.selection import select
from htnet_jax.evaluation.temperature import scaled, temperatures


def best(margin):
    """The T for two classes with a margin m and a right answer in 3 of 4 clips.

    The slope of the likelihood and the prior by b = 1/T is 4 m sigmoid(m b) - 3 m + (b - 1): 0.
    """
    return 1 / brentq(lambda b: 4 * margin / (1 + np.exp(-margin * b)) - 3 * margin + b - 1, 0, 9)


@pytest.fixture
def overconfident(make_wide, make_inner):
    """Two people of two classes; at each's epoch 4 logits of +-m on the other's 4 clips, 3 right.

    The margin m is 2 for fold 0 and 6 for fold 1; see `best`.
    """
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    # Rows: fold 0 validates on the second person, fold 1 on the first; the fourth answer is wrong.
    sign = np.array([1, -1, 1, 1, 1, -1, 1, 1])
    margin = sign * np.repeat([2.0, 6.0], 4)
    logits = np.stack([margin / 2, -margin / 2], axis=-1)[None, None].repeat(2, axis=1)
    return make_wide(
        people=2,
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
                f"s0{person}_{i}"
                for person, i in ((p, i + 4 * p) for p in (1, 0) for i in range(4))
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
