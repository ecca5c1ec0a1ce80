"""State on disk: it comes back to the bit, and what is damaged or does not fit is one message."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import htnet_jax
from htnet_jax import models
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.models import HTNet
from htnet_jax.training import state
from htnet_jax.training.state import Snapshots

OLD_RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "old_run"


@pytest.fixture(scope="module")
def finished(make_config, run_quickly, tmp_path_factory):
    """The folder of a run of the fold "a02" only, with two channels."""
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(folds="a02", epochs=2, dataset__channels="u,strain", folds_per_device=1)
    run_quickly(config, folder)
    return folder


@pytest.fixture(scope="module")
def htnet(make_config, tmp_path_factory):
    """(folder, params) of an HTNet's checkpoint: one token and one block."""
    config = make_config()
    config.model = ConfigDict(
        {"name": "HTNet", "image_size": 28, "patch_size": 28, "dim": 6, "num_hierarchies": 1}
        | {"block_repeats": (1,), "num_classes": 3}
    )
    x = np.zeros((1, 28, 28, 3), np.float32)
    init = jax.jit(lambda key: state.build_module(config.model).init(key, x, train=False))
    params = jax.device_get(init(jax.random.key(0))["params"])
    folder = state.fold_folder(tmp_path_factory.mktemp("htnet"), "s1")
    state.save_fold(folder, {"params": params}, json.loads(config.to_json()))
    return folder, params


@pytest.fixture
def fold(finished, tmp_path):
    """A copy of the run's checkpoint, to be spoilt."""
    return shutil.copytree(finished / "checkpoints" / "a02", tmp_path / "a02")


def refusal(path):
    with pytest.raises(UserError) as caught:
        htnet_jax.load(path)
    return str(caught.value)


def change_config(folder, **model):
    settings = json.loads((folder / "config.json").read_text())
    settings["model"] |= model
    (folder / "config.json").write_text(json.dumps(settings))


