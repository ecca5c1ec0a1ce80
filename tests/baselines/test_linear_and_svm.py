"""Logistic regression and SVM against plain scikit-learn pipelines."""

import numpy as np
import pytest
from sklearn import decomposition, linear_model, pipeline, preprocessing, svm

from htnet_jax.baselines import RBFSVM, LogisticRegression
from htnet_jax.baselines.features import Features


def flat(inputs):
    return inputs.reshape(len(inputs), -1).astype(np.float64)


@pytest.mark.parametrize("count", [30, 250], ids=["fewer clips than values", "more"])
def test_principal_components_are_scikit_learns(count, make_clips):
    inputs, _ = make_clips(count, seed=0)
    unseen, _ = make_clips(7, seed=1)
    found = Features.fit(flat(inputs).reshape(inputs.shape), 6)(unseen)
    scale = float(inputs.max()) - float(inputs.min())
    pca = decomposition.PCA(6, svd_solver="full").fit(flat(inputs) / scale)
    expected = pca.transform(flat(unseen) / scale)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-10)


def test_no_more_components_than_clips_and_none_of_equal_clips(make_clips):
    inputs, _ = make_clips(4, seed=0)
    assert Features.fit(inputs.astype(np.float64), 9)(inputs).shape == (4, 4)
    equal = np.repeat(inputs[:1].astype(np.float64), 3, axis=0)
    assert Features.fit(equal, 2).axes is None


def test_all_values_are_kept_without_pca(make_clips):
    inputs, _ = make_clips(5, seed=0)
    found = Features.fit(inputs.astype(np.float64), 0)(inputs)
    expected = (flat(inputs) - flat(inputs).mean(axis=0)) / np.ptp(flat(inputs))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("components", "strength"), [(100, 1.0), (4, 0.01)])
@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 1, 1, 2, 2, 2, 2)], ids=["even", "uneven"])
def test_logistic_regression_is_scikit_learns(components, strength, classes, make_clips):
    inputs, labels = make_clips(60, seed=0, classes=classes)
    unseen, _ = make_clips(9, seed=1)
    scale = float(inputs.max()) - float(inputs.min())
    plain = pipeline.make_pipeline(
        preprocessing.FunctionTransformer(lambda rows: rows / scale),
        decomposition.PCA(min(components, 60), svd_solver="full"),
        linear_model.LogisticRegression(
            C=strength, class_weight="balanced", max_iter=1000, tol=1e-8
        ),
    ).fit(flat(inputs), labels)
    found = LogisticRegression(components=components, C=strength).fit(inputs, labels)
    np.testing.assert_allclose(
        found.logits(unseen), plain.decision_function(flat(unseen)), atol=1e-4
    )


def test_logistic_regression_of_two_classes_gives_log_odds(make_clips):
    inputs, labels = make_clips(40, seed=0, classes=(0, 1))
    rows = flat(inputs) / (float(inputs.max()) - float(inputs.min()))
    plain = linear_model.LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-8)
    odds = plain.fit(rows - rows.mean(axis=0), labels).decision_function(rows - rows.mean(axis=0))
    logits = LogisticRegression(num_classes=2, components=0).fit(inputs, labels).logits(inputs)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], odds, atol=1e-4)


@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 1, 1, 2, 2, 2, 2)], ids=["even", "uneven"])
@pytest.mark.parametrize("strength", [0.3, 5.0])
def test_svm_is_scikit_learns_with_gamma_scale(classes, strength, make_clips):
    inputs, labels = make_clips(60, seed=0, classes=classes)
    unseen, _ = make_clips(9, seed=1)
    mean = flat(inputs).mean(axis=0)
    plain = svm.SVC(C=strength, gamma="scale", class_weight="balanced")
    plain.fit(flat(inputs) - mean, labels)
    found = RBFSVM(C=strength).fit(inputs, labels)
    # libsvm stops at an accuracy of 0.001.
    np.testing.assert_allclose(
        found.logits(unseen), plain.decision_function(flat(unseen) - mean), atol=0.002
    )


def test_svm_on_components_with_another_width(make_clips):
    inputs, labels = make_clips(60, seed=0)
    unseen, _ = make_clips(9, seed=1)
    pca = decomposition.PCA(5, svd_solver="full").fit(flat(inputs))
    rows = pca.transform(flat(inputs))
    plain = svm.SVC(gamma=3 / (5 * rows.var()), class_weight="balanced").fit(rows, labels)
    found = RBFSVM(components=5, gamma=3.0).fit(inputs, labels)
    np.testing.assert_allclose(
        found.logits(unseen), plain.decision_function(pca.transform(flat(unseen))), atol=0.002
    )
