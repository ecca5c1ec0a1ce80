"""A whole run whose memory gives out: what it says, records, and resumes with."""

import functools
import json

import jax
import numpy as np
import pytest

from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import experiment, folds

# The tiny data set: six folds.
NAMES = ["a01", "a02", "b01", "b02", "g01", "g02"]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Groups on a single device, so that a round is one group."""
    first = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds.jax, "local_devices", lambda *_, **__: first)
        yield


@pytest.fixture(scope="module")
def config(make_config):
    """Snapshots after the second and the fourth epoch, at once."""

    def config(group):
        return make_config(
            epochs=5,
            checkpoints="none",
            checkpoint_every=2,
            checkpoint_seconds=0,
            folds_per_device=group,
        )

    return config


@pytest.fixture(scope="module")
def run_of(config, run_quickly, tmp_path_factory):
    """Predictions of a quiet run in groups of so many folds."""

    @functools.cache
    def run_of(group):
        folder = tmp_path_factory.mktemp("quiet") / "run"
        run_quickly(config(group), folder)
        return Predictions.load(folder / "predictions.npz")

    return run_of


class Killed(Exception):
    pass


def test_the_run_goes_on_in_smaller_groups(config, run_quickly, run_of, tmp_path, capfd):
    """The second round does not fit; the run is killed, and resumed with what it had come to."""
    original, write_json = folds.FoldTrainer._compile, experiment.workdir.write_json
    calls = []

    def compile_(trainer, *arguments, **options):
        init, run = original(trainer, *arguments, **options)

        def failing(state, *rest):
            calls.append(trainer.folds_per_device)
            # An epoch a call: the second round of three folds, after its first snapshot.
            if len(calls) == 5 + 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return run(state, *rest)

        return init, failing

    def states():
        return [path.name for path in (tmp_path / "unfinished").glob("state-*")]

    def kill(path, record):
        write_json(path, record)
        if record.get("regrouped"):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "SECONDS_PER_CALL", 0)
        patch.setattr(folds.FoldTrainer, "_compile", compile_)
        patch.setattr(experiment.workdir, "write_json", kill)
        with pytest.raises(Killed):
            run_quickly(config(3), tmp_path)
    assert calls == [3] * 9
    message = "out of memory with 3 folds a device: continuing with 1"
    assert message in capfd.readouterr().err
    assert not states()  # the state of the three folds together serves no one now
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["folds_per_device"] == 1
    expected = {
        "of": "folds_per_device",
        "folds_per_device": 1,
        "devices_at_once": 0,
        "reason": message,
        "models_trained_before": 3,
    }
    assert record["regrouped"] == [expected]

    run_quickly(config(3), tmp_path)
    assert "resuming: 3 of 6 models are trained" in capfd.readouterr().err
    assert json.loads((tmp_path / "environment.json").read_text())["regrouped"] == [expected]
    found, whole, single = Predictions.load(tmp_path / "predictions.npz"), run_of(3), run_of(1)
    late = np.isin(found.subjects, NAMES[3:])
    assert 0 < late.sum() < len(late)
    np.testing.assert_array_equal(found.logits[:, :, ~late], whole.logits[:, :, ~late])
    np.testing.assert_array_equal(found.logits[:, :, late], single.logits[:, :, late])
    np.testing.assert_array_equal(found.train_loss[:, :3], whole.train_loss[:, :3])
    np.testing.assert_array_equal(found.train_loss[:, 3:], single.train_loss[:, 3:])


@pytest.mark.slow  # the bits of what resumes are tested above, by way of a kill
def test_within_one_run_nothing_is_lost(config, run_quickly, run_of, tmp_path, capfd):
    """Not killed: the folds are grouped again, and the bar counts each epoch once."""
    original = folds.FoldTrainer._train
    trained = []

    def train(trainer, chosen, *arguments):
        results = original(trainer, chosen, *arguments)
        if trainer.folds_per_device == 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        trained.extend(fold.name for fold in chosen)
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds.FoldTrainer, "_train", train)
        run_quickly(config(3), tmp_path)
    assert trained == NAMES
    found, single = Predictions.load(tmp_path / "predictions.npz"), run_of(1)
    np.testing.assert_array_equal(found.logits, single.logits)
    total = len(NAMES) * config(3).epochs
    assert f"{total}/{total} epochs" in capfd.readouterr().err.splitlines()[-1]
    record = json.loads((tmp_path / "environment.json").read_text())
    assert [change["models_trained_before"] for change in record["regrouped"]] == [0]
