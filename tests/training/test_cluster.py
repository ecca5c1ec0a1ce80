"""Several processes on one machine, found over the loopback interface, that share a run."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import htnet_jax
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import cluster
from htnet_jax.training.cluster import Cluster
from htnet_jax.training.config import default_config
from htnet_jax.training.stopping import Stopped, StopRequest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from htnet_jax.training.config import default_config

def get_config():
    config = default_config()
    config.update({"epochs": 2, "batch_size": 10, "shuffle": True, "folds_per_device": 1})
    config.update({"checkpoints": "b02,g01", "cpu_devices": 2, "seeds": 2, "folds": "a01,b02,g01"})
    config.model.update({"dim": 6, "block_repeats": (1, 0, 0)})
    config.dataset.update({"name": "synthetic", "config": "tiny", "layout": "upright"})
    config.dataset.scaling = "minmax_255"
    return config
"""


@pytest.fixture
def start(tmp_path, data_dir, arrays):
    (tmp_path / "config.py").write_text(CONFIG)

    def start(workdir, *flags):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "htnet_jax.train", f"--config={tmp_path / 'config.py'}"),
                *(f"--workdir={workdir}", f"--config.dataset.data_dir={data_dir}", *flags),
            ],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_processes_predict_what_one_does(start, tmp_path, arrays):
    address = f"--config.coordinator=127.0.0.1:{free_port()}"
    shared = ("--config.distributed=True", address, "--config.processes=2")
    both = [start(tmp_path / "two", *shared, f"--config.process={index}") for index in (1, 0)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    helper, leader = said
    assert helper[0] == ""
    assert "final" in leader[0]
    # 6 models, 2 devices a process: two rounds of 2 for process 0, one for process 1.
    assert "round 2/2, 2 folds" in leader[1]
    assert "round 1/1, 2 folds" in helper[1]
    alone = start(tmp_path / "one")
    said = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    two, one = (Predictions.load(tmp_path / name / "predictions.npz") for name in ("two", "one"))
    np.testing.assert_array_equal(two.logits, one.logits)
    np.testing.assert_array_equal(two.train_loss, one.train_loss)
    assert two.clips.tolist() == one.clips.tolist()
    kept = sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())
    assert kept == ["b02", "b02.seed1", "g01", "g01.seed1"]
    assert not (tmp_path / "two" / "unfinished").exists()
    # Process 1 trained the fold b02.
    inputs = loading.network_inputs(
        arrays, layout="upright", channels=("strain", "v", "u"), scaling="minmax_255"
    )
    for seed, name in enumerate(("b02", "b02.seed1")):
        module, variables, config = htnet_jax.load(tmp_path / "two" / "checkpoints" / name)
        logits = module.apply(variables, inputs[arrays.subjects == "b02"], train=False)
        expected = two.logits[seed, -1, two.subjects == "b02"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        assert (config.seed, config.seeds) == (seed, 1)


def test_nobody_to_join():
    config = default_config()
    cluster.connect(config)  # Not asked for: nothing happens.
    assert cluster.here() == Cluster(0, 1)
    config.distributed = True
    with pytest.raises(UserError, match=r"--config\.coordinator=HOST:PORT"):
        cluster.connect(config)


def test_waiting_ends_when_asked_to_stop(monkeypatch):
    looks = iter([False, False, True])
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_LOOKS", 0)
    cluster.wait(lambda: next(looks))
    assert next(looks, "none left") == "none left"
    stop = StopRequest()
    stop._number = 15
    with pytest.raises(Stopped):
        cluster.wait(lambda: False, stop)
