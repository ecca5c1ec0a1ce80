"""Every config file loads, and its network has exactly the size that is written here."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from htnet_jax.training.checkpoints import build_module
from htnet_jax.training.config import default_config

FOLDER = Path(__file__).parents[1] / "configs"

PARAMETERS = {"demo": 314_694, "megc2019_htnet": 139_582_982, "megc2019_narrow": 2_158_278}


def load(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_is_listed_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    config = load(name).get_config()
    module = build_module(config.model)
    size = config.model.image_size
    x = np.zeros((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_adds_no_key_that_the_defaults_lack(name):
    def keys(config):
        return {key for key in config.to_dict() if key not in ("model", "dataset")} | {
            f"{part}.{key}" for part in ("model", "dataset") for key in config[part]
        }

    assert keys(load(name).get_config()) == keys(default_config())


@pytest.mark.parametrize("name", PARAMETERS)
def test_docstring_gives_the_command(name):
    doc = load(name).__doc__
    assert f"--config=configs/{name}.py" in doc
    assert "--workdir=" in doc


def test_published_settings():
    config = load("megc2019_htnet").get_config()
    assert (config.epochs, config.batch_size, config.learning_rate) == (800, 256, 5e-5)
    assert config.shuffle is False
    assert (config.dataset.layout, config.dataset.channels) == ("release", "strain,v,u")
