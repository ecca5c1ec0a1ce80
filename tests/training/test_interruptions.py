"""Runs that are stopped, killed or damaged in the middle of a round, and resumed."""

import os
import signal
import threading

import numpy as np
import pytest

from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import experiment, folds, state, workdir
from htnet_jax.training.interrupts import Stopped, StopRequest
from htnet_jax.training.state import Snapshots

EPOCHS = 9


@pytest.fixture(autouse=True)
def usual_handlers():
    """The tests themselves may run in a shell's background, where SIGINT is ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(epochs=EPOCHS, checkpoint_every=2, checkpoint_seconds=0, checkpoints="none")


@pytest.fixture(scope="module")
def whole(config, run_quickly, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_quickly(config, folder)
    return Predictions.load(folder / "predictions.npz")


def same_bits(folder, whole):
    found = Predictions.load(folder / "predictions.npz")
    np.testing.assert_array_equal(found.logits, whole.logits)
    np.testing.assert_array_equal(found.train_loss, whole.train_loss)
    assert not (folder / "unfinished").exists()


@pytest.fixture
def stopped_at(config, run_quickly, monkeypatch):
    """Runs until `action` has been called when a round has done `epoch` epochs."""

    def stopped_at(folder, epoch, action, expected, config=config):
        original = folds._check_finite

        def check(chosen, logits, losses, done):
            original(chosen, logits, losses, done)
            if done + logits.shape[1] >= epoch:
                action()

        used = []

        def make(*arguments):
            used.append(Snapshots(*arguments))
            return used[-1]

        with monkeypatch.context() as patch:
            patch.setattr(folds, "_check_finite", check)
            patch.setattr(folds, "SECONDS_PER_CALL", 0)  # an epoch a call
            patch.setattr(experiment, "Snapshots", make)
            with pytest.raises(expected):
                run_quickly(config, folder)
        for one in used:  # A process that is killed does not write on; this one would.
            one.wait()

    return stopped_at


def epochs_kept(folder):
    return sorted(
        int(path.name.removeprefix("epoch_"))
        for path in (folder / "unfinished").glob("state-*/epoch_*[0-9]")
    )


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_stops(
    number, children, stopped_at, config, run_quickly, whole, tmp_path, capfd
):
    def stop():
        seen.append(children())
        os.kill(os.getpid(), number)

    seen, before = [], children()
    stopped_at(tmp_path, 5, stop, Stopped)
    # Training has no child processes: none is left behind, however it ends.
    assert seen == [before]
    assert "the state of training will be saved; once more stops at once" in capfd.readouterr().err
    assert epochs_kept(tmp_path) == [4, 5]  # by the clock, and at once
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run_quickly(config, tmp_path)
    same_bits(tmp_path, whole)


def test_a_second_interrupt_stops_at_once(tmp_path):
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt) as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.type is KeyboardInterrupt


def test_outside_the_main_thread_nothing_is_caught():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(0, signal.SIG_DFL)]


def test_an_ignored_signal_stays_ignored():
    """As in a shell's background, or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.number
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


class PowerCut(Exception):
    pass


def cut():
    raise PowerCut


@pytest.mark.parametrize("epoch", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_what_was_lost_is_trained_again(epoch, stopped_at, config, run_quickly, whole, tmp_path):
    stopped_at(tmp_path, epoch, cut, PowerCut)
    assert not (tmp_path / "predictions.npz").exists()
    run_quickly(config, tmp_path)
    same_bits(tmp_path, whole)


def damage_flip(folder):
    path = max((p for p in (folder / "default").rglob("*") if p.is_file()), key=os.path.getsize)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_resumes_from_the_snapshot_before_a_damaged_one(
    stopped_at, config, run_quickly, whole, tmp_path, capfd
):
    stopped_at(tmp_path, 7, cut, PowerCut)
    kept = epochs_kept(tmp_path)
    assert len(kept) == state.KEPT
    (newest,) = (tmp_path / "unfinished").glob(f"state-*/epoch_{kept[-1]}")
    damage_flip(newest)
    run_quickly(config, tmp_path)
    shown = capfd.readouterr().err
    assert f"{newest}: damaged" in shown
    # In a log, too, one sees where the round resumes.
    assert f"epoch={kept[0]}/{EPOCHS}" in shown
    same_bits(tmp_path, whole)


def test_other_versions_do_not_resume(stopped_at, config, run_quickly, tmp_path, monkeypatch):
    stopped_at(tmp_path, 5, cut, PowerCut)
    monkeypatch.setattr(workdir, "_version", lambda name: f"{name}-9.9")
    with pytest.raises(UserError) as caught:
        run_quickly(config, tmp_path)
    assert "holds an unfinished run of other versions" in str(caught.value)
    assert "jax-9.9 now" in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_a_full_disk_ends_in_one_message(
    stopped_at, config, run_quickly, whole, tmp_path, monkeypatch
):
    """Simulated where the manifest is written; what was written before is kept."""

    def full(folder, arrays, **facts):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "_write_manifest", full)
        with pytest.raises(UserError, match="No space left on device"):
            run_quickly(config, tmp_path)
    assert not epochs_kept(tmp_path)
    run_quickly(config, tmp_path)
    same_bits(tmp_path, whole)


def test_fast_epochs_leave_no_snapshots(stopped_at, make_config, run_quickly, tmp_path):
    """The default: none within minutes of the last one, but one on a signal."""
    patient = make_config(epochs=EPOCHS, checkpoint_every=2, checkpoints="none")
    assert patient.checkpoint_seconds >= 60
    stopped_at(tmp_path / "killed", 5, cut, PowerCut, patient)
    assert not epochs_kept(tmp_path / "killed")
    asked = tmp_path / "asked"
    stopped_at(asked, 5, lambda: os.kill(os.getpid(), signal.SIGTERM), Stopped, patient)
    assert epochs_kept(asked) == [5]
