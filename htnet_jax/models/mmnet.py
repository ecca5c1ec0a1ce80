"""MMNet: muscle motion from the difference of two frames, face positions from the first of them.

Li, Sui, Zhu, Zhao, "MMNet: Muscle Motion-guided Network for Micro-expression Recognition", IJCAI
2022, arXiv 2201.05297. Written from the paper's and the release's facts; the blocks can be imported
and used on their own.

The main branch sees `apex - onset` and carries a map of attention from block to block; the
position-calibration branch sees the onset frame on a coarse grid. Their sum is classified.

With `mutable=["intermediates"]` the values between the layers are returned as well; else they cost
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from htnet_jax.models.layers import (
    VIT_LAYER_NORM_EPS,
    BatchNorm,
    Block,
    ConvNorm,
    Dense,
    LayerNorm,
    check_images,
    check_ranges,
    torch_uniform,
    vit_normal,
)
from htnet_jax.models.xla_cpu import channel_maximum, channel_mean, max_pool_3x3_stride_2, product
from htnet_jax.ranges import Range

# Pixels a side of a cell of the coarse grid: what strides of 2 in the stem and in three of the four
# blocks make of a pixel of the last map.
CELL = 16


def shrink(frames: jax.Array) -> jax.Array:
    """Resizes to a sixteenth, bilinear without antialiasing: samples the centre of every cell.

    The centre of a 16x16 cell lies between four pixels, so their mean is what PyTorch's
    `interpolate(mode="bilinear", align_corners=False)` gives. (`jax.image.resize` would average
    over the cell.)

    Args:
        frames: `(B, H, W, C)`; H and W divisible by 16.

    Returns:
        `(B, H / 16, W / 16, C)`.
    """
    batch, height, width, channels = frames.shape
    cells = frames.reshape(batch, height // CELL, CELL, width // CELL, CELL, channels)
    middle = slice(CELL // 2 - 1, CELL // 2 + 1)
    return cells[:, :, middle, :, middle].mean(axis=(2, 4))


class AttentionMap(nn.Module):
    """`sigmoid(BN(a * mean + b * max))` over the channels: how much each position matters.

    The release's 1x1 convolution of two channels to one, mean first. Parameters: `kernel` `(2,)`,
    N(0, 2) at the start, and `norm`.

    Attributes:
        dtype: Type of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, H, W, C)` to `(B, H, W, 1)`, values in (0, 1); see `BatchNorm`."""
        # Kaiming normal by fan-out, as all other kernels: a single output makes it sqrt(2).
        kernel = self.param("kernel", nn.initializers.normal(2**0.5), (2,)).astype(x.dtype)
        mean, most = channel_mean(x), channel_maximum(x)
        joined = kernel[0] * mean + kernel[1] * most
        self.sow("intermediates", "joined", joined)
        return nn.sigmoid(BatchNorm(self.dtype, name="norm")(joined, train=train))


class ContinuousAttentionBlock(nn.Module):
    """A residual block whose output is weighted by a map of attention, which it hands on.

    3x3 convolution, BN, ReLU, 1x1 convolution, BN; plus the skip, which is the identity or, with
    stride 2 or another width, a 1x1 convolution and BN; ReLU; times the map. The block's own map is
    multiplied with the previous block's, pooled to its size.

    Attributes:
        features: Output channels.
        stride: 1 or 2; a map from the previous block needs 2.
        dtype: Type of the computation.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        attention: jax.Array | None = None,
        *,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the block.

        Args:
            x: `(B, H, W, C)`.
            attention: `(B, H, W, 1)`, the previous block's map, or None for the first block.
            train: See `BatchNorm`.

        Returns:
            `(B, H / stride, W / stride, features)` and the map, the same with 1 channel.

        Raises:
            ValueError: A map from before, but a stride other than 2.
        """
        if attention is not None and self.stride != 2:
            raise ValueError(f"a map from the previous block needs stride 2; got {self.stride}")
        out = ConvNorm(self.features, 3, self.stride, self.dtype, name="first")(x, train=train)
        out = ConvNorm(self.features, 1, 1, self.dtype, name="second")(nn.relu(out), train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = ConvNorm(self.features, 1, self.stride, self.dtype, name="skip")(x, train=train)
        out = nn.relu(out + x)
        self.sow("intermediates", "joined", out)
        own = AttentionMap(self.dtype, name="attention")(out, train=train)
        if attention is not None:
            own = max_pool_3x3_stride_2(attention) * own
        self.sow("intermediates", "map", own)
        out = out * own
        self.sow("intermediates", "weighted", out)
        return out, own


class PositionCalibration(nn.Module):
    """Where on the face a position lies: a vision transformer over a coarse grid of the frame.

    A dense layer for each cell, a learned position each, pre-norm blocks, and a final LN. There is
    no class token. Parameters: `pos_embed` `(cells, features)` and those of the layers.

    Attributes:
        features: Width.
        depth: Blocks.
        heads: Heads of the attention; divide the width.
        mlp_mult: Hidden width of the MLPs as a multiple of the width.
        drop_path: Rate of the last block; it rises linearly from 0 at the first.
        dtype: Type of the computation.
    """

    features: int
    depth: int
    heads: int = 4
    mlp_mult: int = 4
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, grid: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, H, W, C)` to `(B, H, W, features)`."""
        batch, height, width, _ = grid.shape
        x = Dense(self.features, self.dtype, name="patch_embedding")(grid)
        x = x.reshape(batch, height * width, self.features)
        place = self.param("pos_embed", vit_normal, (height * width, self.features))
        x = x + place.astype(x.dtype)[None]
        self.sow("intermediates", "positioned", x)
        for index, rate in enumerate(np.linspace(0, self.drop_path, self.depth)):
            x = Block(
                self.heads,
                self.mlp_mult,
                drop_path=float(rate),
                qkv_bias=True,
                norm_eps=VIT_LAYER_NORM_EPS,
                dtype=self.dtype,
                kernel_init=vit_normal,
                bias_init=nn.initializers.zeros,
                name=f"block_{index}",
            )(x, train=train)
        x = LayerNorm(self.dtype, VIT_LAYER_NORM_EPS, name="norm")(x)
        return x.reshape(batch, height, width, self.features)


class MapHead(nn.Module):
    """Logits from all positions and channels of a map, without pooling.

    Parameters: `kernel` `(H, W, C, features)` and `bias` `(features,)`, float32, initialised as
    PyTorch's `nn.Linear` over the flattened map.

    Attributes:
        features: Number of logits.
        dtype: Type of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(B, H, W, C)` to `(B, features)`."""
        shape = x.shape[1:]
        inputs = int(np.prod(shape))
        init = torch_uniform(inputs)
        kernel = self.param("kernel", init, (*shape, self.features))
        bias = self.param("bias", init, (self.features,))
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
        out = product(x.reshape(-1, inputs), kernel.reshape(inputs, self.features))
        return out + bias.reshape(1, -1)


class MMNet(nn.Module):
    """MMNet; the defaults are the published 5-class network (9,438,841 parameters).

    The published 3-class one has `depth=3, mlp_mult=2, drop_path=0.3` (9,442,425 parameters); its
    script keeps 5 logits, of which two are never right.

    Example:
        model = MMNet()
        variables = model.init(jax.random.key(0), onset, apex, train=False)
        logits = model.apply(variables, onset, apex, train=False)  # (B, 5)
        logits, moved = model.apply(
            variables, onset, apex, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    Attributes:
        num_classes: Classes.
        image_size: Side of the square frames in pixels; a multiple of 16.
        stem: Channels of the first convolution.
        widths: Channels of the four blocks; the second convolution has those of the first block,
            the position-calibration branch those of the last.
        depth: Blocks of the position-calibration branch.
        heads: Their attention heads; divide the last width.
        mlp_mult: Hidden width of their MLPs as a multiple of the width.
        drop_path: Drop-path rate of the last of them; it rises linearly from 0 at the first, so a
            single block has none. With a rate above 0, `train=True` needs a `dropout` RNG.
        dtype: Type of the computation (parameters are float32).
    """

    inputs: ClassVar[tuple[str, ...]] = ("onset", "apex")
    privileged: ClassVar[tuple[str, ...]] = ()
    SIZES: ClassVar[Mapping[str, Range]] = {
        "num_classes": Range(1, 1000),
        "image_size": Range(1, 2048),
        "stem": Range(1, 4096),
        "widths": Range(1, 4096, several="all"),
        "depth": Range(1, 64),
        "heads": Range(1, 256),
        "mlp_mult": Range(1, 64),
        "drop_path": Range(0.0, 1.0),
    }

    num_classes: int = 5
    image_size: int = 224
    stem: int = 180
    widths: tuple[int, int, int, int] = (128, 128, 256, 512)
    depth: int = 2
    heads: int = 4
    mlp_mult: int = 4
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    def check_sizes(self) -> None:
        """Raises a ValueError that says which attributes do not fit together."""
        check_ranges(self, self.SIZES)
        if self.image_size % CELL:
            raise ValueError(f"image_size={self.image_size} is not divisible by {CELL}")
        if len(self.widths) != 4:
            raise ValueError(f"widths={self.widths} must name four widths")
        if self.widths[-1] % self.heads:
            raise ValueError(
                f"the last of widths={tuple(self.widths)} is not divisible by heads={self.heads}"
            )

    def input_shapes(self, flow_channels: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each input of one clip, in the order of the call: onset and apex frame.

        Args:
            flow_channels: Channels of the flow; frames have their own three.
        """
        del flow_channels
        return ((self.image_size, self.image_size, 3),) * 2

    @nn.compact
    def __call__(
        self,
        onset: jax.Array,
        apex: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Classifies clips by two of their frames.

        Args:
            onset: `(B, image_size, image_size, 3)` RGB, normalised by ImageNet's mean and standard
                deviation.
            apex: The same.
            train: Whether the batch's own statistics and drop path are used; `batch_stats` must
                then be mutable. `layers.batch_mask` keeps the padding of a batch out of them.

        Returns:
            `(B, num_classes)` logits in `dtype`.

        Raises:
            ValueError: The attributes do not fit together, or a frame does not fit `image_size`.
        """
        self.check_sizes()
        for name, frames in (("onset", onset), ("apex", apex)):
            check_images(name, frames, self.image_size, channels=3)
        onset, apex = onset.astype(self.dtype), apex.astype(self.dtype)
        grid = shrink(onset)
        self.sow("intermediates", "grid", grid)
        position = PositionCalibration(
            self.widths[-1],
            self.depth,
            self.heads,
            self.mlp_mult,
            self.drop_path,
            self.dtype,
            name="position",
        )(grid, train=train)
        # The release leaves PyTorch's default here; all other kernels are kaiming normal.
        stem = ConvNorm(self.stem, 3, 2, self.dtype, torch_uniform(9 * 3), name="stem")
        x = nn.relu(stem(apex - onset, train=train))
        x = nn.relu(ConvNorm(self.widths[0], 3, 1, self.dtype, name="entry")(x, train=train))
        attention = None
        for number, width in enumerate(self.widths, 1):
            x, attention = ContinuousAttentionBlock(
                width, 1 if number == 1 else 2, self.dtype, name=f"layer_{number}"
            )(x, attention, train=train)
        x = x + position
        self.sow("intermediates", "calibrated", x)
        return MapHead(self.num_classes, self.dtype, name="head")(x)
