"""Runs that are stopped, killed or damaged in the middle of a round, and gone on with."""

import os
import shutil
import signal
import threading

import numpy as np
import pytest
from htnet_jax.training.snapshots import Snapshots
from htnet_jax.training.stopping import Stopped, StopRequest

from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import experiment, folds, snapshots, workdir

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
        original = folds.FoldTrainer._check_finite

        def check(chosen, logits, losses, done):
            original(chosen, logits, losses, done)
            if done + logits.shape[1] >= epoch:
                action()

        used = []

        def make(*arguments):
            used.append(Snapshots(*arguments))
            return used[-1]

        with monkeypatch.context() as patch:
            patch.setattr(folds.FoldTrainer, "_check_finite", staticmethod(check))
            patch.setattr(folds, "SECONDS_PER_CALL", 0)  # an epoch a call
            patch.setattr(experiment, "Snapshots", make)
            with pytest.raises(expected):
                run_quickly(config, folder)
        for one in used:  # A process that is killed does not write on; this one would.
            one.wait()

    return stopped_at


def epochs_kept(folder):
    return sorted(
        int(path.name.removeprefix("epoch-"))
        for path in (folder / "unfinished").glob("state-*/epoch-*")
    )


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_stops(number, stopped_at, config, run_quickly, whole, tmp_path, capfd):
    stopped_at(tmp_path, 5, lambda: os.kill(os.getpid(), number), Stopped)
    assert "the state of training will be saved; once more stops at once" in capfd.readouterr().err
    assert epochs_kept(tmp_path) == [4, 5]  # by the clock, and at once
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run_quickly(config, tmp_path)
    same_bits(tmp_path, whole)


def test_a_second_interrupt_stops_at_once(tmp_path):
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt) as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.type is KeyboardInterrupt


def test_outside_the_main_thread_nothing_is_caught():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, signal.SIG_DFL)]


def test_an_ignored_signal_stays_ignored():
    """As in a shell's background, or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
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


def damage_truncate(folder):
    for path in (folder / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])


def damage_flip(folder):
    path = max((p for p in (folder / "arrays").rglob("*") if p.is_file()), key=os.path.getsize)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_manifest(folder):
    (folder / "manifest.json").write_text("{")


def damage_half(folder):
    shutil.rmtree(folder / "arrays")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_manifest, damage_half])
def test_a_damaged_snapshot_is_passed_over(damage, tmp_path, capfd):
    kept = Snapshots(tmp_path, {})
    for epoch in (2, 4):
        kept.save(epoch, {"x": np.full((20, 30), epoch, np.float32)})
    kept.wait()
    damage(tmp_path / "epoch-4")
    found = kept.latest()
    assert f"{tmp_path / 'epoch-4'}: damaged" in capfd.readouterr().err
    assert (found.epoch, found.arrays["x"][3, 4]) == (2, 2)
    damage(tmp_path / "epoch-2")
    assert kept.latest() is None


def test_a_run_goes_on_from_the_snapshot_before_a_damaged_one(
    stopped_at, config, run_quickly, whole, tmp_path, capfd
):
    stopped_at(tmp_path, 7, cut, PowerCut)
    kept = epochs_kept(tmp_path)
    assert len(kept) == snapshots.KEPT
    (newest,) = (tmp_path / "unfinished").glob(f"state-*/epoch-{kept[-1]}")
    damage_flip(newest)
    run_quickly(config, tmp_path)
    assert f"{newest}: damaged" in capfd.readouterr().err
    same_bits(tmp_path, whole)


def test_with_other_versions_nothing_is_gone_on_with(
    stopped_at, config, run_quickly, tmp_path, monkeypatch
):
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
        patch.setattr(snapshots.manifest, "write", full)
        with pytest.raises(UserError, match="No space left on device"):
            run_quickly(config, tmp_path)
    assert not epochs_kept(tmp_path)
    run_quickly(config, tmp_path)
    same_bits(tmp_path, whole)


def test_snapshots_are_few_and_belong_to_something(tmp_path):
    kept = Snapshots(tmp_path / "state", {"data": "a"})
    assert kept.latest() is None
    for epoch in (2, 4, 6, 8):
        kept.save(epoch, {"x": np.full((2, 3), epoch, np.float32)})
    kept.wait()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["epoch-6", "epoch-8"]
    found = kept.latest()
    assert found.epoch == 8
    np.testing.assert_array_equal(found.arrays["x"], np.full((2, 3), 8, np.float32))
    with pytest.raises(UserError, match="data: a there, b now"):
        Snapshots(tmp_path / "state", {"data": "b"}).latest()
    kept.clear()
    assert not (tmp_path / "state").exists()


def test_a_snapshot_is_a_copy(tmp_path):
    """The next call of a compiled program may reuse the memory."""
    kept, array = Snapshots(tmp_path, {}), np.zeros(3, np.float32)
    kept.save(1, {"x": array})
    array[:] = 7
    kept.wait()
    np.testing.assert_array_equal(kept.latest().arrays["x"], np.zeros(3))


def test_snapshots_of_a_new_beginning_outlive_those_that_were_rejected(tmp_path):
    """A round that began anew is at an earlier epoch than what it could not go on with."""
    earlier = Snapshots(tmp_path, {})
    for epoch in (100, 200):
        earlier.save(epoch, {"state": np.zeros(3)})
    earlier.wait()
    anew = Snapshots(tmp_path, {})
    for epoch in (10, 20, 30):
        anew.save(epoch, {"state": np.full(3, epoch)})
        anew.wait()
        found = Snapshots(tmp_path, {}).latest()
        assert (found.epoch, found.arrays["state"].tolist()) == (epoch, [epoch] * 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-20", "epoch-30"]


def test_fast_epochs_leave_no_snapshots(stopped_at, make_config, run_quickly, tmp_path):
    """The default: none within minutes of the last one, but one on a signal."""
    patient = make_config(epochs=EPOCHS, checkpoint_every=2, checkpoints="none")
    assert patient.checkpoint_seconds >= 60
    stopped_at(tmp_path / "killed", 5, cut, PowerCut, patient)
    assert not epochs_kept(tmp_path / "killed")
    asked = tmp_path / "asked"
    stopped_at(asked, 5, lambda: os.kill(os.getpid(), signal.SIGTERM), Stopped, patient)
    assert epochs_kept(asked) == [5]
