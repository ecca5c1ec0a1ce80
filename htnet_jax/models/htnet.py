"""HTNet: a hierarchical transformer with local attention over a mosaic of four face regions.

Wang, Zhang, Luo, Sankaranarayana, "HTNet for micro-expression recognition", arXiv 2307.14637;
its ancestor is NesT (Zhang et al., "Nested Hierarchical Transformer", AAAI 2022). Written from the
papers' and the release's facts; the blocks can be imported and used on their own.

At the published size (28 px, patch 7, 3 hierarchies) every block holds a single token, so the
softmax is identically 1 and attention reduces to `out(v)`: see `layers.Attention`.

With `mutable=["intermediates"]` the values between the layers (`positioned`, `attended`,
`activated`) are returned as well; else they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from htnet_jax.models.layers import (
    Block,
    Conv,
    Dense,
    LayerNorm,
    check_images,
    check_ranges,
)
from htnet_jax.models.xla_cpu import max_pool_3x3_stride_2
from htnet_jax.ranges import Range


def blockify(x: jax.Array, blocks: int) -> jax.Array:
    """Cuts a map into `blocks x blocks` blocks of tokens.

    Args:
        x: `(..., H, W, C)`; H and W divisible by `blocks`.
        blocks: Blocks a side.

    Returns:
        `(..., blocks**2, (H / blocks) * (W / blocks), C)`; blocks and tokens in row-major order.

    Raises:
        ValueError: `blocks` does not divide H and W.
    """
    *lead, height, width, channels = x.shape
    if blocks < 1 or height % blocks or width % blocks:
        raise ValueError(f"a {height}x{width} map cannot be cut into {blocks}x{blocks} blocks")
    x = x.reshape(*lead, blocks, height // blocks, blocks, width // blocks, channels)
    x = jnp.moveaxis(x, -3, -4)
    return x.reshape(*lead, blocks**2, (height // blocks) * (width // blocks), channels)


def unblockify(x: jax.Array, blocks: int) -> jax.Array:
    """The inverse of `blockify` for square maps.

    Args:
        x: `(..., blocks**2, n * n, C)`.
        blocks: Blocks a side.

    Returns:
        `(..., blocks * n, blocks * n, C)`.

    Raises:
        ValueError: The block count is not `blocks**2`, or the tokens of a block are no square.
    """
    *lead, count, tokens, channels = x.shape
    side = round(tokens**0.5)
    if count != blocks**2 or side**2 != tokens:
        raise ValueError(
            f"{count} blocks of {tokens} tokens are not {blocks}x{blocks} square blocks"
        )
    x = x.reshape(*lead, blocks, blocks, side, side, channels)
    x = jnp.moveaxis(x, -3, -4)
    return x.reshape(*lead, blocks * side, blocks * side, channels)


def patchify(x: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into square patches.

    Args:
        x: `(..., H, W, C)`; H and W divisible by `patch_size`.
        patch_size: Side of a patch in pixels.

    Returns:
        `(..., H / patch_size, W / patch_size, patch_size**2 * C)`, a patch ordered (row, column,
        channel) as in the release.
    """
    *lead, height, width, channels = x.shape
    rows, columns = height // patch_size, width // patch_size
    x = x.reshape(*lead, rows, patch_size, columns, patch_size, channels)
    x = jnp.moveaxis(x, -3, -4)
    return x.reshape(*lead, rows, columns, patch_size**2 * channels)


