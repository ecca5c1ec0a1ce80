"""The files in `configs/`: each loads, knows only known settings, and has its exact size."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from htnet_jax import baselines, datasets
from htnet_jax.training import config as settings
from htnet_jax.training.checkpoints import build_module
from htnet_jax.training.trainers import build_model

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
PARAMETERS = {
    "demo": 314_694,
    "megc2019_htnet": 139_582_982,
    "megc2019_narrow": 2_158_278,
}
BASELINES = {
    "baseline_majority": "MajorityClass",
    "baseline_logreg": "LogisticRegression",
    "baseline_svm": "RBFSVM",
    "baseline_kernel_ridge": "KernelRidge",
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(config):
    return {
        f"{key}.{inner}" if inner else key
        for key, value in config.items()
        for inner in (value if hasattr(value, "items") else [""])
    }


def test_every_file_has_a_pinned_size():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*PARAMETERS, *BASELINES}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name):
    config = load(name).get_config()
    model = build_model(config)
    assert type(model) is baselines.BASELINES[BASELINES[name]]
    assert (config.epochs, config.checkpoints) == (1, "none")
    ours = {key for key in keys(config) if not key.startswith("model.")}
    theirs = {key for key in keys(settings.default_config()) if not key.startswith("model.")}
    assert ours == theirs
    command = f"python -m htnet_jax.train --config=configs/{name}.py --workdir="
    assert command in load(name).__doc__


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    config = load(name).get_config()
    module = build_module(config.model)
    channels = len(config.dataset.channels.split(","))
    shape = (1, config.model.image_size, config.model.image_size, channels)
    variables = jax.eval_shape(
        lambda key: module.init(key, np.zeros(shape, np.float32), train=False), jax.random.key(0)
    )
    assert list(variables) == ["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PARAMETERS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_only_known_settings(name):
    """A misspelt key would be taken for a new one."""
    config = load(name).get_config()
    assert keys(config) == keys(settings.default_config())
    assert config.dataset.name in datasets.BUILDERS


@pytest.mark.parametrize("name", PARAMETERS)
def test_docstring(name):
    """It says the command, and any size it names is the right one."""
    text = load(name).__doc__
    assert f"python -m htnet_jax.train --config=configs/{name}.py --workdir=" in text
    named = re.findall(r"([\d,]+) parameters", text)
    assert all(int(number.replace(",", "")) == PARAMETERS[name] for number in named)


def test_published_settings():
    """What makes a run comparable with its table."""
    config = load("megc2019_htnet").get_config()
    assert (config.epochs, config.batch_size, config.learning_rate) == (800, 256, 5e-5)
    assert not config.shuffle
    assert (config.dataset.layout, config.dataset.channels) == ("release", "strain,v,u")
    assert config.dataset.scaling == "none"
    assert (config.model.dim, config.model.heads, config.model.dropout) == (256, 3, 0.0)
    assert tuple(config.model.block_repeats) == (2, 2, 10)
    assert config.folds == ""
    assert not config.dataset.shuffle_labels
