"""Adam and AdamW as PyTorch computes them, as optax transformations.

optax forms the bias corrections 1 - b**t in float32, where 1 - 0.999 has lost all but five digits;
PyTorch forms them in double precision. Such a difference in every step is a hundred times larger
than the rounding of the networks themselves, and training amplifies it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

# PyTorch's defaults, which HTNet's release uses (optax's are the same but for weight_decay).
B1, B2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01


def scale_by_adam(b1: float = B1, b2: float = B2, eps: float = EPS) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with bias corrections that keep all digits of the parameters' type."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(
        gradient: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradient, state.mu)
        square = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, gradient, state.nu)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            steps = count.astype(m.dtype)
            # 1 - b**t, without the cancellation.
            correct1, correct2 = (-jnp.expm1(steps * math.log(b)) for b in (b1, b2))
            return m / correct1 / (jnp.sqrt(v / correct2) + eps)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def adam(learning_rate: float) -> optax.GradientTransformation:
    """`torch.optim.Adam(lr=learning_rate)`."""
    return optax.chain(scale_by_adam(), optax.scale_by_learning_rate(learning_rate))


def adamw(learning_rate: float, weight_decay: float = WEIGHT_DECAY) -> optax.GradientTransformation:
    """`torch.optim.AdamW(lr=learning_rate, weight_decay=weight_decay)`, decay on everything."""
    return optax.chain(
        scale_by_adam(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
