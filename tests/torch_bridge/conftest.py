"""Networks that ran once in Flax, to be compared with many PyTorch networks."""

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import torch

from htnet_jax.datasets import loading
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import BRIDGES, convert, parity
from htnet_jax.torch_bridge.traces import Optimizer, Trace, inputs_of, torch_trace

BRIDGE = BRIDGES["HTNet"]


@dataclasses.dataclass(frozen=True)
class Case:
    """What one call of `parity.run` was given, what it returned, and the Flax side of it.

    Compiling the Flax side takes nearly all of the time, so `run` and `compare` use it again.
    """

    module: Any
    variables: Any
    batches: Any
    options: dict[str, Any]
    report: parity.Report
    ours: Trace
    bridge: Any = BRIDGE

    @property
    def dtype(self):
        return self.options["dtype"]

    def torch_model(self):
        model = self.bridge.build(self.module, 3)
        model.load_state_dict(convert.to_state_dict(self.variables, self.bridge.table))
        return model

    def run(self, **changes):
        """`parity.run` once more, with the Flax side it computed before."""
        with mock.patch.object(parity, "flax_trace", return_value=self.ours):
            return parity.run(
                self.module,
                self.bridge,
                self.variables,
                self.batches,
                **{**self.options, **changes},
            )

    def theirs(self, model=None, optimizer=None, steps=None):
        variables = jax.tree.map(lambda a: np.asarray(a, self.dtype), self.variables)
        batches = [
            (tuple(np.asarray(x, self.dtype) for x in inputs_of(batch)), batch[1])
            for batch in self.batches
        ]
        return torch_trace(
            model or self.torch_model(),
            self.bridge,
            variables,
            batches,
            optimizer or self.options["optimizer"],
            self.options["steps"] if steps is None else steps,
            train=self.options["train"],
            kept=self.ours.kept,
        )

    def compare(self, model=None, optimizer=None):
        """Against another PyTorch network, or another optimizer."""
        return parity.compare(self.ours, self.theirs(model, optimizer), self.dtype)

    def compare_layers(self, model):
        """Without the optimizer steps."""
        ours = dataclasses.replace(self.ours, losses=self.ours.losses[:1], parameters={})
        return parity.compare(ours, self.theirs(model, steps=0), self.dtype)


def random_batches(size, count, clips=3, seed=0):
    """Pixels in 0..1: small enough that a wrong eps in LayerNorm shows in nine digits."""
    rng = np.random.default_rng(seed)
    return [
        (rng.uniform(0, 1, (clips, size, size, 3)).astype(np.float32), rng.integers(0, 3, clips))
        for _ in range(count)
    ]


def make_case(
    module,
    batches,
    *,
    dtype="float64",
    optimizer=None,
    steps=20,
    seed=0,
    train=False,
    bridge=BRIDGE,
):
    variables = parity.random_variables(module, bridge, 3, seed)
    options = {"dtype": dtype, "optimizer": optimizer or Optimizer(), "steps": steps}
    options["train"] = train
    kept = []

    def keep(*args, **keywords):
        kept.append(original(*args, **keywords))
        return kept[-1]

    original = parity.flax_trace
    with mock.patch.object(parity, "flax_trace", keep):
        report = parity.run(module, bridge, variables, batches, **options)
    return Case(module, variables, batches, options, report, kept[0], bridge)


@pytest.fixture(scope="session")
def new_case():
    """`make_case`, for other networks."""
    return make_case


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Handing such tiny arrays from thread to thread takes longer than computing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def synthetic_batches(tmp_path_factory):
    """The tiny synthetic data set in file order, 8 clips a step."""
    folder = str(tmp_path_factory.mktemp("data"))
    arrays = loading.load("synthetic", config="tiny", data_dir=folder)
    inputs = loading.network_inputs(
        arrays, layout="upright", channels=["strain", "v", "u"], scaling="minmax_255"
    )
    return [(inputs[i : i + 8], arrays.labels[i : i + 8]) for i in range(0, len(inputs), 8)]


@pytest.fixture(scope="session")
def case(synthetic_batches):
    """Name -> Case, computed on first use.

    dim 8 and 3, 6, 12 heads: the heads leave channels over at every level.
    """

    @functools.cache
    def get(name):
        if name == "56":
            module = HTNet(image_size=56, dim=8, heads=3, block_repeats=(1, 2, 1))
            return make_case(module, random_batches(56, 4))
        if name == "112":
            module = HTNet(image_size=112, dim=8, heads=3, block_repeats=(1, 1, 1))
            return make_case(module, random_batches(112, 4, clips=2))
        if name == "adamw":
            module = HTNet(image_size=14, dim=8, heads=3, num_hierarchies=1, block_repeats=(1,))
            return make_case(module, random_batches(14, 4), optimizer=Optimizer("adamw", 1e-3))
        # Real training, with a loss that falls.
        dtype = {"28": "float64", "28 float32": "float32"}[name]
        module = HTNet(image_size=28, dim=8, heads=3, block_repeats=(1, 1, 1))
        return make_case(
            module,
            synthetic_batches,
            dtype=dtype,
            optimizer=Optimizer(learning_rate=1e-3),
            steps=50,
        )

    return get
