"""A whole experiment: what it writes, what it refuses, and how it resumes after an interruption."""

import collections
import dataclasses
import json
import re
import shutil
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import InnerPredictions, Predictions
from htnet_jax.training import experiment, folds, memory
from htnet_jax.training.plan import Store
from htnet_jax.training.workdir import locked

SUBJECTS = ["a01", "a02", "b01", "b02", "g01", "g02"]
SOURCES = ["alpha", "beta", "gamma"]


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """(folder, run): all six folds for three epochs, uninterrupted, on three devices."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, experiment.run(make_config(checkpoints="a01, g02"), folder)


@pytest.fixture(scope="module")
def predictions(finished):
    return Predictions.load(finished[0] / "predictions.npz")


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def interrupted(make_config, run_quickly, tmp_path_factory):
    """A run on one device that stopped in its second round, while it saved the fold "b02"."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"

    def save_fold(path, *rest):
        if path.name == "b02":
            raise Interrupted
        original(path, *rest)

    original = experiment.save_fold
    first = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(experiment, "save_fold", save_fold)
        patch.setattr(folds.jax, "local_devices", lambda *_, **__: first)
        patch.setattr(memory, "MAX_FOLDS_PER_CPU_DEVICE", 2)
        # Chosen from the free memory, so the resumed run must remember it.
        run_quickly(make_config(folds_per_device=0, checkpoints="all"), folder)
    return folder


