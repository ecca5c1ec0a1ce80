"""Networks that ran once in Flax, to be compared with many PyTorch networks."""

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from fakes.attribute_net import SMALL

from htnet_jax.models import HTNet, MMNet
from htnet_jax.torch_bridge import BRIDGES, convert, parity
from htnet_jax.torch_bridge.traces import (
    Clips,
    Losses,
    Optimizer,
    Trace,
    fed,
    torch_trace,
)

# 3, 6 heads of 8, 16 channels leave channels over; MMNet's first block has no drop path.
MODULES = {
    # Blocks of four tokens on two levels: all that HTNet has.
    "four tokens": HTNet(dim=8, heads=3, num_hierarchies=2, block_repeats=(2, 1)),
    # Two levels whose blocks hold a single token, as at the published size.
    "one token": HTNet(image_size=14, dim=8, heads=3, num_hierarchies=2, block_repeats=(1, 1)),
    "adamw": HTNet(image_size=14, dim=8, heads=3, num_hierarchies=1, block_repeats=(1,)),
    "MMNet": MMNet(
        image_size=32, stem=5, widths=(4, 4, 6, 8), depth=2, heads=2, mlp_mult=2, drop_path=0.5
    ),
    "one stream": SMALL.clone(streams="flow", frames=2),
    "AttributeNet": SMALL,
}
OPTIMIZERS = {
    "adamw": Optimizer("adamw", 1e-3),
    # The release's.
    "MMNet": Optimizer("adamw", 8e-4, {"weight_decay": 0.6}),
    **dict.fromkeys(("one stream", "AttributeNet"), Optimizer("adamw", 1e-3)),
}
BOTH = Losses({"cross_entropy": 1.0, "attribute_contrastive": 0.5})
LOSSES = dict.fromkeys(("one stream", "AttributeNet"), BOTH)
# The published check; the others are enough of an example.
STEPS = {"AttributeNet": 20}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one call of `parity.run` was given, what it returned, and the Flax side of it.

    Compiling the Flax side takes nearly all of the time, so `run` and `compare` use it again.
    """

    module: Any
    bridge: Any
    variables: Any
    batches: Any
    options: dict[str, Any]
    report: parity.Report
    ours: Trace

    @property
    def dtype(self):
        return self.options["dtypes"][0]

    def torch_model(self):
        model = self.bridge.build(self.module, 3)
        model.load_state_dict(convert.to_state_dict(self.variables, self.bridge.table))
        return model

    def run(self, **changes):
        """`parity.run` once more, with the Flax side it computed before."""
        with mock.patch.object(parity, "flax_trace", return_value=self.ours):
            arguments = (self.module, self.bridge, self.variables, self.batches)
            return parity.run(*arguments, **{**self.options, **changes})[0]

    def theirs(self, model=None, optimizer=None, steps=None):
        variables = jax.tree.map(lambda a: np.asarray(a, self.dtype), self.variables)
        _, batches = parity._cast({}, [Clips(*batch) for batch in self.batches], self.dtype)
        return torch_trace(
            model or self.torch_model(),
            self.bridge,
            variables,
            batches,
            optimizer or self.options["optimizer"],
            self.options["steps"] if steps is None else steps,
            train=self.options["train"],
            kept=self.ours.kept,
            losses=self.options["losses"],
            privileged=fed(self.module, batches[0].privileged),
        )

    def compare(self, model=None, optimizer=None):
        """Against another PyTorch network, or another optimizer."""
        return parity.compare(self.ours, self.theirs(model, optimizer), self.dtype)

    def compare_layers(self, model):
        """Without the optimizer steps."""
        ours = dataclasses.replace(self.ours, losses=self.ours.losses[:1], parameters={})
        return parity.compare(ours, self.theirs(model, steps=0), self.dtype)


def make_case(
    module, batches, *, dtype="float64", optimizer=None, losses=None, steps=10, train=False
):
    bridge = BRIDGES[type(module).__name__]
    variables = parity.random_variables(module, bridge, 3, 0)
    options = {"dtypes": [dtype], "optimizer": optimizer or Optimizer(), "steps": steps}
    options |= {"train": train, "losses": losses}
    kept = []

    def keep(*arguments, **keywords):
        kept.append(original(*arguments, **keywords))
        return kept[-1]

    original = parity.flax_trace
    with mock.patch.object(parity, "flax_trace", keep):
        (report,) = parity.run(module, bridge, variables, batches, **options)
    return Case(module, bridge, variables, batches, options, report, kept[0])


@pytest.fixture(scope="session")
def new_case():
    """`make_case`, for other networks."""
    return make_case


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Compiling takes nearly all of the time; so would handing tiny arrays to threads."""
    before = jax.config.read("jax_disable_most_optimizations"), torch.get_num_threads()
    jax.config.update("jax_disable_most_optimizations", True)
    torch.set_num_threads(1)
    yield
    jax.config.update("jax_disable_most_optimizations", before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="session")
def case():
    """`(name, train=False, dtype="float64")` -> Case of `MODULES[name]`, computed on first use."""

    @functools.cache
    def compute(name, train, dtype):
        module, rng = MODULES[name], np.random.default_rng(0)

        def pixels(shape):
            # In 0..1: small enough that a wrong eps in LayerNorm shows in nine digits.
            normal = len(module.input_shapes(3)) > 1
            drawn = rng.normal(size=shape) if normal else rng.uniform(0, 1, shape)
            return drawn.astype(np.float32)

        batches = [
            Clips(
                tuple(pixels((4, *shape)) for shape in module.input_shapes(3)),
                rng.integers(0, 3, 4),
                BRIDGES[type(module).__name__].draw(module, 4, rng),
            )
            for _ in range(3)
        ]
        return make_case(
            module,
            batches,
            dtype=dtype,
            optimizer=OPTIMIZERS.get(name, Optimizer(learning_rate=1e-3)),
            losses=LOSSES.get(name),
            steps=STEPS.get(name, 10),
            train=train,
        )

    def get(name, train=False, dtype="float64"):
        return compute(name, train, dtype)

    return get
