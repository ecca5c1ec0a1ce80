"""Inner folds, seeds and protocols of whole runs; and that no test label reaches a selection."""

import dataclasses

import numpy as np
import pytest

from htnet_jax.datasets import loading
from htnet_jax.evaluation.calibration import temperatures
from htnet_jax.evaluation.predictions import InnerPredictions, Predictions
from htnet_jax.evaluation.protocols import Split, inner_folds
from htnet_jax.evaluation.selection import Selection, available, select
from htnet_jax.training import experiment
from htnet_jax.training import plan as plans

SUBJECTS = ["a01", "a02", "b01", "b02", "g01", "g02"]


def same_bits(first, second):
    for field in dataclasses.fields(first):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, InnerPredictions):
            same_bits(ours, theirs)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def settings(make_config):
    def settings(**changes):
        return make_config(
            **{"epochs": 4, "checkpoints": "none", "inner_folds": 2, "inner_parts": 3, **changes}
        )

    return settings


@pytest.fixture(scope="module")
def predictions(settings, run_quickly, tmp_path_factory):
    """Six folds with two inner folds each, two seeds."""
    folder = tmp_path_factory.mktemp("inner")
    run_quickly(settings(seeds=2), folder / "run")
    return Predictions.load(folder / "run/predictions.npz")


def test_one_run_allows_all_selections(predictions):
    assert available(predictions) == (Selection.FINAL, Selection.INNER, Selection.ORACLE)
    assert predictions.logits.shape == (2, 4, 24, 3)
    np.testing.assert_array_equal(predictions.seeds, [0, 1])


def test_inner_folds_validate_on_training_subjects(predictions, arrays):
    inner = predictions.inner
    assert inner.test_logits.shape == (2, 2, 4, 24, 3)
    for index, name in enumerate(SUBJECTS):
        part = inner_folds(
            Split(name, arrays.subjects == name),
            arrays.subjects,
            arrays.sources,
            parts=3,
            count=2,
            seed=0,
        )
        for number in (0, 1):
            rows = (inner.fold == index) & (inner.part == number)
            assert inner.clips[rows].tolist() == arrays.clips[part == number].tolist()
            assert name not in inner.subjects[rows]


def test_an_inner_model_is_the_one_trained_without_its_validation_subjects(
    predictions, settings, run_quickly, tmp_path, arrays, monkeypatch
):
    """Retrained by hand as a run of its own, in which the validation clips do not exist."""
    inner = predictions.inner
    rows = (inner.fold == 0) & (inner.part == 0)
    gone = np.isin(arrays.clips, inner.clips[rows])
    fields = ("flow", "landmarks", "labels", "subjects", "sources", "clips", "emotions")
    without = dataclasses.replace(arrays, **{name: getattr(arrays, name)[~gone] for name in fields})
    monkeypatch.setattr(loading, "load", lambda *_, **__: without)
    original = plans.folds

    def folds(plan, units):
        return {
            unit: dataclasses.replace(fold, stream=f"{fold.name}/inner0")
            for unit, fold in original(plan, units).items()
        }

    monkeypatch.setattr(plans, "folds", folds)
    run_quickly(settings(inner_folds=0, folds="a01"), tmp_path / "run")
    alone = Predictions.load(tmp_path / "run/predictions.npz")
    np.testing.assert_array_equal(alone.clips, predictions.clips[predictions.fold == 0])
    np.testing.assert_allclose(
        inner.test_logits[0, 0][:, predictions.fold == 0], alone.logits[0], rtol=1e-4, atol=1e-5
    )


