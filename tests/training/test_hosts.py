"""Several processes on one machine, found over the loopback interface, that share a run."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

import htnet_jax
from htnet_jax.config import default_config
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import hosts

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


# What two processes of the fast test do, by the name given to each.
SCRIPT = """
import os, signal, sys, time
import jax, numpy as np
from htnet_jax.config import default_config
from htnet_jax.errors import UserError, run_command
from htnet_jax.training import hosts

def main(argv):
    index, port, act = int(argv[1]), argv[2], argv[3]
    config = default_config()
    config.update({"distributed": True, "coordinator": f"127.0.0.1:{port}"})
    config.update({"processes": 2, "process": index})
    jax.config.update("jax_num_cpu_devices", 2)
    hosts.connect(config)
    with hosts.together():
        hosts.check_devices()
        own = {"a": np.array([index == 1]), "b": np.full((2, 3), index + 0.5)}
        joined = hosts.gather(own)
        assert joined["a"].tolist() == [False, True], joined
        assert joined["b"].tolist() == [[0.5] * 3] * 2 + [[1.5] * 3] * 2, joined
        (on_device,) = hosts.gather([jax.device_put(np.arange(2, dtype=np.int16) - index)])
        assert (on_device.tolist(), on_device.dtype) == ([0, 1, -1, 0], np.int16), on_device
        assert hosts.texts("\u00fc" * index) == ["", "\u00fc"]
        assert hosts.leads() == (index == 0)
        if act == "error":
            raise UserError("bad data")
        if act == "bug":
            raise KeyError("bug")
        if act == "interrupt":
            raise KeyboardInterrupt
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        hosts.gather(np.zeros(1))
        print("end")

