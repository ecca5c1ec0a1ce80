"""The plain vision transformer's block, with drop path.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; drop path ("stochastic depth") is
Huang et al., ECCV 2016. With `mutable=["intermediates"]` the values between the layers
(`attended`, `activated`) and the masks of drop path can be had as well; else they cost nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from htnet_jax.models.layers import Dense, LayerNorm, gelu

# The LN of the usual vision transformers, a tenth of PyTorch's default.
VIT_LAYER_NORM_EPS = 1e-6

# PyTorch's `trunc_normal_(std=.02)` cuts at -2 and 2, which is 100 standard deviations out: no
# draw gets there, so it is the normal distribution.
vit_normal = nn.initializers.normal(0.02)


def vit_dense(features: int, dtype: Any, name: str) -> Dense:
    """A `Dense` that starts as in vision transformers: N(0, .02^2), biases 0."""
    return Dense(features, dtype, vit_normal, nn.initializers.zeros, name=name)


class DropPath(nn.Module):
    """Leaves out a residual branch, for each clip on its own; the others are scaled up to the mean.

    With a rate above 0, `train=True` needs a `dropout` RNG.

    Attributes:
        rate: Probability that a clip loses the branch.
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, ...)` to the same shape."""
        if not train or not self.rate:
            return x
        keep = 1 - self.rate
        # Drawn in float32 whatever the type of x, so that a key gives the same draws in all types.
        kept = jax.random.bernoulli(self.make_rng("dropout"), np.float32(keep), (x.shape[0],))
        mask = kept.astype(x.dtype) / jnp.asarray(keep, x.dtype)
        self.sow("intermediates", "mask", mask)
        return x * mask.reshape(-1, *(1,) * (x.ndim - 1))


class SelfAttention(nn.Module):
    """Multi-head self-attention among all tokens.

    Parameters: `qkv`, a `Dense` with bias, packed q, k, v, each ordered (head, channel), and `out`.

    Attributes:
        heads: Number of heads; divides the width.
        dtype: Type of the computation; the softmax is float32 at least.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(B, tokens, C)` to the same shape.

        Raises:
            ValueError: `heads` does not divide C.
        """
        *lead, width = x.shape
        if width % self.heads:
            raise ValueError(f"{width} channels cannot be divided among {self.heads} heads")
        head_width = width // self.heads
        qkv = vit_dense(3 * width, self.dtype, "qkv")(x)
        query, key, value = (
            part.reshape(*lead, self.heads, head_width) for part in jnp.split(qkv, 3, axis=-1)
        )
        scores = jnp.einsum("bnhd,bmhd->bhnm", query, key) * head_width**-0.5
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        attended = jnp.einsum("bhnm,bmhd->bnhd", weights, value).reshape(x.shape)
        self.sow("intermediates", "attended", attended)
        return vit_dense(width, self.dtype, "out")(attended)


class Mlp(nn.Module):
    """Dense, exact (erf) GELU, Dense.

    Attributes:
        mult: Width of the hidden layer as a multiple of the input's.
        dtype: Type of the computation.
    """

    mult: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., C)` to the same shape."""
        width = x.shape[-1]
        x = gelu(vit_dense(width * self.mult, self.dtype, "fc1")(x))
        self.sow("intermediates", "activated", x)
        return vit_dense(width, self.dtype, "fc2")(x)


class ViTBlock(nn.Module):
    """A pre-norm block: `x + Attention(LN(x))`, then `x + Mlp(LN(x))`, each with drop path.

    Attributes:
        heads: Heads of the attention; divide the width.
        mlp_mult: Hidden width of the MLP as a multiple of the width.
        drop_path: Probability that a clip loses a branch in training; the two draw on their own.
        dtype: Type of the computation.
    """

    heads: int
    mlp_mult: int = 4
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, tokens, C)` to the same shape."""
        attention = SelfAttention(self.heads, self.dtype, name="attention")
        mlp = Mlp(self.mlp_mult, self.dtype, name="mlp")
        normed = LayerNorm(self.dtype, VIT_LAYER_NORM_EPS, name="attention_norm")(x)
        branch = attention(normed)
        x = x + DropPath(self.drop_path, name="attention_path")(branch, train=train)
        branch = mlp(LayerNorm(self.dtype, VIT_LAYER_NORM_EPS, name="mlp_norm")(x))
        return x + DropPath(self.drop_path, name="mlp_path")(branch, train=train)
