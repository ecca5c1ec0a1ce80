"""Several processes on one machine, found over the loopback interface, that share a run."""

import concurrent.futures
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from htnet_jax.training.cluster import Cluster, Others
from htnet_jax.training.handover import Handover
from htnet_jax.training.stopping import Stopped, StopRequest

import htnet_jax
from htnet_jax.config import default_config
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import cluster, storage

TESTS = pathlib.Path(__file__).parents[1]
CONFIG = """
from ml_collections import ConfigDict
from htnet_jax.config import default_config

def get_config():
    config = default_config()
    config.update({"batch_size": 10, "learning_rate": 0.01, "shuffle": True, "seeds": 2})
    config.update({"epochs": 4, "folds_per_device": 1, "cpu_devices": 2})
    config.update({"checkpoint_every": 1, "checkpoint_seconds": 0})
    config.model = ConfigDict({"name": "Linear", "num_classes": 3, "image_size": 28})
    config.dataset.update({"name": "synthetic", "config": "tiny", "layout": "upright"})
    config.dataset.scaling = "minmax_255"
    config.folds = "a01,b02,g01"
    return config
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def start_two(tmp_path, data_dir, arrays):
    """Starts processes 0 and 1 of a run on two devices each; they are ended after the test."""
    (tmp_path / "config.py").write_text(CONFIG)
    port = free_port()
    started = []

    def start_two(workdir, *flags):
        for index in range(2):
            command = [
                *(sys.executable, str(TESTS / "fakes" / "train_linear.py")),
                *(f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"),
                *("--config.distributed=True", f"--config.coordinator=127.0.0.1:{port}"),
                *("--config.processes=2", f"--config.process={index}"),
                *(f"--config.dataset.data_dir={data_dir}", *flags),
            ]
            started.append(
                subprocess.Popen(
                    command,
                    env={
                        **os.environ,
                        "XDG_CACHE_HOME": str(tmp_path / "cache"),
                        "JAX_PLATFORMS": "cpu",
                    },
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start_two
    for process in started:
        process.kill()
        process.communicate()


def same_bits(one, two):
    np.testing.assert_array_equal(one.logits, two.logits)
    np.testing.assert_array_equal(one.train_loss, two.train_loss)
    assert one.clips.tolist() == two.clips.tolist()


def test_two_processes_predict_what_one_does(start_two, make_config, run_quickly, arrays, tmp_path):
    both = start_two(tmp_path / "two")
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    leader, helper = said
    assert "final" in leader[0]
    assert helper[0] == ""
    # 6 models, 2 devices a process: two rounds of 2 for process 0, one for process 1.
    assert "process 0, round 2/2, 2 folds" in leader[1]
    assert "process 1, round 1/1, 2 folds" in helper[1]

    common = {"epochs": 4, "folds_per_device": 1, "seeds": 2, "folds": "a01,b02,g01"}
    run_quickly(make_config(**common), tmp_path / "one")
    runs = [Predictions.load(tmp_path / name / "predictions.npz") for name in ("two", "one")]
    same_bits(*runs)
    assert not (tmp_path / "two" / "unfinished").exists()
    names = ["a01", "a01.seed1", "b02", "b02.seed1", "g01", "g01.seed1"]
    kept = sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())
    assert kept == names
    # Process 1 trained the fold b02.
    for name in names:
        found, expected = (
            htnet_jax.load(tmp_path / run / "checkpoints" / name) for run in ("two", "one")
        )
        jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
        assert (found.config.seed, found.config.seeds) == (int("seed1" in name), 1)


@pytest.mark.slow  # two processes that compile, and a third
def test_a_helper_stops_and_one_process_goes_on(
    start_two, make_config, run_quickly, arrays, tmp_path
):
    folder = tmp_path / "run"
    leader, helper = both = start_two(
        folder, "--config.epochs=1000", "--config.checkpoints=none", "--config.seeds=1"
    )
    # A snapshot after every epoch makes the rounds last for seconds.
    until = time.monotonic() + 120
    while len({path.parent for path in folder.glob("unfinished/state-*/epoch-*")}) < 2:
        assert time.monotonic() < until
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.02)
    helper.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120) for process in both]
    assert (leader.returncode, helper.returncode) == (2, 128 + signal.SIGTERM), said
    assert "process 1 has stopped (interrupted)" in said[0][1]
    kept = folder.glob("unfinished/state-*/epoch-*/arrays/arrays.npz")
    rounds = {path.parents[2] for path in kept}
    assert len(rounds) == 2

    # With a single process of two devices the rounds have the same folds: both are gone on with.
    common = {"epochs": 1000, "folds_per_device": 1, "folds": "a01,b02,g01", "checkpoints": "none"}
    two = jax.local_devices()[:2]
    with (
        mock.patch.object(storage, "restore_state", wraps=storage.restore_state) as restored,
        mock.patch.object(jax, "local_devices", lambda *_, **__: two),
    ):
        run_quickly(make_config(**common), folder)
    assert {call.args[0].parents[1] for call in restored.call_args_list} == rounds
    run_quickly(make_config(**common), tmp_path / "whole")
    same_bits(*(Predictions.load(one / "predictions.npz") for one in (folder, tmp_path / "whole")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "host:1"}, r"set --config\.distributed=True too"),
        ({"process": 0}, r"set --config\.distributed=True too"),
        ({"distributed": True, "coordinator": "host"}, r"coordinator='host' must be HOST:PORT"),
        ({"distributed": True, "coordinator": ":3003"}, r"must be HOST:PORT"),
        ({"distributed": True, "coordinator": "host:0"}, r"must be HOST:PORT"),
        ({"distributed": True, "processes": -1}, r"processes=-1 must be the number"),
        ({"distributed": True, "processes": 2, "process": 2}, r"process=2 must be 0 to 1"),
        ({"distributed": True, "process": -2}, r"process=-2 must be 0 to config\.processes - 1"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    config = default_config()
    config.update(flags)
    with pytest.raises(UserError, match=message):
        cluster.connect(config)


def test_a_coordinator_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECTING_S", 0.1)
    config = default_config()
    address = f"127.0.0.1:{free_port()}"
    config.update({"distributed": True, "coordinator": address, "processes": 2, "process": 1})
    with pytest.raises(UserError, match=rf"--config\.coordinator={address} within.*refused"):
        cluster.connect(config)


@pytest.mark.parametrize("process", [0, 1])
def test_a_host_that_there_is_not(process):
    config = default_config()
    address = "nohost.invalid:3000"
    config.update({"distributed": True, "coordinator": address, "processes": 2})
    config.process = process
    with pytest.raises(UserError, match=r"config\.coordinator=nohost\.invalid:3000: there is no"):
        cluster.connect(config)


def test_processes_that_cannot_be_joined(monkeypatch, capsys):
    def initialize(**given):
        assert given["coordinator_address"] == "127.0.0.1:1"
        # Others may be writing their last snapshots for long.
        assert given["shutdown_timeout_seconds"] >= 3600
        assert (given["num_processes"], given["process_id"]) == (2, 0)
        raise RuntimeError("DEADLINE_EXCEEDED: too late\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    config = default_config()
    address = "127.0.0.1:1"
    config.update({"distributed": True, "coordinator": address, "processes": 2, "process": 0})
    with pytest.raises(UserError, match=r"too late\).*300 s.*--config\.coordinator=HOST:PORT"):
        cluster.connect(config)
    assert "joining the other processes at 127.0.0.1:1, for up to 300 s" in capsys.readouterr().err


def test_a_process_alone():
    cluster.connect(default_config())
    assert cluster.here() == Cluster(0, 1)


def test_processes_with_other_devices(monkeypatch):
    def device(process):
        return types.SimpleNamespace(process_index=process, device_kind="cpu")

    monkeypatch.setattr(jax, "devices", lambda: [device(0), device(0), device(1)])
    with pytest.raises(UserError, match=r"(?s)process 0: 2 x cpu.*process 1: 1 x cpu"):
        cluster.here()


def test_waiting_ends_when_asked_to_stop(monkeypatch):
    looks = iter([False, False, True])
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_LOOKS", 0)
    cluster.wait(lambda: next(looks))
    assert next(looks, "none left") == "none left"
    with pytest.raises(UserError, match="process 1 has stopped"):
        cluster.wait(lambda: False, StopRequest(lambda: "process 1 has stopped"))
    stop = StopRequest()
    stop._number = 15
    with pytest.raises(Stopped):
        cluster.wait(lambda: False, stop)


def test_word_of_another_attempt_says_nothing(monkeypatch, tmp_path):
    """The barriers are of the service; here process 1 comes to each just before process 0."""
    monkeypatch.setattr(cluster, "_APPEARING_S", 0.05)
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "session.txt").write_text("old")
    (tmp_path / "stopped-old-1.txt").write_text("long ago")
    leader, helper = (Others(tmp_path, Cluster(index, 2)) for index in range(2))
    monkeypatch.setattr(cluster, "_come_to", lambda barrier: None)
    with pytest.raises(UserError, match=r"(?s)does not see what process 0.*--workdir"):
        helper.meet()
    with pytest.raises(UserError, match=r"not all processes see.*missing: process 1\); give"):
        leader.meet()
    monkeypatch.setattr(cluster, "_APPEARING_S", 60)
    leader, helper = (Others(tmp_path, Cluster(index, 2)) for index in range(2))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        meeting = pool.submit(leader.meet)
        helper.meet()
        meeting.result()
    assert leader.stopped() == helper.stopped() == ""
    with pytest.raises(ValueError, match="too hot"), helper.told():
        raise ValueError("too hot")
    assert leader.stopped().startswith("process 1 has stopped (too hot).")
    assert helper.stopped() == ""


def test_what_helpers_hand_over(tmp_path):
    handover, taken = Handover(tmp_path), []
    params = {"Dense_0": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    handover.leave_variables("a01", params)
    handover.take_variables("b01", taken.append)
    assert taken == []
    handover.take_variables("a01", taken.append)
    assert len(taken) == 1
    jax.tree.map(np.testing.assert_array_equal, taken[0], params)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "variables-a01.npz").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"variables-a01\.npz.*\nDelete this file, and the fold's own"
    ):
        handover.take_variables("a01", taken.append)
    assert handover.choices() == {}
    handover.leave_choices(1, {"a01": {"C": 1.0}})
    handover.leave_choices(1, {"b01": {"C": 2.0}})
    handover.leave_choices(2, {"c01": {"C": 3.0}})
    assert handover.choices() == {"a01": {"C": 1.0}, "b01": {"C": 2.0}, "c01": {"C": 3.0}}


def test_state_of_one_of_several_processes(monkeypatch, tmp_path):
    """Of any type, and readable whatever the number of processes is then."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, -2], jnp.bfloat16),
        "c": np.int32(3),
    }
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        storage.save_state(tmp_path / "several", {k: np.asarray(v) for k, v in arrays.items()})
    storage.save_state(tmp_path / "one", {k: np.asarray(v) for k, v in arrays.items()})
    assert [path.name for path in (tmp_path / "several").iterdir()] == ["arrays.npz"]
    for name in ("several", "one"):
        found = storage.restore_state(tmp_path / name)
        assert found.keys() == arrays.keys()
        for key, value in arrays.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)