run_command(main)
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts a command of this Python; it is ended after the test."""
    started = []

    def start(*command):
        environment = {
            **{"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"},
            **{"PYTHONPATH": str(TESTS.parent)},
        }
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("acts", "statuses"),
    [
        (("end", "end"), (0, 0)),
        pytest.param(("end", "error"), (2, 2), marks=pytest.mark.slow),
        (("error", "end"), (2, 2)),
        pytest.param(("error", "error"), (2, 2), marks=pytest.mark.slow),
        pytest.param(("end", "bug"), (2, 1), marks=pytest.mark.slow),
        pytest.param(("interrupt", "end"), (130, 2), marks=pytest.mark.slow),
        (("end", "kill"), (2, -signal.SIGKILL)),
    ],
)
def test_two_processes_end_together(acts, statuses, start, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    port = free_port()
    both = [start(tmp_path / "script.py", i, port, act) for i, act in enumerate(acts)]
    said = [process.communicate(timeout=60) for process in both]
    assert tuple(process.returncode for process in both) == statuses, said
    for act, other, (out, error) in zip(acts, acts[::-1], said, strict=True):
        # Nothing else is on standard output: not what Gloo prints either.
        assert out == ("end\n" if acts == ("end", "end") else "")
        if act == "error":
            assert "error: bad data" in error
        if act == "end" and other == "kill":
            assert "another process has ended without a word" in error
        elif act == "end" and other != "end":
            index = 1 - acts.index("end")
            assert f"error: process {index} has stopped; see its message" in error


def test_a_process_alone():
    hosts.connect(default_config())
    hosts.check_devices()
    assert hosts.leads()
    assert hosts.texts("a") == ["a"]
    tree = hosts.gather({"a": jax.numpy.arange(3), "b": [np.zeros((1, 2))]})
    assert (tree["a"].tolist(), tree["b"][0].tolist()) == ([0, 1, 2], [[0, 0]])
    assert isinstance(tree["a"], np.ndarray)
    with pytest.raises(ValueError, match="hot"), hosts.together():
        raise ValueError("hot")


@pytest.fixture
def start_two(start, tmp_path, data_dir, arrays):
    """Starts processes 0 and 1 of a run on two devices each."""
    (tmp_path / "config.py").write_text(CONFIG)

    def start_two(workdir, *flags):
        port = free_port()
        return [
            start(
                TESTS / "fakes" / "train_linear.py",
                *(f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"),
                *("--config.distributed=True", f"--config.coordinator=127.0.0.1:{port}"),
                *("--config.processes=2", f"--config.process={index}"),
                *(f"--config.dataset.data_dir={data_dir}", *flags),
            )
            for index in range(2)
        ]

    return start_two


def finish(both):
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return said


def same_bits(*folders):
    one, two = (Predictions.load(folder / "predictions.npz") for folder in folders)
    np.testing.assert_array_equal(one.logits, two.logits)
    np.testing.assert_array_equal(one.train_loss, two.train_loss)
    assert one.clips.tolist() == two.clips.tolist()


@pytest.mark.slow  # two processes that compile
def test_two_processes_predict_what_one_does(start_two, make_config, run_quickly, arrays, tmp_path):
    leader, helper = finish(start_two(tmp_path / "two"))
    assert "final" in leader[0]
    assert helper[0] == ""
    assert "round 2/2, 2 folds" in leader[1]
    assert "round" not in helper[1]

    common = {"epochs": 4, "folds_per_device": 1, "seeds": 2, "folds": "a01,b02,g01"}
    run_quickly(make_config(**common), tmp_path / "one")
    same_bits(tmp_path / "two", tmp_path / "one")
    assert not (tmp_path / "two" / "unfinished").exists()
    names = ["a01", "a01.seed1", "b02", "b02.seed1", "g01", "g01.seed1"]
    kept = sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())
    assert kept == names
    for name in names:
        found, expected = (
            htnet_jax.load(tmp_path / run / "checkpoints" / name) for run in ("two", "one")
        )
        jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
        assert (found.config.seed, found.config.seeds) == (int("seed1" in name), 1)


@pytest.mark.slow  # four processes that compile
@pytest.mark.parametrize("victim", [0, 1, "asked"])
def test_one_process_is_lost_and_both_resume(
    victim, start_two, make_config, run_quickly, arrays, tmp_path
):
    """Killed, or asked to stop."""
    folder, flags = tmp_path / "run", ("--config.epochs=200", "--config.checkpoints=none")
    both = start_two(folder, *flags)
    until = time.monotonic() + 120
    # A snapshot after every epoch makes a round last long enough.
    while not any(folder.glob("unfinished/state-*/epoch_*[0-9]")):
        assert time.monotonic() < until
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.02)
    if victim == "asked":
        both[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60) for process in both]
        # Both at the same epoch, with the state on disk.
        assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, said
        assert "stopping: the state of training will be saved" in said[1][1]
    else:
        both[victim].send_signal(signal.SIGKILL)
        other = both[1 - victim]
        _, error = other.communicate(timeout=60)
        # JAX's own message if the service of process 0 is noticed to be gone before.
        expected = {2: "another process has ended without a word"}
        if victim == 0:
            expected[-signal.SIGABRT] = "Terminating process because the JAX distributed service"
        assert expected[other.returncode] in error
    assert not (folder / "predictions.npz").exists()
    epochs = [int(path.name[6:]) for path in folder.glob("unfinished/state-*/epoch_*[0-9]")]
    leader, _ = finish(start_two(folder, "--config.checkpoint_seconds=300", *flags))
    first = leader[1].partition("epoch=")[2].partition("/")[0]
    assert int(first) >= max(epochs)
    common = {"epochs": 200, "folds_per_device": 1, "seeds": 2, "folds": "a01,b02,g01"}
    run_quickly(make_config(**common, checkpoints="none"), tmp_path / "whole")
    same_bits(folder, tmp_path / "whole")


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
        hosts.connect(config)


def test_a_coordinator_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(hosts, "CONNECTING_S", 0.1)
    config = default_config()
    address = f"127.0.0.1:{free_port()}"
    config.update({"distributed": True, "coordinator": address, "processes": 2, "process": 1})
    with pytest.raises(UserError, match=rf"--config\.coordinator={address} within.*refused"):
        hosts.connect(config)


@pytest.mark.parametrize("process", [0, 1])
def test_a_host_that_there_is_not(process):
    config = default_config()
    address = "nohost.invalid:3000"
    config.update({"distributed": True, "coordinator": address, "processes": 2})
    config.process = process
    with pytest.raises(UserError, match=r"config\.coordinator=nohost\.invalid:3000: there is no"):
        hosts.connect(config)


def test_processes_that_cannot_be_joined(monkeypatch, capsys):
    def initialize(**given):
        assert given["coordinator_address"] == "127.0.0.1:1"
        # Others may be writing their last snapshots for long.
        assert given["shutdown_timeout_seconds"] >= 3600
        # A dead process is noticed within a minute.
        assert given["heartbeat_timeout_seconds"] < 60
        assert (given["num_processes"], given["process_id"]) == (2, 0)
        raise RuntimeError("DEADLINE_EXCEEDED: too late\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    config = default_config()
    address = "127.0.0.1:1"
    config.update({"distributed": True, "coordinator": address, "processes": 2, "process": 0})
    with pytest.raises(UserError, match=r"too late\).*300 s.*--config\.coordinator=HOST:PORT"):
        hosts.connect(config)
    assert "joining the other processes at 127.0.0.1:1, for up to 300 s" in capsys.readouterr().err


def test_processes_with_other_devices(monkeypatch):
    def device(process):
        return types.SimpleNamespace(process_index=process, device_kind="cpu")

    monkeypatch.setattr(jax, "devices", lambda: [device(0), device(0), device(1)])
    with pytest.raises(UserError, match=r"(?s)process 0: 2 x cpu.*process 1: 1 x cpu"):
        hosts.check_devices()