class Hierarchy(nn.Module):
    """One level: blockify, add the position scalars, the transformer blocks, unblockify.

    `pos_emb` holds one scalar per token position of a block, N(0, 1) at the start, shared by all
    blocks and all channels.

    Attributes:
        blocks: Blocks a side.
        repeats: Transformer blocks.
        heads: Heads of the attention.
        mlp_mult: Hidden width of the feed-forward as a multiple of the width.
        dropout: Dropout rate inside the blocks.
        dtype: Type of the computation.
    """

    blocks: int
    repeats: int
    heads: int
    mlp_mult: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, H, H, C)` to the same shape.

        Raises:
            ValueError: The map is not square, or `blocks` does not divide its side.
        """
        if x.shape[1] != x.shape[2]:
            raise ValueError(f"the map must be square; got shape {x.shape}")
        x = blockify(x, self.blocks)
        tokens = x.shape[-2]
        pos_emb = self.param("pos_emb", nn.initializers.normal(1.0), (tokens,))
        x = x + pos_emb.astype(x.dtype).reshape(1, 1, tokens, 1)
        self.sow("intermediates", "positioned", x)
        for index in range(self.repeats):
            x = Block(
                self.heads, self.mlp_mult, self.dropout, dtype=self.dtype, name=f"block_{index}"
            )(x, train=train)
        return unblockify(x, self.blocks)


class Aggregate(nn.Module):
    """Joins four blocks into one: 3x3 convolution, LN, 3x3 max-pool with stride 2.

    Padding is 1 on every side, with zeros for the convolution and -inf for the pool (not SAME).

    Attributes:
        features: Output channels.
        dtype: Type of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(B, H, W, C)` to `(B, ceil(H / 2), ceil(W / 2), features)`."""
        x = Conv(self.features, (3, 3), padding=1, small_maps=True, dtype=self.dtype, name="conv")(
            x
        )
        x = LayerNorm(self.dtype, name="norm")(x)
        return max_pool_3x3_stride_2(x)


class HTNet(nn.Module):
    """HTNet; the defaults are the published configuration (139,582,982 parameters).

    Example:
        model = HTNet()
        variables = model.init(jax.random.key(0), x, train=False)  # x: (B, 28, 28, 3), 0..255
        logits = model.apply(variables, x, train=False)  # (B, 3)

    Attributes:
        num_classes: Classes.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels; divides `image_size`.
        dim: Channels at the bottom level; they double at every level up.
        heads: Attention heads at the bottom level; they double as well.
        num_hierarchies: Levels; the bottom one has `2**(num_hierarchies - 1)` blocks a side.
        block_repeats: Transformer blocks of each level, the bottom level first.
        mlp_mult: Hidden width of the feed-forward as a multiple of the width.
        dropout: Dropout rate; with a rate above 0, `train=True` needs a `dropout` RNG.
        dtype: Type of the computation (parameters are float32).
    """

    inputs: ClassVar[tuple[str, ...]] = ("mosaic",)
    privileged: ClassVar[tuple[str, ...]] = ()
    # The published network has 256 channels at the bottom level and blocks (2, 2, 10).
    SIZES: ClassVar[Mapping[str, Range]] = {
        "num_classes": Range(1, 1000),
        "image_size": Range(1, 2048),
        "patch_size": Range(1, 2048),
        "dim": Range(1, 4096),
        "heads": Range(1, 256),
        "num_hierarchies": Range(1, 6),
        "block_repeats": Range(0, 64, several="all"),
        "mlp_mult": Range(1, 64),
        "dropout": Range(0.0, 1.0),
    }

    num_classes: int = 3
    image_size: int = 28
    patch_size: int = 7
    dim: int = 256
    heads: int = 3
    num_hierarchies: int = 3
    block_repeats: Sequence[int] = (2, 2, 10)
    mlp_mult: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def check_sizes(self) -> None:
        """Raises a ValueError that says which attributes do not fit together."""
        check_ranges(self, self.SIZES)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}"
            )
        side = self.image_size // self.patch_size
        blocks = 2 ** (self.num_hierarchies - 1)
        if side % blocks:
            raise ValueError(
                f"image_size={self.image_size} with patch_size={self.patch_size} gives {side} "
                f"patches a side, which is not divisible by the {blocks} blocks a side of "
                f"num_hierarchies={self.num_hierarchies}"
            )
        counts = tuple(self.block_repeats)
        if len(counts) != self.num_hierarchies:
            raise ValueError(
                f"block_repeats={counts} must name one count for each of "
                f"num_hierarchies={self.num_hierarchies} levels"
            )
        if self.dim < self.heads:
            raise ValueError(f"dim={self.dim} leaves no channel for each of heads={self.heads}")

    def input_shapes(self, flow_channels: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each input of one clip, in the order of the call: the mosaic.

        Args:
            flow_channels: Channels of the flow.
        """
        return ((self.image_size, self.image_size, flow_channels),)

    def idle_columns(self) -> dict[str, int]:
        """The parameters that cannot change the result, if a block holds a single token: q and k.

        Returns:
            Path of each `qkv` among the parameters, joined by `/` -> its leading columns that are
            never read. Empty if a block holds several tokens.
        """
        side = self.image_size // self.patch_size
        if side != 2 ** (self.num_hierarchies - 1):
            return {}
        found = {}
        for level, repeats in enumerate(self.block_repeats):
            width, heads = self.dim * 2**level, self.heads * 2**level
            for index in range(repeats):
                path = f"level_{level}/block_{index}/attention/qkv"
                found[path] = 2 * heads * (width // heads)
        return found

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Classifies mosaics.

        Args:
            x: `(B, image_size, image_size, C)`, any real type; the release feeds raw 0..255 with
                channels (strain, v, u).
            train: Whether dropout is active.

        Returns:
            `(B, num_classes)` logits in `dtype`.

        Raises:
            ValueError: The attributes do not fit together, or x does not fit `image_size`.
        """
        self.check_sizes()
        check_images("x", x, self.image_size)
        x = patchify(x.astype(self.dtype), self.patch_size)
        x = Dense(self.dim, self.dtype, name="patch_embedding")(x)
        for index, repeats in enumerate(self.block_repeats):
            scale = 2**index
            blocks = 2 ** (self.num_hierarchies - 1 - index)
            x = Hierarchy(
                blocks,
                repeats,
                self.heads * scale,
                self.mlp_mult,
                self.dropout,
                self.dtype,
                name=f"level_{index}",
            )(x, train=train)
            if blocks > 1:
                width = self.dim * scale * 2
                x = Aggregate(width, self.dtype, name=f"aggregate_{index}")(x)
        x = LayerNorm(self.dtype, name="head_norm")(x)
        x = x.mean(axis=(1, 2))
        return Dense(self.num_classes, self.dtype, name="head")(x)