class Stop(Exception):
    """Raised where training would begin."""


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Runs an experiment up to the training; returns what the trainer would get."""

    def begin(config, workdir=tmp_path / "run"):
        def stop(learner, inputs, labels, folds, **options):
            got = {"inputs": inputs, "labels": labels, "folds": folds, "learner": learner}
            seen.append(types.SimpleNamespace(**got, **options))
            raise Stop

        seen = []
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(experiment, "FoldTrainer", stop)
            experiment.run(config, workdir)
        return seen[0]

    return begin


@pytest.fixture
def refusal(tmp_path):
    """The message of the one `UserError` that a run ends with, before any training."""

    def refusal(config, workdir=tmp_path / "run"):
        with pytest.raises(UserError) as caught, pytest.MonkeyPatch.context() as patch:
            patch.setattr(folds.FoldTrainer, "train", pytest.fail)
            experiment.run(config, workdir)
        return str(caught.value)

    return refusal


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_same(first, second):
    for field in dataclasses.fields(first):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, InnerPredictions):
            assert_same(ours, theirs)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_files(finished):
    written = {
        name
        for name in files(finished[0])
        if "/variables/" not in name and not name.startswith("plots/")
    }
    expected = {"config.json", "environment.json", "metrics.json", "predictions.npz", "report.html"}
    expected |= {
        "private.json",
        "table.md",
        "table.tex",
        "predictions_final.csv",
        "predictions_oracle.csv",
    }
    checkpoints = {
        f"checkpoints/{fold}/{name}.json"
        for fold in ("a01", "g02")
        for name in ("config", "manifest")
    }
    assert written == expected | checkpoints
    assert (finished[0] / "checkpoints/g02/variables").is_dir()


def test_records(finished, make_config, arrays, data_dir):
    settings = json.loads((finished[0] / "config.json").read_text())
    config = make_config(checkpoints="a01, g02", dataset__data_dir="")
    assert settings == json.loads(config.to_json())
    private = json.loads((finished[0] / "private.json").read_text())
    assert private["config"] == {"dataset.data_dir": data_dir}
    record = json.loads((finished[0] / "environment.json").read_text())
    assert record["folds_per_device"] == 2
    assert record["data_fingerprint"] == arrays.fingerprint
    assert record["dataset"] == "synthetic/tiny/1.0.0"
    assert record["packages"]["jax"] == jax.__version__
    assert len(record["devices"]) == 4
    page = (finished[0] / "report.html").read_text()
    assert arrays.fingerprint in page
    assert "data:image/png;base64," in page


def test_metrics(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    assert metrics.pop("run")["protocol"] == "loso"
    assert metrics.pop("plots")
    assert metrics == finished[1].summary
    assert list(metrics) == ["final", "oracle"]
    for entries in metrics.values():
        assert list(entries) == ["composite", *SOURCES]
        assert {name: entry["clips"] for name, entry in entries.items()} == {
            "composite": 24,
            **dict.fromkeys(SOURCES, 8),
        }
        for entry in entries.values():
            assert 0 <= entry["uf1"] <= 1
            assert 0 <= entry["uar"] <= 1
    correct = {name: metrics[name]["composite"]["accuracy"] for name in metrics}
    assert correct["oracle"] >= correct["final"]


def test_predictions_are_of_the_right_clips(predictions, arrays):
    np.testing.assert_array_equal(predictions.epochs, [1, 2, 3])
    np.testing.assert_array_equal(predictions.folds, SUBJECTS)
    np.testing.assert_array_equal(predictions.class_names, arrays.class_names)
    assert sorted(predictions.clips) == sorted(arrays.clips)
    rows = [arrays.clips.tolist().index(clip) for clip in predictions.clips]
    np.testing.assert_array_equal(predictions.labels, arrays.labels[rows])
    np.testing.assert_array_equal(predictions.subjects, arrays.subjects[rows])
    np.testing.assert_array_equal(predictions.sources, arrays.sources[rows])
    np.testing.assert_array_equal(predictions.folds[predictions.fold], predictions.subjects)
    np.testing.assert_array_equal(predictions.protocol_folds, SUBJECTS)
    assert (predictions.protocol, predictions.dataset) == ("loso", "synthetic/tiny/1.0.0")
    assert predictions.fingerprint == arrays.fingerprint
    assert predictions.inner is None
    assert (predictions.train_loss[..., -1] < predictions.train_loss[..., 0]).all()
    assert len(np.unique(predictions.logits[0, -1], axis=0)) == 24


def test_a_finished_run_is_not_overwritten(finished, make_config, refusal):
    before = {name: (finished[0] / name).read_bytes() for name in files(finished[0])}
    message = refusal(make_config(checkpoints="a01, g02"), finished[0])
    assert re.search("run already holds a finished run; choose another --workdir", message)
    assert {name: (finished[0] / name).read_bytes() for name in files(finished[0])} == before


def test_some_folds_alone_predict_the_same(predictions, make_config, run_quickly, tmp_path, capfd):
    """Also without checkpoints; and no progress or note on standard output."""
    config = make_config(folds=" b01,a02", checkpoints="none", epochs=2)
    run_quickly(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    some = Predictions.load(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(some.folds, ["a02", "b01"])
    rows = np.flatnonzero(np.isin(predictions.subjects, ["a02", "b01"]))
    np.testing.assert_array_equal(some.clips, predictions.clips[rows])
    assert some.missing_folds == ["a01", "b02", "g01", "g02"]
    np.testing.assert_allclose(some.logits, predictions.logits[:, :2, rows], rtol=1e-4, atol=1e-5)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "epoch=2/2" in shown.err
    assert "loss=" in shown.err
    assert "round 1/1, 2 folds" in shown.err
    assert shown.err.count("compiled in ") == 1


def test_an_interrupted_run_keeps_its_finished_folds(interrupted):
    assert not (interrupted / "predictions.npz").exists()
    assert not (interrupted / "metrics.json").exists()
    partial = Store.open(interrupted / "unfinished").assemble()
    np.testing.assert_array_equal(partial.folds, ["a01", "a02", "b01"])
    assert partial.missing_folds == ["b02", "g01", "g02"]
    assert sorted(path.name for path in (interrupted / "checkpoints").iterdir()) == [
        "a01",
        "a02",
        "b01",
    ]


def test_a_resumed_run_has_the_same_bits(
    interrupted, predictions, make_config, run_quickly, tmp_path, capfd
):
    """On other devices, and where the group would be chosen otherwise now."""
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    run = run_quickly(make_config(folds_per_device=0, checkpoints="all"), folder)
    assert "resuming: 3 of 6 models are trained" in capfd.readouterr().err
    assert_same(Predictions.load(folder / "predictions.npz"), predictions)
    assert not (folder / "unfinished").exists()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == SUBJECTS
    assert run.summary["final"]["composite"]["clips"] == 24


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("epochs", 4, "config.epochs: 3 there, 4 now"),
        ("dataset__layout", "release", "config.dataset.layout: upright there, release now"),
        ("folds", "a01", "config.folds:  there, a01 now"),
    ],
)
def test_other_settings_do_not_resume(interrupted, make_config, refusal, key, value, shown):
    settings = {"folds_per_device": 0, "checkpoints": "all", key: value}
    message = refusal(make_config(**settings), interrupted)
    assert "unfinished run with other settings" in message
    assert shown in message
    assert message.count(" there, ") == 1


def test_places_may_change_on_resuming(interrupted, make_config, begin):
    config = make_config(
        folds_per_device=0, checkpoints="all", dataset__manual_dir="/elsewhere", cpu_devices=2
    )
    assert begin(config, interrupted).folds_per_device == 2


def test_other_data_do_not_resume(interrupted, make_config, refusal, arrays, monkeypatch):
    changed = dataclasses.replace(arrays, fingerprint="0" * 64)
    monkeypatch.setattr(loading, "load", lambda *_, **__: changed)
    message = refusal(make_config(folds_per_device=0, checkpoints="all"), interrupted)
    assert "was started on other data (synthetic/tiny/1.0.0 has changed since)" in message


def test_an_unreadable_record_does_not_resume(make_config, refusal, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{")
    assert "holds a run that cannot be read" in refusal(make_config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": "a01,zz,yy"}, "config.folds: no fold zz, yy; the folds are a01, a02, b01"),
        ({"folds": "a01", "checkpoints": "b01"}, "config.checkpoints: no fold b01"),
        ({"protocol": "loco"}, "config.protocol='loco' is unknown; use loso, lodo, kfold"),
        ({"protocol": "lodo", "folds": "a01"}, "no fold a01; the folds are alpha, beta, gamma"),
        ({"protocol": "kfold", "protocol_folds": 7}, "6 subjects cannot be split into 7 groups"),
        ({"inner_folds": 6}, "config.inner_folds=6 must not exceed config.inner_parts=5"),
        ({"inner_folds": 1, "inner_parts": 6}, "5 subjects cannot be split into 6 groups"),
        ({"inner_folds": -1}, "config.inner_folds=-1 must be at least 0"),
        ({"seeds": 0}, "config.seeds=0 must be at least 1"),
        ({"checkpoint_seconds": -1}, "config.checkpoint_seconds=-1 must be at least 0"),
        (
            {"matmul_precision": "fp8"},
            "config.matmul_precision='fp8' is unknown; use float32, tf32",
        ),
        (
            {"model": ConfigDict({"name": "HTNet", "dtype": "float16"})},
            "config.model.dtype='float16' is unknown; use float32, bfloat16",
        ),
        ({"seed": 2**32 - 1, "seeds": 2}, "seeds must be below 2**32"),
        ({"dataset__sources": "alpha,delta"}, "no source delta; the sources are alpha, beta"),
        ({"dataset__sources": "alpha", "protocol": "lodo"}, "needs at least two folds"),
        (
            {"model": ConfigDict({"name": "MajorityClass"})},
            "config.epochs=3, but MajorityClass is fitted once",
        ),
        ({"model__heads": 6}, "config.model.heads is unknown to Linear; there are num_classes"),
        (
            {
                "epochs": 1,
                "checkpoints": "none",
                "model": ConfigDict({"name": "KernelRidge", "channels": "u,v,strain"}),
            },
            "config.model.channels='u,v,strain', but config.dataset.channels='strain,v,u'",
        ),
        (
            {"model__name": "Nonsense"},
            "config.model.name='Nonsense' is unknown; use HTNet, MMNet, AttributeNet, Linear",
        ),
        ({"model__image_size": 56}, "mosaic 28 x 28 x 3: x has 28 px; set image_size=28"),
        ({"model__num_classes": 5}, "--config.model.num_classes=3"),
        ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
        ({"epochs": 0}, "config.epochs=0 must be at least 1"),
        ({"seed": -1}, "config.seed=-1 must be at least 0"),
        ({"learning_rate": float("nan")}, "config.learning_rate=nan must lie in (0, 100]"),
        ({"learning_rate": 0.0}, "config.learning_rate=0.0 must lie in (0, 100]"),
        ({"dataset__name": "nonsense"}, "unknown data set 'nonsense'; use one of casme2"),
        ({"dataset__channels": "u,w"}, "unknown channel 'w'"),
        (
            {"dataset__layout": "sideways"},
            "config.dataset.layout='sideways' is unknown; use release, upright, none",
        ),
    ],
)
def test_bad_settings(make_config, refusal, changes, message):
    assert message in refusal(make_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 6}, "widht"),
        ({"patch_size": 5}, "image_size=28 is not divisible by patch_size=5"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_bad_model_settings(make_config, refusal, changes, message):
    config = make_config()
    config.model = ConfigDict({"name": "HTNet", "image_size": 28, "dim": 6, **changes})
    found = refusal(config)
    assert "config.model" in found
    assert message in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"batch_size": 256},
            "the training set of 6 of 6 models (the smallest: 20 clips); a batch",
        ),
        ({"batch_size": 20}, ""),
        ({"batch_size": 17, "inner_folds": 1}, "of 6 of 12 models (the smallest: 16 clips)"),
    ],
)
def test_a_batch_larger_than_the_training_set_is_said_once(
    make_config, monkeypatch, tmp_path, capsys, changes, said
):
    monkeypatch.setattr(folds.FoldTrainer, "rounds", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        experiment.run(make_config(**changes), tmp_path / "run")
    error = capsys.readouterr().err
    assert said in error
    assert error.count("config.batch_size=") == bool(said)


def test_a_workdir_that_cannot_be_written(make_config, refusal, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"workdir {workdir} cannot be created" in refusal(make_config(), workdir)


def test_two_processes_in_one_folder(make_config, refusal, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert "another process is training there" in refusal(make_config())
    with locked(tmp_path / "run"):
        pass


def test_too_little_disk_space(make_config, refusal, monkeypatch, tmp_path):
    parameters = 4 * (28 * 28 * 3 * 3 + 3)
    # Checkpoints; three snapshots of Adam's state for all folds; all logits, twice.
    needed = 6 * parameters + 3 * 6 * (3 * parameters + 4) + 2 * 4 * 3 * 24 * 3
    usage = types.SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = refusal(make_config())
    assert "(6 checkpoints 0.0 GB, snapshots 0.0 GB, predictions 0.0 GB)" in message
    assert "set --config.checkpoints=none or to a few folds" in message
    # What fits is not refused.
    usage.free += 1
    monkeypatch.setattr(folds.FoldTrainer, "rounds", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        experiment.run(make_config(), tmp_path / "run")


def test_what_the_trainer_gets(make_config, begin, arrays):
    got = begin(make_config(seed=5, dataset__channels="strain, v"))
    expected = loading.network_inputs(
        arrays, layout="upright", channels=("strain", "v"), scaling="minmax_255"
    )
    assert got.inputs.names == ("mosaic",)
    np.testing.assert_array_equal(got.inputs.arrays["mosaic"], expected)
    np.testing.assert_array_equal(got.labels, arrays.labels)
    assert (got.batch_size, got.seed, got.shuffle, got.folds_per_device) == (10, 5, True, 2)
    assert [fold.name for fold in got.folds] == SUBJECTS
    for fold in got.folds:
        np.testing.assert_array_equal(fold.test, arrays.subjects == fold.name)
        np.testing.assert_array_equal(fold.train, arrays.subjects != fold.name)


def test_shuffled_labels(make_config, begin, arrays, tmp_path, capfd):
    plain = begin(make_config(), tmp_path / "plain")
    assert "control experiment" not in capfd.readouterr().err
    shuffled = begin(make_config(dataset__shuffle_labels=True), tmp_path / "shuffled")
    assert "control experiment: the labels are permuted" in capfd.readouterr().err
    np.testing.assert_array_equal(shuffled.inputs.arrays["mosaic"], plain.inputs.arrays["mosaic"])
    assert not np.array_equal(shuffled.labels, plain.labels)
    assert collections.Counter(shuffled.labels.tolist()) == collections.Counter(
        arrays.labels.tolist()
    )
    for one, other in zip(shuffled.folds, plain.folds, strict=True):
        np.testing.assert_array_equal(one.train, other.train)
    other_seed = begin(make_config(dataset__shuffle_labels=True, seed=1), tmp_path / "seed")
    assert not np.array_equal(other_seed.labels, shuffled.labels)


def test_shuffled_labels_are_the_truth_of_the_run(
    make_config, run_quickly, predictions, arrays, tmp_path
):
    config = make_config(dataset__shuffle_labels=True, folds="a01", checkpoints="none", epochs=1)
    run_quickly(config, tmp_path)
    shuffled = Predictions.load(tmp_path / "predictions.npz")
    expected = np.random.default_rng(config.seed).permutation(arrays.labels)[:4]
    np.testing.assert_array_equal(shuffled.labels, expected)
    np.testing.assert_array_equal(shuffled.clips, predictions.clips[:4])
    assert not np.array_equal(expected, arrays.labels[:4])


def test_a_class_without_training_clips_is_a_warning(
    make_config, begin, arrays, monkeypatch, tmp_path, capfd
):
    """Only b01 shows surprise."""
    labels = np.where(arrays.subjects == "b01", 2, arrays.labels % 2).astype(np.int32)
    changed = dataclasses.replace(arrays, labels=labels)
    monkeypatch.setattr(loading, "load", lambda *_, **__: changed)
    warning = "warning: fold b01 has no training clip of class surprise\n"
    begin(make_config(), tmp_path / "all")
    shown = capfd.readouterr().err
    assert shown.count("warning") == shown.count(warning) == 1
    begin(make_config(folds="a01,g02"), tmp_path / "others")
    assert "warning" not in capfd.readouterr().err
