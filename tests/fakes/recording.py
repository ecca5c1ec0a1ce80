"""An optimizer that trains nothing and writes down what a step saw."""

import jax.numpy as jnp
import optax


def log_gradients():
    """Leaves `kernel` alone and writes the norms of its rows' gradients into `log`, row by step."""

    def update(gradient, step, params):
        norms = jnp.linalg.norm(gradient["kernel"], axis=1)
        log = jnp.zeros_like(params["log"]).at[step].set(norms)
        return {"kernel": jnp.zeros_like(params["kernel"]), "log": log}, step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
