"""The command, killed without warning again and again, ends with the bits of one quiet run."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from htnet_jax.evaluation.predictions import Predictions

ROOT = pathlib.Path(__file__).parents[2]
KILLS = 20
CONFIG = """
from htnet_jax.config import default_config

def get_config():
    config = default_config()
    config.update({"epochs": 300, "batch_size": 10, "learning_rate": 1e-3, "shuffle": True})
    config.update({"checkpoint_every": 20, "checkpoint_seconds": 0})
    config.update({"checkpoints": "none", "inner_folds": 1})
    config.model.update({"dim": 6, "block_repeats": (1, 1, 1)})
    config.dataset.update({"name": "synthetic", "config": "tiny", "layout": "upright"})
    config.dataset.scaling = "minmax_255"
    return config
"""


@pytest.mark.slow
def test_sigkill_at_random_moments(data_dir, arrays, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)

    def start(workdir):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "htnet_jax.train", f"--config={path}"),
                *(f"--workdir={workdir}", f"--config.dataset.data_dir={data_dir}"),
                "--config.cpu_devices=2",
            ],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    quiet = start(tmp_path / "quiet")
    said, _ = quiet.communicate(timeout=600)
    assert quiet.returncode == 0, said
    began = time.monotonic()
    again = start(tmp_path / "again")
    said, _ = again.communicate(timeout=600)
    duration = time.monotonic() - began
    assert again.returncode == 0, said

    def check(workdir):
        ours = Predictions.load(workdir / "predictions.npz")
        theirs = Predictions.load(tmp_path / "quiet" / "predictions.npz")
        np.testing.assert_array_equal(ours.logits, theirs.logits)
        np.testing.assert_array_equal(ours.train_loss, theirs.train_loss)
        np.testing.assert_array_equal(ours.inner.logits, theirs.inner.logits)
        np.testing.assert_array_equal(ours.inner.test_logits, theirs.inner.test_logits)
        assert sorted(ours.clips) == sorted(arrays.clips)

    moments = random.Random(0)
    kills = during_a_save = runs = 0
    while kills < KILLS:
        workdir = tmp_path / f"killed{runs}"
        process = start(workdir)
        # Every other one as soon as a snapshot is being written, the rest at any time.
        until = time.monotonic() + moments.uniform(0, 1.2 * duration)
        wait_for_save = kills % 2 == 1
        is_saving = False
        while process.poll() is None and time.monotonic() < until and not is_saving:
            is_saving = wait_for_save and any(
                workdir.glob("unfinished/state-*/*orbax-checkpoint-tmp*")
            )
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            during_a_save += is_saving
        said, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said
        # Killed, it may be done all the same: the program takes a moment to end.
        if (workdir / "predictions.npz").exists():
            check(workdir)
            runs += 1
        else:
            assert process.returncode, said
    last = start(tmp_path / f"killed{runs}")
    said, _ = last.communicate(timeout=600)
    assert last.returncode == 0, said
    check(tmp_path / f"killed{runs}")
    print(f"{kills} kills in {runs + 1} runs of {duration:.0f} s, {during_a_save} during a save")
    assert during_a_save