def test_a_loaded_fold_predicts_what_the_run_did(finished, arrays):
    module, variables, config = htnet_jax.load(finished / "checkpoints" / "a02")
    inputs = loading.network_inputs(
        arrays,
        layout=config.dataset.layout,
        channels=config.dataset.channels.split(","),
        scaling=config.dataset.scaling,
    )
    logits = module.apply(variables, inputs[arrays.subjects == "a02"], train=False)
    predictions = Predictions.load(finished / "predictions.npz")
    np.testing.assert_array_equal(predictions.clips, arrays.clips[arrays.subjects == "a02"])
    np.testing.assert_allclose(logits, predictions.logits[0, -1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(predictions.logits[0, 0], predictions.logits[0, -1], rtol=1e-2)


def test_a_run_of_an_earlier_version(arrays):
    """Written before htnet_jax 0.1.0 was taken apart: HTNet, two epochs, the fold "a02"."""
    module, variables, config = htnet_jax.load(OLD_RUN / "checkpoints" / "a02")
    assert isinstance(module, HTNet)
    predictions = Predictions.load(OLD_RUN / "predictions.npz")
    np.testing.assert_array_equal(predictions.clips, arrays.clips[arrays.subjects == "a02"])
    inputs = loading.network_inputs(
        arrays,
        layout=config.dataset.layout,
        channels=config.dataset.channels.split(","),
        scaling=config.dataset.scaling,
    )
    logits = module.apply(variables, inputs[arrays.subjects == "a02"], train=False)
    np.testing.assert_allclose(logits, predictions.logits[0, -1], rtol=1e-4, atol=1e-5)


def test_what_load_returns(finished, arrays, data_dir):
    loaded = htnet_jax.load(str(finished / "checkpoints" / "a02"))
    assert type(loaded.module) is models.MODELS["Linear"]
    assert (loaded.module.num_classes, loaded.module.image_size) == (3, 28)
    assert isinstance(loaded.config, ConfigDict)
    config = json.loads(loaded.config.to_json())
    about = config.pop("checkpoint")
    assert {**about, "run": "", "fingerprint": ""} == {
        **{"name": "a02", "fold": "a02", "run": "", "fingerprint": "", "labels": "megc3"},
        **{"dataset": arrays.name, "class_names": list(arrays.class_names)},
    }
    assert about["fingerprint"] == arrays.fingerprint
    # The run's settings, and where this machine has the data.
    assert config.pop("dataset").pop("data_dir") == data_dir
    public = json.loads((finished / "config.json").read_text())
    assert public.pop("dataset")["data_dir"] == ""
    assert config == public
    assert list(loaded.variables) == ["params"]
    for leaf in jax.tree.leaves(loaded.variables):
        assert np.asarray(leaf).dtype == np.float32


def test_htnet_round_trip(htnet):
    folder, params = htnet
    loaded = htnet_jax.load(folder)
    assert isinstance(loaded.module, HTNet)
    assert (loaded.module.dim, tuple(loaded.module.block_repeats)) == (6, (1,))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, {"params": params})


def test_round_trip_to_the_bit(tmp_path, make_config):
    params = {
        "Dense_0": {
            "kernel": np.random.default_rng(0).normal(size=(28 * 28 * 3, 3)).astype(np.float32),
            # Not normal numbers, too.
            "bias": np.array([np.float32(1e-45), -0.0, np.float32(3e38)], np.float32),
        }
    }
    settings = json.loads(make_config().to_json())
    folder = state.fold_folder(tmp_path, "s 1")
    state.save_fold(folder, {"params": params}, settings)
    _, variables, config = htnet_jax.load(folder)
    settings["dataset"]["data_dir"] = ""
    assert json.loads(config.to_json()) == {**settings, "checkpoint": {"name": "s 1"}}
    loaded = variables["params"]["Dense_0"]
    for key, value in params["Dense_0"].items():
        assert np.asarray(loaded[key]).tobytes() == value.tobytes()
    assert [path.name for path in folder.parent.iterdir()] == ["s 1"]
    # Saved again, as by a group that is trained a second time.
    params["Dense_0"]["bias"] = np.ones(3, np.float32)
    state.save_fold(folder, {"params": params}, settings)
    np.testing.assert_array_equal(htnet_jax.load(folder).variables["params"]["Dense_0"]["bias"], 1)


@pytest.mark.parametrize("fails_in", ["json", "orbax"])
def test_a_failed_save_leaves_nothing_behind(tmp_path, make_config, monkeypatch, fails_in):
    folder = state.fold_folder(tmp_path, "s1")
    params = {
        "Dense_0": {
            "kernel": np.zeros((28 * 28 * 3, 3), np.float32),
            "bias": np.zeros(3, np.float32),
        }
    }
    settings = json.loads(make_config().to_json())
    state.save_fold(folder, {"params": params}, settings)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if fails_in == "json":
        monkeypatch.setattr(state, "write_atomically", full)
    else:
        monkeypatch.setattr(state.ocp.Checkpointer, "save", full)
    with pytest.raises(UserError, match=r"s1: the checkpoint cannot be written .*No space left"):
        state.save_fold(folder, {"params": params}, settings)
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == ["s1"]
    assert htnet_jax.load(folder).variables["params"]["Dense_0"]["bias"].shape == (3,)


@pytest.mark.parametrize("name", ["../../evil", "..", ".", "a/b", "/etc", " ", "a\\b", "ü 1"])
def test_fold_names_stay_inside(tmp_path, name):
    folder = state.fold_folder(tmp_path, name)
    inside = (tmp_path / "checkpoints").resolve()
    assert folder.resolve().parent == inside
    assert folder.resolve() != inside


def test_a_fold_needs_a_name(tmp_path):
    with pytest.raises(UserError, match="without a name"):
        state.fold_folder(tmp_path, "")


def test_fold_names_stay_apart(tmp_path):
    names = ["a/b", "a%2Fb", "a b", "a", "..", "%2E%2E", ".", "sub01", "006"]
    assert len({state.fold_folder(tmp_path, name).name for name in names}) == len(names)
    assert state.fold_folder(tmp_path, "sub01") == tmp_path / "checkpoints" / "sub01"


def test_wrong_folders(finished, tmp_path):
    assert "nowhere: no checkpoint here. Give a fold's folder" in refusal(tmp_path / "nowhere")
    hint = f"Give one fold's folder, such as {finished / 'checkpoints' / 'a02'}."
    assert hint in refusal(finished)
    assert hint in refusal(finished / "checkpoints")
    assert "no checkpoint here" in refusal(finished / "checkpoints" / "a02" / "variables")
    assert "is a file; give a fold's folder" in refusal(finished / "predictions.npz")


@pytest.mark.parametrize("missing", ["config.json", "variables"])
def test_a_missing_part(fold, missing):
    path = fold / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    assert f"{fold}: no checkpoint here" in refusal(fold)


def test_damaged_arrays(fold):
    """Every file that is cut to half its length is noticed and named."""
    for path in sorted((fold / "variables").rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match="damaged or incomplete") as caught:
            htnet_jax.load(fold)
        assert str(fold) in str(caught.value)
        assert path.relative_to(fold).as_posix() in str(caught.value)
        path.write_bytes(content)
    htnet_jax.load(fold)


def test_damaged_values(fold):
    """One flipped bit in the largest file, which holds the numbers."""
    files = [path for path in (fold / "variables").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert "the checkpoint is damaged or incomplete" in refusal(fold)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 3}', "null"])
def test_damaged_config(fold, text):
    (fold / "config.json").write_text(text)
    assert str(fold / "config.json") in refusal(fold)


def test_a_config_without_a_key_that_loading_needs(fold):
    settings = json.loads((fold / "config.json").read_text())
    del settings["dataset"]
    (fold / "config.json").write_text(json.dumps(settings))
    assert str(fold / "config.json") in refusal(fold)


def test_a_config_that_does_not_fit(htnet, tmp_path):
    fold = shutil.copytree(htnet[0], tmp_path / "s1")
    change_config(fold, dim=9)
    message = refusal(fold)
    assert "arrays do not fit the network that config.json describes" in message
    assert "params/patch_embedding/kernel: stored (2352, 6), expected (2352, 9)" in message
    change_config(fold, dim=6, block_repeats=[2])
    message = refusal(fold)
    assert "params/level_0/block_1/" in message
    assert "stored nothing, expected" in message
    assert "patch_embedding" not in message


def test_a_config_of_an_unknown_model(fold):
    change_config(fold, name="Nonsense")
    assert "config.model.name='Nonsense' is unknown" in refusal(fold)


def on_devices(*arrays):
    """Arrays (devices, ...) on as many devices, and what `Snapshots.latest` wants of them."""
    devices = jax.local_devices()[: len(arrays[0])]
    mesh = jax.sharding.Mesh(np.array(devices), ("devices",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    placed = jax.device_put(list(arrays), split)
    return placed, [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split) for a in arrays]


def some_state(epoch, devices=2):
    return on_devices(
        np.full((devices, 3, 5), epoch, np.float32), np.full((devices, 1), epoch, jnp.bfloat16)
    )


def keep(folder, *epochs, identity=None):
    """Snapshots of `some_state` at some epochs."""
    kept = Snapshots(folder, identity or {})
    for epoch in epochs:
        kept.save(epoch, some_state(epoch)[0], {"logits": np.full((2, epoch), epoch)})
    kept.wait()
    return kept


def epochs_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_snapshots_are_few_and_come_back(tmp_path):
    kept = keep(tmp_path / "state", 2, 4, 6, 10)
    assert epochs_in(tmp_path / "state") == ["epoch_10", "epoch_6"]
    for one in (kept, Snapshots(tmp_path / "state", {})):
        found = one.latest(some_state(0)[1])
        assert (found.epoch, found.results["logits"].tolist()) == (10, [[10] * 10] * 2)
        for array, expected in zip(found.state, some_state(10)[0], strict=True):
            assert (array.dtype, array.sharding) == (expected.dtype, expected.sharding)
            np.testing.assert_array_equal(array, expected)
    kept.clear()
    assert not (tmp_path / "state").exists()
    assert kept.latest(some_state(0)[1]) is None


def test_a_snapshot_is_a_copy(tmp_path):
    """The next call of a compiled program takes the memory of its arguments."""
    kept = Snapshots(tmp_path, {})
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    array = some_state(1)[0][0]
    for epoch in (1, 2, 3):
        kept.save(epoch, [array], {})
        array = add(array)
    kept.wait()
    (found,) = kept.latest(some_state(0)[1][:1]).state
    np.testing.assert_array_equal(found, np.full((2, 3, 5), 3))
    np.testing.assert_array_equal(add(found), np.full((2, 3, 5), 4))
    np.testing.assert_array_equal(kept.latest(some_state(0)[1][:1]).state[0], np.full((2, 3, 5), 3))


def damage_truncate(folder):
    for path in (folder / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])


def damage_flip(folder):
    path = max((p for p in (folder / "default").rglob("*") if p.is_file()), key=os.path.getsize)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_manifest(folder):
    (folder / "manifest.json").write_text("{")


def damage_half(folder):
    shutil.rmtree(folder / "default")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_manifest, damage_half])
