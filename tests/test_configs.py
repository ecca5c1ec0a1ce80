"""The files in `configs/`: each loads, knows only known settings, and has its exact size."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from htnet_jax import config as settings
from htnet_jax import datasets, features
from htnet_jax.datasets.builder import RawBuilder
from htnet_jax.training import baselines
from htnet_jax.training import settings as training_settings
from htnet_jax.training.settings import build_model
from htnet_jax.training.state import build_module

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
BASELINES = {
    "baseline_majority": "MajorityClass",
    "baseline_logreg": "LogisticRegression",
    "baseline_svm": "RBFSVM",
    "baseline_kernel_ridge": "KernelRidge",
}


NETWORKS = sorted({path.stem for path in CONFIGS.glob("*.py")} - {*BASELINES})
# Trees whose keys belong to what they name.
FREE = ("model.", "losses.", "loss_options.")


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


@pytest.mark.parametrize("name", NETWORKS)
def test_docstring(name):
    """It says the command and the exact number of parameters."""
    text = load(name).__doc__
    assert f"python -m htnet_jax.train --config=configs/{name}.py --workdir=" in text
    (named,) = re.findall(r"([\d,]+) parameters", text)
    config = load(name).get_config()
    module = build_module(config.model)
    shapes = module.input_shapes(len(config.dataset.channels.split(",")))
    assert len(shapes) == len(features.check_names(config, module))
    inputs = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in shapes]
    variables = jax.eval_shape(
        lambda key, *inputs: module.init(key, *inputs, train=False), jax.random.key(0), *inputs
    )
    assert variables.keys() <= {"params", "batch_stats"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == int(
        named.replace(",", "")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_known_settings(name):
    """A misspelt key would be taken for a new one."""
    config = load(name).get_config()
    ours, default = keys(config), keys(settings.default_config())
    if config.model.name == "HTNet":
        assert ours == default
    # Those of another model are its attributes, which `test_docstring` builds it with.
    for found in (ours, default):
        found -= {key for key in found if key.startswith(FREE)}
    assert ours == default
    training_settings.check(config)
    features.check_names(config, build_model(config))
    builder = datasets.BUILDERS[config.dataset.name]
    assert config.dataset.labels in {"", *getattr(builder, "LABELS", ())}
    if issubclass(builder, RawBuilder) and config.dataset.config:
        assert builder.config_of(config.dataset.config).name == config.dataset.config
    else:
        assert config.dataset.config in {"", *builder.builder_configs}


def test_published_settings():
    """What makes a run comparable with its table."""
    config = load("megc2019_htnet").get_config()
    assert (config.epochs, config.batch_size, config.learning_rate) == (800, 256, 5e-5)
    assert not config.shuffle
    assert config.order == "release"  # class by class, see the release
    assert (config.dataset.layout, config.dataset.channels) == ("release", "strain,v,u")
    assert config.dataset.scaling == "none"
    assert (config.model.dim, config.model.heads, config.model.dropout) == (256, 3, 0.0)
    assert tuple(config.model.block_repeats) == (2, 2, 10)
    assert config.folds == ""
    assert not config.dataset.shuffle_labels


@pytest.mark.parametrize(
    ("classes", "epochs", "batch", "decay", "rotation", "shift", "jitter"),
    [(5, 74, 32, 0.6, 3, 15, (0.15, 0.15, 0)), (3, 99, 24, 0.7, 4, 4, (0.2, 0.15, 0.15))],
)
def test_published_settings_of_mmnet(classes, epochs, batch, decay, rotation, shift, jitter):
    """The figures of the release's two scripts; they draw from shares of a quarter of the way."""
    config = load(f"casme2_mmnet_{classes}class").get_config()
    assert (config.epochs, config.batch_size, config.shuffle) == (epochs, batch, True)
    assert (config.optimizer, config.learning_rate, config.weight_decay) == ("adamw", 8e-4, decay)
    assert (config.learning_rate_decay, config.learning_rate_decay_epochs) == (0.987, 50)
    assert config.inputs == "onset,apex"
    moved = config.augmentation
    assert (moved.flip, moved.rotation, moved.shift) == (0.5, rotation, shift)
    found = (moved.onset_late, moved.apex_early, moved.apex_late)
    np.testing.assert_allclose(found, np.array(jitter) / 4, rtol=1e-15)
    # Both networks have five outputs.
    assert config.model.num_classes == classes + config.spare_outputs == 5
    assert (config.model.depth, config.model.mlp_mult) == {5: (2, 4), 3: (3, 2)}[classes]
    assert config.model.drop_path == {5: 0.0, 3: 0.3}[classes]
    assert config.dataset.config.endswith("+frames-neighbours")
    assert config.dataset.labels == f"mmnet{classes}"
    assert (config.protocol, config.folds) == ("loso", "")
