"""A second network on the same rails, step by step as CONTRIBUTING.md tells it.

It looks at the onset frame and at the flow, two inputs of different kinds, and has batch
statistics. Only `register` touches the package: there a real network gets one line in
`htnet_jax/models/__init__.py` and one in `htnet_jax/torch_bridge/__init__.py`.
"""

from typing import ClassVar

import flax
import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from jax import numpy as jnp
from ml_collections import ConfigDict

import htnet_jax
from htnet_jax import models, torch_bridge
from htnet_jax.config import default_config
from htnet_jax.evaluation import report
from htnet_jax.models.layers import BatchNorm, Conv, Dense, check_images
from htnet_jax.torch_bridge import Bridge, Rule, convert, parity
from htnet_jax.torch_bridge.traces import Optimizer
from htnet_jax.training import experiment

# --- 1. the module --------------------------------------------------------------------------------


class TwoLooks(nn.Module):
    """A convolution of the frame, averaged, beside the mean flow; then a linear layer."""

    inputs: ClassVar[tuple[str, ...]] = ("onset", "flow")  # names of features, in their order
    privileged: ClassVar[tuple[str, ...]] = ()  # those fed by keyword, in training only

    num_classes: int = 3
    image_size: int = 56  # of the frame
    flow_size: int = 28
    width: int = 4
    dtype: str = "float32"

    def check_sizes(self):
        """Raises a ValueError that says which attributes do not fit together."""
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")

    def input_shapes(self, flow_channels):
        """The shape of each input of one clip, in the order of the call."""
        frame = (self.image_size, self.image_size, 3)
        return (frame, (self.flow_size, self.flow_size, flow_channels))

    @nn.compact
    def __call__(self, onset, flow, *, train):
        check_images("onset", onset, self.image_size, channels=3)
        dtype = jnp.dtype(self.dtype)
        look = Conv(self.width, (3, 3), 2, 1, use_bias=False, dtype=dtype, name="look")
        x = look(onset.astype(dtype))
        x = nn.relu(BatchNorm(dtype, name="norm")(x, train=train))
        seen = jnp.concatenate([x.mean(axis=(1, 2)), flow.astype(dtype).mean(axis=(1, 2))], axis=-1)
        return Dense(self.num_classes, dtype, name="head")(seen)


# --- 2. its twin in PyTorch, with that side's names -----------------------------------------------


class TorchTwoLooks(torch.nn.Module):
    def __init__(self, width, channels, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(width)
        self.fc = torch.nn.Linear(width + channels, num_classes)

    def forward(self, onset, flow):
        x = torch.relu(self.bn(self.conv(onset)))
        return self.fc(torch.cat([x.mean((2, 3)), flow.mean((2, 3))], dim=1))


# --- 3. the bridge: names, layers to compare, sizes -----------------------------------------------

TABLE = (
    Rule("params/look/kernel", "conv.weight", "h w i o -> o i h w"),
    Rule("params/norm/scale", "bn.weight", "c -> c"),
    Rule("params/norm/bias", "bn.bias", "c -> c"),
    Rule("batch_stats/norm/mean", "bn.running_mean", "c -> c"),
    Rule("batch_stats/norm/var", "bn.running_var", "c -> c"),
    Rule("params/head/kernel", "fc.weight", "i o -> o i"),
    Rule("params/head/bias", "fc.bias", "o -> o"),
)


def build(module, channels):
    return TorchTwoLooks(module.width, channels, module.num_classes).eval()


def sizes(shapes, known, channels):
    classes, width = shapes["fc.weight"][0], shapes["conv.weight"][0]
    return {**known, "num_classes": classes, "width": width}


BRIDGE = Bridge(TABLE, (("look", "conv"), ("norm", "bn"), ("head", "fc")), build, sizes)


# --- 4. the two lines -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def register(monkeypatch):
    monkeypatch.setitem(models.MODELS, "TwoLooks", TwoLooks)
    monkeypatch.setitem(torch_bridge.BRIDGES, "TwoLooks", BRIDGE)


# --- 5. the config --------------------------------------------------------------------------------


def get_config():
    config = default_config()
    config.inputs = "onset,flow"
    config.epochs, config.batch_size, config.folds = 2, 8, "a01,b02"
    config.folds_per_device = 1
    config.learning_rate = 0.01
    config.model = ConfigDict({"name": "TwoLooks", "num_classes": 3, "image_size": 28, "width": 4})
    config.dataset.name, config.dataset.config = "synthetic", "tiny_frames"
    config.dataset.frame_size = 28
    config.dataset.scaling = "minmax_255"
    return config


# --- 6. the tests ---------------------------------------------------------------------------------

SMALL = TwoLooks(image_size=8, flow_size=6)


def test_round_trip():
    """Every array has a line of the table, and comes back to the bit."""
    expected = convert.expected_variables(SMALL, 3)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), expected)
    state_dict = convert.to_state_dict(variables, TABLE)
    build(SMALL, 3).load_state_dict(state_dict, strict=True)
    again = convert.from_state_dict(state_dict, TABLE, expected)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    known = {"image_size": 8, "flow_size": 6}
    state_dict, _ = convert.drop_unused(state_dict, BRIDGE)
    assert TwoLooks(**convert.infer_sizes(state_dict, BRIDGE, known, 3)) == SMALL


@pytest.mark.parametrize("train", [False, True])
def test_parity(train):
    """Layers, logits, statistics, gradients and steps agree to nine digits."""
    rng = np.random.default_rng(1)
    batches = [
        (
            tuple(rng.normal(size=(4, *s)).astype(np.float32) for s in SMALL.input_shapes(3)),
            rng.integers(0, 3, 4),
        )
        for _ in range(2)
    ]
    variables = parity.random_variables(SMALL, BRIDGE, 3, seed=0)
    (found,) = parity.run(
        SMALL, BRIDGE, variables, batches, optimizer=Optimizer("adamw", 1e-2), steps=5, train=train
    )
    assert found.passed, found.first_difference
    assert {row.name for row in found.rows if row.kind == "activation"} == {"look", "norm", "head"}
    assert any(row.kind == "statistics" for row in found.rows) == train


def test_it_trains_and_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_run", lambda *_: None)  # drawing takes longer than training
    config = get_config()
    config.dataset.data_dir = str(tmp_path / "data")
    run = experiment.run(config, tmp_path / "run")
    found = run.predictions
    assert found.logits.shape == (1, 2, 8, 3)
    assert (found.train_loss[..., 1] < found.train_loss[..., 0]).all()
    module, variables, _ = htnet_jax.load(tmp_path / "run" / "checkpoints" / "b02")
    assert module == TwoLooks(image_size=28)
    names = flax.traverse_util.flatten_dict(variables, sep="/")
    assert names.keys() == {rule.flax for rule in TABLE}
    assert np.all(names["batch_stats/norm/mean"] != 0)