def test_a_damaged_snapshot_is_passed_over(damage, tmp_path, capfd):
    keep(tmp_path, 2, 4)
    damage(tmp_path / "epoch_4")
    kept = Snapshots(tmp_path, {})
    assert kept.latest(some_state(0)[1]).epoch == 2
    assert f"{tmp_path / 'epoch_4'}: damaged" in capfd.readouterr().err
    # The same epoch is saved again.
    kept.save(4, some_state(4)[0], {"logits": np.zeros(1)})
    assert kept.latest(some_state(0)[1]).epoch == 4
    for epoch in (2, 4):
        damage(tmp_path / f"epoch_{epoch}")
    assert Snapshots(tmp_path, {}).latest(some_state(0)[1]) is None


def test_what_one_process_cannot_read_none_resumes_from(tmp_path, monkeypatch, capfd):
    """As over a network: the other process says that the newest is damaged there."""
    kept = keep(tmp_path, 2, 4)
    asked = []

    def texts(text):
        asked.append(text)
        # The list of epochs, then the facts and the outcome of each.
        return [text, "stale file handle" if len(asked) == 3 else text]

    monkeypatch.setattr(state.hosts, "texts", texts)
    assert kept.latest(some_state(0)[1]).epoch == 2
    assert "epoch_4: damaged (stale file handle); resuming from an older" in capfd.readouterr().err


