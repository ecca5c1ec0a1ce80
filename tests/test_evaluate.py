import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from htnet_jax import evaluate
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of one fold with a perfect last epoch."""
    folder = tmp_path / "my_run"
    folder.mkdir()
    Predictions(
        logits=np.stack([np.zeros((3, 3)), np.eye(3)]).astype(np.float32),
        epochs=[1, 2],
        fold=[0, 0, 0],
        folds=["s1"],
        clips=["a", "b", "c"],
        subjects=["s1"] * 3,
        sources=["synthetic"] * 3,
        labels=[0, 1, 2],
        class_names=["negative", "positive", "surprise"],
        train_loss=np.array([[1.0, 0.1]], np.float32),
    ).save(folder / "predictions.npz")
    return folder


def test_main_writes_again_what_was_removed(run_folder, capsys):
    (run_folder / "config.json").write_text('{"epochs": 2}')
    evaluate.main(["evaluate", str(run_folder)])
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["final"]["composite"]["uf1"] == 1.0
    assert "&quot;epochs&quot;: 2" in (run_folder / "report.html").read_text()
    assert "1.0000 / 1.0000" in capsys.readouterr().out


def test_errors_name_the_place(run_folder, tmp_path):
    with pytest.raises(UserError, match="No run given"):
        evaluate.main(["evaluate"])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        evaluate.main(["evaluate", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"predictions\.npz: no such file"):
        evaluate.main(["evaluate", str(tmp_path)])
    for content, message in (("{", "cannot be read as JSON"), ("[]", "not a JSON object")):
        (run_folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=rf"config\.json: {message}"):
            evaluate.main(["evaluate", str(run_folder)])


def test_command(run_folder):
    """Two runs, the second missing: the first is reported, the second is one message, status 2."""
    missing = run_folder.parent / "missing"
    done = subprocess.run(
        [sys.executable, "-m", "htnet_jax.evaluate", str(run_folder), str(missing)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 2
    assert "my_run: clips 3, folds 1" in done.stdout
    assert "last epoch" in done.stdout
    assert done.stderr.count("error:") == 1
    assert "missing: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run_folder / "report.html").exists()
