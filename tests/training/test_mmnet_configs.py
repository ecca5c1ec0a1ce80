"""The configs of MMNet's release on a small invented CASME II, with a smaller network."""

import pathlib
import runpy

import numpy as np
import pytest
from fakes import casme2

from htnet_jax.datasets import builder, loading
from htnet_jax.datasets.synthetic import recipe, rendering
from htnet_jax.evaluation.predictions import Predictions

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def faces():
    """`faces(subject, label)` -> a rendered clip."""
    planned = recipe.plan(0, 4, 12)
    subjects = list(dict.fromkeys(clip.subject for clip in planned))

    def render(subject, label):
        of = (c for c in planned if c.subject == subjects[subject] and c.label == label)
        return rendering.render_clip(0, next(of))

    return render


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 5])
def test_an_epoch(classes, faces, run_quickly, tmp_path):
    config = runpy.run_path(str(CONFIGS / f"casme2_mmnet_{classes}class.py"))["get_config"]()
    # Points that need no model of landmarks.
    size, _, rest = config.dataset.config.partition("+")
    config.dataset.config = f"{size}+align-none+landmarks-template+{rest}"
    config.dataset.data_dir = str(tmp_path / "data")
    (tmp_path / "copy").mkdir()
    casme2.write(tmp_path / "copy", faces)
    arrays, _ = loading.prepare(
        "casme2",
        config=config.dataset.config,
        manual_dir=str(tmp_path / "copy"),
        data_dir=config.dataset.data_dir,
        labels=config.dataset.labels,
        options=builder.Options(workers=1, allow_incomplete=True),
    )
    assert len(arrays.class_names) == classes
    config.epochs, config.batch_size, config.folds_per_device = 1, 2, 1
    config.checkpoints, config.dataset.frame_size = "none", 32
    config.model.update(
        {"image_size": 32, "stem": 4, "widths": (4, 4, 8, 8), "depth": 2, "heads": 2}
    )
    run_quickly(config, tmp_path / "run")
    found = Predictions.load(tmp_path / "run" / "predictions.npz")
    assert sorted(found.clips) == sorted(arrays.clips)
    assert found.logits.shape == (1, 1, len(arrays.clips), classes)
    assert np.isfinite(found.train_loss).all()
