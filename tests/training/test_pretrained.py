"""Runs that start from a file: `config.model.pretrained`; shown with a network of one layer."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from fakes.linear import Linear

import htnet_jax
from htnet_jax import models, torch_bridge
from htnet_jax.errors import UserError
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Bridge, Rule
from htnet_jax.training import pretrained
from htnet_jax.training.plan import Store

SHAPE = (28 * 28 * 3, 3)
TABLE = (Rule("params/Dense_0/kernel", "fc.weight", "i o -> o i"),)


class Starting(Linear):
    """Linear, whose kernel may come from a file; its bias never does."""

    pretrained: str = ""


def from_file(state_dict, module):
    expected = {"params": {"Dense_0": {"kernel": np.empty(SHAPE, np.float32)}}}
    return convert.from_state_dict(state_dict, TABLE, expected)


BRIDGE = Bridge(TABLE, (), None, None, pretrained=from_file)


@pytest.fixture(autouse=True)
def starting():
    with (
        mock.patch.dict(models.MODELS, Linear=Starting),
        mock.patch.dict(torch_bridge.BRIDGES, Linear=BRIDGE),
    ):
        yield


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {"fc.weight": torch.from_numpy(rng.normal(size=SHAPE[::-1]).astype(np.float32))}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "elsewhere" / "weights.pth"
    path.parent.mkdir()
    torch.save(weights(), path)
    return path


def test_every_fold_and_seed_starts_from_the_file(tmp_path, make_config, run_quickly, file, capfd):
    """Without a step worth the name."""
    config = make_config(epochs=1, seeds=2, folds="a01,g02", inner_folds=1, learning_rate=1e-30)
    config.model.pretrained = str(file)
    run_quickly(config, tmp_path / "run")
    assert f"Dense_0: 1 arrays start from {file}" in capfd.readouterr().err
    kernel = weights()["fc.weight"].numpy().T
    for name in ("a01", "a01.seed1", "g02", "g02.seed1"):
        found = htnet_jax.load(tmp_path / "run" / "checkpoints" / name)
        params = found.variables["params"]["Dense_0"]
        np.testing.assert_array_equal(params["kernel"], kernel)
        assert np.abs(params["bias"]).max() < 1e-20
        assert found.config.model.pretrained == str(file)
    # Its path stays on this machine, its content is on record.
    shared = [p for p in (tmp_path / "run").rglob("*.json") if p.name != "private.json"]
    assert len(shared) >= 6
    assert not any("elsewhere" in path.read_text() for path in shared)
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(record["files"]["model.pretrained"]) == len(hashlib.sha256().hexdigest())
    config.model.pretrained = ""
    run_quickly(config, tmp_path / "other")
    found = htnet_jax.load(tmp_path / "other" / "checkpoints" / "a01")
    assert (found.variables["params"]["Dense_0"]["kernel"] != kernel).all()
    assert "files" not in json.loads((tmp_path / "other" / "environment.json").read_text())


def test_a_run_is_resumed_with_the_same_weights_only(
    tmp_path, make_config, run_quickly, file, monkeypatch
):
    class PowerCut(Exception):
        pass

    def write(store, unit, result):
        raise PowerCut

    config, folder = make_config(epochs=1, folds="a01,g02"), tmp_path / "run"
    config.model.pretrained = str(file)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Store, "write", write)
        run_quickly(config, folder)
    torch.save(weights(seed=1), tmp_path / "other.pth")
    for other in (str(tmp_path / "other.pth"), ""):
        config.model.pretrained = other
        with pytest.raises(UserError, match=r"another file, or none, for config\.model"):
            run_quickly(config, folder)
    # The same content, wherever and in whatever kind of file.
    config.model.pretrained = str(tmp_path / "same.safetensors")
    safetensors.torch.save_file(weights(), config.model.pretrained)
    assert run_quickly(config, folder) is not None


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "weights.pth: no such file"),
        (Trap(), "weights.pth: holds a pickled"),
        ({"conv1.weight": torch.zeros(2)}, "config.model.pretrained=.*weights.pth: .*1 unknown"),
    ],
    ids=["missing", "pickle", "another network"],
)
def test_a_wrong_file_is_one_message(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if content:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        pretrained.read(Starting(3, 28, str(path)), "Linear")
    assert not Path("unpickled").exists()


def test_a_network_that_starts_from_no_file(monkeypatch, file):
    monkeypatch.setitem(torch_bridge.BRIDGES, "Linear", Bridge(TABLE, (), None, None))
    with pytest.raises(UserError, match="Linear cannot start from a file"):
        pretrained.read(Starting(3, 28, str(file)), "Linear")
    assert pretrained.read(Starting(3, 28), "Linear") == pretrained.Start()
    assert pretrained.read(SimpleNamespace(), "Linear") == pretrained.Start()
