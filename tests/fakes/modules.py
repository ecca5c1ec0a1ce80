"""Parameters and inputs for testing Flax modules."""

import functools
import inspect
import math

import flax
import jax
import numpy as np

# Compiling takes nearly all the time of such tests: half as long with LLVM's optimisations off.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fast_key(seed):
    """A key whose generator compiles in no time."""
    return jax.random.key(seed, impl="rbg")


def flat(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


def _options(model):
    return {"train": False} if "train" in inspect.signature(model.__call__).parameters else {}


def init_shapes(model, x):
    """The parameters' shapes and types; nothing is computed."""
    init = functools.partial(model.init, **_options(model))
    return jax.eval_shape(init, jax.random.key(0), x)["params"]


def random_params(model, x, seed=0):
    """Parameters far from the initial values: no gain is 1 and no bias 0."""
    rng = np.random.default_rng(seed)
    out = {}
    for path, leaf in flat(init_shapes(model, x)).items():
        value = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            value /= math.sqrt(math.prod(leaf.shape[:-1]))
        elif path.endswith("scale"):
            value = 1 + 0.3 * value
        out[path] = value.astype(np.float32)
    return flax.traverse_util.unflatten_dict(out, sep="/")


@functools.cache
def _forward(model):
    return quick_jit(lambda params, x: model.apply({"params": params}, x, **_options(model)))


def evaluate(model, params, x):
    """A deterministic forward pass, compiled once for a module and a shape."""
    return _forward(model)(params, x)
