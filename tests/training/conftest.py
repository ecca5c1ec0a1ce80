"""What runs of whole experiments share: the tiny data set, and a network that compiles quickly."""

import os
from pathlib import Path
from unittest import mock

import pytest
from fakes.linear import Linear
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.config import default_config
from htnet_jax.datasets import loading
from htnet_jax.evaluation import report
from htnet_jax.training import experiment


@pytest.fixture(scope="session", autouse=True)
def linear_model():
    """`config.model.name = "Linear"`: nothing in training may depend on HTNet."""
    with mock.patch.dict(models.MODELS, Linear=Linear):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def arrays(data_dir):
    """24 clips of 6 subjects, four each: a01 a02 b01 b02 g01 g02."""
    return loading.load("synthetic", config="tiny", data_dir=data_dir)


@pytest.fixture(scope="session")
def make_config(arrays, data_dir):
    """A fresh config; keywords replace settings, `model__dim=6` for nested ones."""

    def make(**changes):
        config = default_config()
        config.epochs = 3
        config.batch_size = 10
        config.learning_rate = 0.01
        config.shuffle = True
        config.folds_per_device = 2
        config.model = ConfigDict({"name": "Linear", "num_classes": 3, "image_size": 28})
        config.dataset.name = "synthetic"
        config.dataset.config = "tiny"
        config.dataset.data_dir = data_dir
        config.dataset.layout = "upright"
        config.dataset.scaling = "minmax_255"
        config.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in changes.items()}
        )
        return config

    return make


@pytest.fixture(scope="session")
def run_quickly():
    """`experiment.run` without its report: drawing takes longer than training here."""

    def run(config, workdir):
        with mock.patch.object(report, "write_run"):
            return experiment.run(config, workdir)

    return run


@pytest.fixture
def children():
    """A function that gives the child processes of this one, as Linux lists them."""
    own = Path(f"/proc/{os.getpid()}/task")
    return lambda: {pid for task in own.glob("*/children") for pid in task.read_text().split()}