def test_inner_folds_and_seeds_leave_the_folds_own_bits_alone(
    predictions, settings, run_quickly, tmp_path
):
    """Seeds change who trains beside whom, so that a seed alone is equal up to rounding only."""
    run_quickly(settings(seeds=2, inner_folds=0), tmp_path / "plain")
    plain = Predictions.load(tmp_path / "plain/predictions.npz")
    same_bits(plain, dataclasses.replace(predictions, inner=None))
    run_quickly(settings(seed=1, inner_folds=0), tmp_path / "second")
    second = Predictions.load(tmp_path / "second/predictions.npz")
    np.testing.assert_allclose(second.logits[0], plain.logits[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(plain.logits[0], plain.logits[1], atol=1e-3)


@pytest.mark.parametrize("refit", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_test_label_influences_final_or_inner(
    arrays, settings, run_quickly, tmp_path, monkeypatch, refit
):
    """With the labels of a subject permuted, its logits, epochs and temperatures stay the same."""
    config = settings(folds="b01", inner_refit=refit)
    run_quickly(config, tmp_path / "before")
    own = np.flatnonzero(arrays.subjects == "b01")
    labels = arrays.labels.copy()
    labels[own] = (labels[own] + 1) % 3
    changed = dataclasses.replace(arrays, labels=labels)
    monkeypatch.setattr(loading, "load", lambda *_, **__: changed)
    run_quickly(config, tmp_path / "after")
    before, after = (
        Predictions.load(tmp_path / name / "predictions.npz") for name in ("before", "after")
    )
    assert (before.labels != after.labels).all()
    np.testing.assert_array_equal(before.logits, after.logits)
    same_bits(before.inner, after.inner)
    for selection in (Selection.FINAL, Selection.INNER):
        one, other = select(before, selection), select(after, selection)
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_array_equal(one.epochs, other.epochs)
        np.testing.assert_array_equal(temperatures(before, one), temperatures(after, other))


def test_a_training_label_does_influence_them(arrays, settings, run_quickly, tmp_path, monkeypatch):
    """So that the test above could fail."""
    labels = arrays.labels.copy()
    labels[arrays.subjects == "a01"] = 0
    run_quickly(settings(folds="b01"), tmp_path / "before")
    changed = dataclasses.replace(arrays, labels=labels)
    monkeypatch.setattr(loading, "load", lambda *_, **__: changed)
    run_quickly(settings(folds="b01"), tmp_path / "after")
    before, after = (
        Predictions.load(tmp_path / name / "predictions.npz") for name in ("before", "after")
    )
    assert not np.allclose(before.logits, after.logits, atol=1e-3)


class Interrupted(Exception):
    pass


@pytest.mark.slow  # as test_interruptions.py without inner folds
def test_an_interrupted_run_with_inner_folds_has_the_same_bits(
    predictions, settings, run_quickly, tmp_path, monkeypatch, capfd
):
    written = []

    def write(store, unit, result):
        if len(written) == 20:
            raise Interrupted
        written.append(unit)
        original(store, unit, result)

    original = experiment.Store.write
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(experiment.Store, "write", write)
        run_quickly(settings(seeds=2), tmp_path / "run")
    assert not (tmp_path / "run/predictions.npz").exists()
    run_quickly(settings(seeds=2), tmp_path / "run")
    assert "resuming: 20 of 36 models are trained" in capfd.readouterr().err
    same_bits(Predictions.load(tmp_path / "run/predictions.npz"), predictions)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        pytest.param({"protocol": "lodo"}, ["alpha", "beta", "gamma"], marks=pytest.mark.slow),
        ({"protocol": "kfold", "protocol_folds": 3}, ["fold1of3", "fold2of3", "fold3of3"]),
        ({"dataset__sources": "alpha, gamma"}, ["a01", "a02", "g01", "g02"]),
        (
            {"protocol": "lodo", "dataset__sources": "alpha, gamma", "inner_parts": 2},
            ["alpha", "gamma"],
        ),
    ],
)
def test_protocols(changes, names, settings, run_quickly, tmp_path, arrays):
    config = settings(inner_folds=1, epochs=1, batch_size=4, folds_per_device=1, **changes)
    run = run_quickly(config, tmp_path / "run")
    found = run.predictions
    assert found.folds.tolist() == found.protocol_folds.tolist() == names
    assert found.protocol == config.protocol
    clips = arrays.clips[np.isin(arrays.sources, np.unique(found.sources))]
    assert sorted(found.clips) == sorted(clips)
    if config.protocol == "lodo":
        np.testing.assert_array_equal(found.folds[found.fold], found.sources)
        assert not set(zip(found.inner.fold, found.inner.sources, strict=True)) & {
            (index, source) for index, source in enumerate(names)
        }


def test_checkpoints_of_several_seeds(settings, run_quickly, tmp_path):
    config = settings(seeds=2, folds="a01", checkpoints="a01", inner_folds=0, epochs=1)
    run_quickly(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "a01",
        "a01.seed1",
    ]


def test_event_files(settings, run_quickly, tmp_path):
    pytest.importorskip("tensorboardX")
    run_quickly(settings(folds="a01", tensorboard=True), tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"mean/train_loss", b"mean/validation_uf1", b"mean/validation_uar"):
        assert tag in content
    assert b"a01" not in content
    assert b"test" not in content