def test_processes_that_see_different_snapshots(tmp_path, monkeypatch):
    kept = keep(tmp_path, 2, 4)
    monkeypatch.setattr(state.hosts, "texts", lambda text: [text, "[2]"])
    with pytest.raises(UserError, match=r"the epochs \[4, 2\] and \[2\]\).*--workdir that all"):
        kept.latest(some_state(0)[1])


def test_snapshots_belong_to_something(tmp_path):
    keep(tmp_path, 2, identity={"data": "a"})
    with pytest.raises(UserError, match=r"cannot be resumed(?s:.*)data: a there, b now"):
        Snapshots(tmp_path, {"data": "b"}).latest(some_state(0)[1])
    assert epochs_in(tmp_path) == ["epoch_2"]


def test_other_groups_begin_anew(tmp_path, capfd):
    """At an earlier epoch than what is discarded."""
    keep(tmp_path, 100, 200)
    kept = Snapshots(tmp_path, {})
    assert kept.latest(some_state(0, devices=3)[1]) is None
    assert "its folds were grouped differently" in capfd.readouterr().err
    for epoch in (10, 20, 30):
        kept.save(epoch, some_state(epoch, devices=3)[0], {})
        kept.wait()
        assert Snapshots(tmp_path, {}).latest(some_state(0, devices=3)[1]).epoch == epoch
    assert epochs_in(tmp_path) == ["epoch_20", "epoch_30"]


def test_a_full_disk_while_a_snapshot_is_written(tmp_path, monkeypatch):
    kept = keep(tmp_path, 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "_write_manifest", full)
        kept.save(4, some_state(4)[0], {})
        with pytest.raises(UserError, match=r"cannot be written .*No space left.*Free some"):
            kept.wait()
    assert Snapshots(tmp_path, {}).latest(some_state(0)[1]).epoch == 2
