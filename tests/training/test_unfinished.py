"""Runs whose unfinished results were swapped, copied, changed or deleted; shown with a baseline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import experiment
from htnet_jax.training.plan import Store

SUBJECTS = ["a01", "a02", "b01", "b02", "g01", "g02"]


@pytest.fixture(scope="module")
def fitted(make_config):
    def fitted(c=1.0, **changes):
        model = {"name": "LogisticRegression", "num_classes": 3, "components": 100, "C": c}
        return make_config(epochs=1, checkpoints="none", model=ConfigDict(model), **changes)

    return fitted


@pytest.fixture(scope="module")
def whole(fitted, run_quickly, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_quickly(fitted(), folder)
    return Predictions.load(folder / "predictions.npz")


class PowerCut(Exception):
    pass


@pytest.fixture
def cut(run_quickly, monkeypatch):
    """Begins a run whose power is cut when five results are written; gives their folder."""

    def cut(config, folder):
        written = []

        def write(store, unit, result):
            if len(written) == 5:
                raise PowerCut
            written.append(unit)
            original(store, unit, result)

        original = Store.write
        with monkeypatch.context() as patch, pytest.raises(PowerCut):
            patch.setattr(Store, "write", write)
            run_quickly(config, folder)
        return folder / "unfinished"

    return cut


@pytest.fixture
def resumed(fitted, run_quickly, whole, tmp_path, monkeypatch, capfd):
    """Resumes the run; gives the folds that were trained, and what was said."""

    def resumed():
        trained = []

        def write(store, unit, result):
            trained.append(str(store.plan.folds[unit.fold]))
            original(store, unit, result)

        original = Store.write
        monkeypatch.setattr(Store, "write", write)
        capfd.readouterr()
        run_quickly(fitted(), tmp_path / "run")
        same_bits(tmp_path / "run", whole)
        return trained, capfd.readouterr().err

    return resumed


def same_bits(folder, whole):
    found = Predictions.load(folder / "predictions.npz")
    np.testing.assert_array_equal(found.logits, whole.logits)
    np.testing.assert_array_equal(found.train_loss, whole.train_loss)
    assert found.folds.tolist() == SUBJECTS
    assert not (folder / "unfinished").exists()


def test_swapped_results_are_named_and_trained_again(cut, resumed, fitted, tmp_path):
    folder = cut(fitted(), tmp_path / "run")
    first, second = (folder / f"fold-{name}-seed0.npz" for name in ("a01", "b01"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    trained, said = resumed()
    assert f"{first}: of another model of this run (fold b01, seed 0" in said
    assert f"{second}: of another model of this run (fold a01, seed 0" in said
    assert "resuming: 3 of 6 models are trained" in said
    assert trained == ["a01", "b01", "g02"]


@pytest.mark.parametrize("change", [{"c": 0.1}, {"dataset__shuffle_labels": True}])
def test_a_result_of_another_run_is_named_and_trained_again(change, cut, resumed, fitted, tmp_path):
    folder = cut(fitted(), tmp_path / "run")
    other = cut(fitted(**change), tmp_path / "other")
    shutil.copy(other / "fold-a02-seed0.npz", folder)
    trained, said = resumed()
    assert f"{folder}/fold-a02-seed0.npz: of another run, with other settings or data" in said
    assert trained == ["a02", "g02"]


def test_a_whole_folder_of_another_run_is_trained_again(cut, resumed, fitted, tmp_path):
    """With its plan."""
    folder = cut(fitted(), tmp_path / "run")
    other = cut(fitted(0.1), tmp_path / "other")
    shutil.rmtree(folder)
    other.rename(folder)
    trained, said = resumed()
    assert said.count(": of another run, with other settings or data") == 5
    assert trained == SUBJECTS


def test_results_of_an_earlier_version_are_one_line(cut, resumed, fitted, tmp_path):
    folder = cut(fitted(), tmp_path / "run")
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            content = dict(file)
        np.savez(path, **content | {"format_version": np.int32(1)})
    trained, said = resumed()
    lines = [line for line in said.splitlines() if "version" in line]
    assert lines == [f"  {folder}: 5 results of another version of htnet_jax"]
    assert trained == SUBJECTS


@pytest.mark.parametrize("forever", [False, True])
def test_a_result_deleted_while_training_is_trained_again(
    forever, fitted, run_quickly, whole, tmp_path, monkeypatch, capfd
):
    """Whoever deletes it every time gets a message: no run trains for ever."""
    written = []

    def write(store, unit, result):
        original(store, unit, result)
        written.append(str(store.plan.folds[unit.fold]))
        if len(written) == 6 or forever:
            (store.folder / "fold-a02-seed0.npz").unlink(missing_ok=True)

    original = Store.write
    monkeypatch.setattr(Store, "write", write)
    if forever:
        with pytest.raises(UserError, match=r"results disappear or change.*\(a02\)"):
            run_quickly(fitted(), tmp_path)
        assert not (tmp_path / "predictions.npz").exists()
    else:
        run_quickly(fitted(), tmp_path)
        same_bits(tmp_path, whole)
    assert written == [*SUBJECTS, "a02"]
    assert "training again, the results are gone: a02" in capfd.readouterr().err


def test_a_result_deleted_at_the_very_end_is_an_error(fitted, run_quickly, tmp_path, monkeypatch):
    """Not a run that lacks the fold without a word."""

    def joined(plan, read, folds):
        (tmp_path / "unfinished/fold-a02-seed0.npz").unlink()
        return original(plan, read, folds)

    original = experiment.plans.joined
    monkeypatch.setattr(experiment.plans, "joined", joined)
    with pytest.raises(UserError, match=r"fold-a02-seed0\.npz: no such file"):
        run_quickly(fitted(), tmp_path)
    assert not (tmp_path / "predictions.npz").exists()


@pytest.mark.parametrize("name", ["unfinished", "tensorboard"])
def test_a_folder_that_leads_elsewhere_is_refused_before_any_training(
    name, fitted, run_quickly, tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(Store, "write", pytest.fail)
    with pytest.raises(UserError, match=rf"{name}: is a link to .*elsewhere"):
        run_quickly(fitted(tensorboard=True), tmp_path / "run")
    assert not [*(tmp_path / "elsewhere").iterdir()]


@pytest.mark.parametrize("link", [True, False])
def test_checkpoints_that_lead_elsewhere_are_refused_before_any_training(
    link, make_config, run_quickly, tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    place = tmp_path / "run/checkpoints"
    if link:
        (tmp_path / "elsewhere/a01").mkdir(parents=True)
        (tmp_path / "elsewhere/a01/mine.txt").write_text("mine")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text("")
    monkeypatch.setattr(Store, "write", pytest.fail)
    message = "is a link to .*elsewhere" if link else r"cannot be created \(File exists\)\. Remove"
    with pytest.raises(UserError, match=rf"checkpoints: {message}"):
        run_quickly(make_config(), tmp_path / "run")
    if link:
        assert (tmp_path / "elsewhere/a01/mine.txt").read_text() == "mine"


def test_checkpoints_deleted_before_resuming_are_named(
    make_config, cut, run_quickly, tmp_path, capfd
):
    config = make_config(folds_per_device=1, cpu_devices=1)
    folder = cut(config, tmp_path / "run").parent
    for name in ("a01", "b01"):
        shutil.rmtree(folder / "checkpoints" / name)
    capfd.readouterr()
    run_quickly(config, folder)
    assert f"warning: {folder}/checkpoints lacks a01, b01, deleted" in capfd.readouterr().err


def test_a_folder_that_cannot_be_removed_costs_nothing(
    fitted, run_quickly, whole, tmp_path, monkeypatch, capfd
):
    """As where it is a disk of its own."""

    def busy(path, **options):
        if Path(path).name == "unfinished":
            raise OSError(16, "Device or resource busy")
        remove(path, **options)

    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        run = run_quickly(fitted(), tmp_path)
    np.testing.assert_array_equal(run.predictions.logits, whole.logits)
    assert "unfinished: cannot be removed ([Errno 16]" in capfd.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"packages": 7},
        {"packages": ["jax"]},
        {"hyperparameters": 3},
        {"folds_per_device": "x"},
        {"folds_per_device": 1e30},
        {"folds_per_device": 2**70},
        {"folds_per_device": True},
        {"inner_folds_per_device": None},
        {"regrouped": 7},
        {"regrouped": [3]},
        {"regrouped": [{"of": "folds_per_device"}]},
        {"regrouped": [{"of": "folds_per_device", "devices_at_once": "all"}]},
    ],
)
def test_a_spoiled_record_is_one_message(wrong, cut, fitted, run_quickly, tmp_path):
    cut(fitted(), tmp_path / "run")
    path = tmp_path / "run/environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(UserError, match=r"environment\.json: damaged.*choose another --workdir"):
        run_quickly(fitted(), tmp_path / "run")


def test_a_baseline_speaks_as_one(fitted, run_quickly, tmp_path, capfd):
    run_quickly(fitted(), tmp_path)
    shown = capfd.readouterr().err
    assert "fitting: 6/6 fits, loss=" in shown
    assert not [word for word in ("compil", "epoch", "round", "1 folds") if word in shown]
    assert json.loads((tmp_path / "environment.json").read_text())["fits_once"] is True


def test_fitting_has_no_child_processes(children, fitted, run_quickly, tmp_path, monkeypatch):
    """So none is left behind, however it ends."""

    def write(store, unit, result):
        seen.append(children())
        original(store, unit, result)

    seen, before, original = [], children(), Store.write
    monkeypatch.setattr(Store, "write", write)
    run_quickly(fitted(folds="a01"), tmp_path)
    assert seen == [before]
