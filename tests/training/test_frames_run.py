"""A whole run of MMNet on face frames: what it writes, and that a checkpoint predicts the same."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import htnet_jax
from htnet_jax.datasets import loading
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.features import make_feed
from htnet_jax.models import MMNet
from htnet_jax.training import experiment

# Compiling takes one to two minutes of a core. What is faster and goes the same way with another
# network: tests/models/test_adding_a_model.py.
pytestmark = pytest.mark.slow

SMALL = {
    "name": "MMNet",
    "num_classes": 4,
    "image_size": 32,
    "stem": 4,
    "widths": (4, 4, 8, 8),
    "depth": 1,
    "heads": 2,
    "mlp_mult": 1,
    "drop_path": 0.0,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def config(make_config):
    """All that MMNet's release uses: jitter, moves, AdamW, a schedule, an output to spare."""
    config = make_config(
        **{"inputs": "onset,apex", "epochs": 2, "folds": "a01,b02", "folds_per_device": 1},
        **{"optimizer": "adamw", "weight_decay": 0.6, "spare_outputs": 1},
        **{"schedule": "step", "learning_rate_decay": 0.9, "learning_rate_decay_epochs": 1},
        **{"augmentation__flip": 0.5, "augmentation__rotation": 3.0, "augmentation__shift": 2},
        **{"augmentation__onset_late": 0.25, "augmentation__apex_early": 0.25},
        **{"dataset__config": "tiny_frames", "dataset__frame_size": 32},
    )
    config.model = ConfigDict(SMALL)
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "run"
    return folder, experiment.run(config, folder)


@pytest.fixture(scope="module")
def feed(config, finished):
    arrays = loading.load("synthetic", config="tiny_frames", data_dir=config.dataset.data_dir)
    return arrays, make_feed(arrays, config)


def test_predictions_and_report(finished, feed):
    folder, run = finished
    arrays, _ = feed
    found = Predictions.load(folder / "predictions.npz")
    mine = np.isin(arrays.subjects, ["a01", "b02"])
    np.testing.assert_array_equal(found.clips, arrays.clips[mine])
    assert found.logits.shape == (1, 2, mine.sum(), 3)  # without the output to spare
    assert found.dataset == "synthetic/tiny_frames/1.0.0"
    assert len(np.unique(found.logits[0, -1], axis=0)) == mine.sum()
    assert not np.allclose(found.logits[0, 0], found.logits[0, 1], rtol=0.01)
    assert run.summary["final"]["composite"]["clips"] == mine.sum()
    page = (folder / "report.html").read_text()
    assert "MMNet" in page
    assert "data:image/png;base64," in page
    settings = json.loads((folder / "config.json").read_text())
    assert settings["inputs"] == "onset,apex"


@pytest.mark.parametrize("subject", ["a01", "b02"])
def test_a_checkpoint_predicts_what_the_run_did(finished, feed, predict, subject):
    folder, _ = finished
    arrays, frames = feed
    module, variables, config = htnet_jax.load(folder / "checkpoints" / subject)
    assert isinstance(module, MMNet)
    assert config.augmentation.flip == 0.5
    assert variables.keys() == {"params", "batch_stats"}
    statistics = jax.tree.leaves(variables["batch_stats"])
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in statistics)
    rows = np.flatnonzero(arrays.subjects == subject)
    logits = predict(module, variables, *frames.exact(frames.arrays, rows))
    found = Predictions.load(folder / "predictions.npz")
    expected = found.logits[0, -1, found.subjects == subject]
    np.testing.assert_allclose(logits[:, :3], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def predict():
    """Compiled once for all folds."""

    @jax.jit
    def apply(variables, onset, apex):
        return module_of[0].apply(variables, onset, apex, train=False)

    module_of = []

    def predict(module, variables, *frames):
        module_of[:] = [module]
        return apply(variables, *frames)

    return predict
