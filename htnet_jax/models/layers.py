"""The layers that networks are built from: PyTorch's functions and initial values, channels last.

What is written in an unusual way for speed on CPUs lives in `xla_cpu`; any JAX transformation works
on it, unless it says otherwise. With `mutable=["intermediates"]` some values between the layers
(`attended`, `activated`) and the masks of drop path are returned as well; else they cost nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from htnet_jax.models import xla_cpu
from htnet_jax.models.xla_cpu import gelu, product
from htnet_jax.ranges import Allowed, refusals, short

Initializer = nn.initializers.Initializer

# torch.nn.LayerNorm's eps (Flax's own default is 1e-6), and that of the usual vision transformers.
LAYER_NORM_EPS = 1e-5
VIT_LAYER_NORM_EPS = 1e-6

# torch.nn.BatchNorm2d's defaults. (Flax writes the momentum the other way round: its 0.9 is 0.1.)
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


# --- initial values -------------------------------------------------------------------------------


def torch_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for the weights *and* biases of linear and convolution layers.

    `kaiming_uniform_` with a = sqrt(5) is U(-b, b) with b = 1/sqrt(fan_in); biases use the same b.

    Args:
        fan_in: Inputs that each output sums over (channels x kernel area).
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kaiming_normal_fan_out(kernel_area: int) -> Initializer:
    """PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`: N(0, 2 / fan_out).

    fan_out is the number of outputs (the kernel's last axis) x `kernel_area`.

    Args:
        kernel_area: Positions that the kernel covers.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        deviation = (2 / (kernel_area * shape[-1])) ** 0.5
        return deviation * jax.random.normal(key, shape, dtype)

    return init


# The kernels of vision transformers. PyTorch's `trunc_normal_(std=.02)` cuts at -2 and 2, which is
# 100 standard deviations out: no draw gets there, so it is the normal distribution.
vit_normal = nn.initializers.normal(0.02)


# --- attributes -----------------------------------------------------------------------------------

DTYPES = ("float16", "bfloat16", "float32", "float64")


def check_ranges(module: nn.Module, sizes: Mapping[str, Allowed]) -> None:
    """Checks types and ranges of a network's attributes, before anything is computed with them.

    Args:
        module: The network; its `dtype`, if it has one, is checked as well.
        sizes: Attribute -> what it may be. A network keeps them as its `SIZES`.

    Raises:
        ValueError: Names the attributes.
    """
    if wrong := refusals({key: getattr(module, key) for key in sizes}, sizes.items()):
        raise ValueError("; ".join(wrong))
    dtype = getattr(module, "dtype", jnp.float32)
    try:
        # NumPy takes None for float64.
        name = "" if dtype is None else jnp.dtype(dtype).name
    except (TypeError, ValueError):
        name = ""
    if name not in DTYPES:
        raise ValueError(f"dtype={short(dtype)} must be a floating-point type: {', '.join(DTYPES)}")


# --- inputs and batches ---------------------------------------------------------------------------


def check_images(name: str, x: jax.Array, side: int, channels: int | None = None) -> None:
    """Raises a ValueError that names the remedy if a network's input is not of its size.

    Args:
        name: Of the input.
        x: Should be `(B, side, side, channels)`.
        side: The network's `image_size`.
        channels: None: any number.
    """
    if x.ndim == 4 and x.shape[1:3] == (side, side) and channels in (None, x.shape[3]):
        return
    wanted = "channels" if channels is None else channels
    message = (
        f"{name} has shape {x.shape}, but image_size={side} needs (batch, {side}, {side}, {wanted})"
    )
    if x.ndim == 4 and x.shape[1] == x.shape[2] != side and channels in (None, x.shape[3]):
        message += f"; set image_size={x.shape[1]}"
    raise ValueError(message)


_MASK: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("mask", default=None)


@contextlib.contextmanager
def batch_mask(mask: jax.Array | None) -> Iterator[None]:
    """Tells batch normalisation which clips of a batch are padding.

        with batch_mask(mask):
            logits, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])

    So a network need not hand the mask down to its layers. The mask is read while `apply` is
    traced: enter the block inside the function that is jitted, vmapped, scanned or differentiated.
    Around a jitted function it would be read in the first call only.

    Args:
        mask: `(B,)`, 1 for a clip and 0 for padding; None: all are clips.
    """
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)


def _mask_of(size: int) -> jax.Array:
    """`(size,)`: the mask of the surrounding `batch_mask`, or ones."""
    mask = _MASK.get()
    if mask is None:
        return jnp.ones(size)
    if mask.shape != (size,):
        raise ValueError(
            f"batch_mask holds a mask of shape {mask.shape}, but the batch that is normalised has "
            f"{size} clips; keep clips on the first axis, and frames of a clip on the next one"
        )
    return mask


# --- linear layers --------------------------------------------------------------------------------


class Dense(nn.Module):
    """`x @ kernel + bias`, initialised as PyTorch's `nn.Linear`.

    Parameters: `kernel` `(C, features)` and `bias` `(features,)`, float32.

    Attributes:
        features: Output channels.
        dtype: Type of the computation.
        kernel_init: How the kernel starts; default: as PyTorch's.
        bias_init: How the bias starts; default: as PyTorch's.
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., C)` to `(..., features)`."""
        init = torch_uniform(x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init or init, (self.features,))
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
        flat = product(x.reshape(-1, x.shape[-1]), kernel) + bias.reshape(1, -1)
        return flat.reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """Convolution over the axes before the last one, as PyTorch's `Conv1d`, `Conv2d`, `Conv3d`.

    Padding is the same number of zeros on both sides. (Flax's "SAME" with stride 2 pads an even map
    on the right and below only: another function.) A kernel of size 1 is a matrix product.

    Parameters, float32: `kernel` `(*kernel_size, C, features)`, or `(C, features)` if all sizes
    are 1; with `use_bias` also `bias` `(features,)`.

    Attributes:
        features: Output channels.
        kernel_size: Of each axis; says how many axes there are.
        stride: Positions between two windows, for all axes or each.
        padding: Zeros on both sides, for all axes or each.
        use_bias: Whether a bias is added.
        small_maps: For 3x3 kernels with stride 1 and padding 1: computes by matrix products, see
            `xla_cpu.convolve_small_maps`. Otherwise forward-mode differentiation is refused.
        dtype: Type of the computation.
        kernel_init: How the kernel starts; default: as PyTorch's.
    """

    features: int
    kernel_size: Sequence[int]
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] = 0
    use_bias: bool = True
    small_maps: bool = False
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., *sizes, C)` to `(..., *new sizes, features)`.

        Raises:
            ValueError: Stride or padding of another number of axes, fewer axes in x, or
                `small_maps` with another convolution than it can do.
        """
        size = tuple(self.kernel_size)
        stride, padding = (_each(value, size) for value in (self.stride, self.padding))
        if self.small_maps and (size, stride, padding) != ((3, 3), (1, 1), (1, 1)):
            raise ValueError(
                "small_maps=True computes 3x3 kernels with stride 1 and padding 1; got "
                f"kernel_size={size}, stride={stride}, padding={padding}"
            )
        if x.ndim < len(size) + 1:
            raise ValueError(f"x has shape {x.shape}, but kernel_size={size} needs more axes")
        channels, axes = x.shape[-1], len(size)
        init = torch_uniform(math.prod(size) * channels)
        is_point = set(size) == {1} and set(padding) == {0}
        shape = (channels, self.features) if set(size) == {1} else (*size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init or init, shape)
        bias = self.param("bias", init, (self.features,)) if self.use_bias else None
        lead = x.shape[: -axes - 1]
        x = x.astype(self.dtype).reshape(-1, *x.shape[-axes - 1 :])
        if is_point:
            steps = tuple(slice(None, None, step) for step in stride)
            out = product(x[(slice(None), *steps)], kernel)
        elif self.small_maps:
            out = xla_cpu.convolve_small_maps(x, kernel)
        else:
            kernel = kernel.reshape(*size, channels, self.features)
            out = xla_cpu.convolve(x, kernel, stride, padding)
        if bias is not None:
            out = out + bias.astype(self.dtype).reshape(*(1,) * (axes + 1), -1)
        return out.reshape(*lead, *out.shape[1:])


def _each(value: int | Sequence[int], size: tuple[int, ...]) -> tuple[int, ...]:
    """One number for each axis of a kernel."""
    values = (value,) * len(size) if isinstance(value, int) else tuple(value)
    if len(values) != len(size):
        raise ValueError(f"{values} does not name one number for each axis of kernel_size={size}")
    return values


# --- normalisation --------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """LN over channels: biased variance, eps under the root, a gain and a bias per channel.

    The variance is taken in two passes because the inputs (raw 0..255) are far from zero mean,
    where E[x^2] - E[x]^2 loses digits. Parameters: `scale` (1s at the start) and `bias` (0s),
    `(C,)` float32.

    Attributes:
        dtype: Type of the result; the statistics are float32 at least.
        eps: Added to the variance; default 1e-5 as PyTorch's.
    """

    dtype: Any = jnp.float32
    eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., C)` to the same shape."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        flat = x.reshape(-1, channels).astype(wide)
        centred = flat - flat.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        out = normed * scale.astype(wide).reshape(1, -1) + bias.astype(wide).reshape(1, -1)
        return out.astype(self.dtype).reshape(x.shape)


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` to `3d`: normalises each channel over all clips and positions.

    In training the batch's own mean and *biased* variance normalise it; the running variance takes
    up the *unbiased* one, n / (n - 1) of it, as in PyTorch. (Flax's `nn.BatchNorm` keeps the biased
    one. At 14x14 pixels and batch 2 they differ by 0.3 %.) In evaluation the running ones are used.
    The variance is taken in two passes: E[x^2] - E[x]^2 loses digits.

    Parameters: `scale` (1s at the start) and `bias` (0s); collection `batch_stats`: `mean` (0s) and
    `var` (1s); all `(C,)` float32. With `train=True` that collection must be mutable.

    Attributes:
        dtype: Type of the result; the statistics are float32 at least.
        momentum: Share of the batch's statistics in the new running ones.
        eps: Added to the variance.
    """

    dtype: Any = jnp.float32
    momentum: float = BATCH_NORM_MOMENTUM
    eps: float = BATCH_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises a batch.

        Args:
            x: `(B, ..., C)` floats.
            train: Whether the batch's own statistics are used, and the running ones moved. Padding,
                as `batch_mask` tells it, is normalised but enters no statistics. If all is padding,
                the running statistics stay, and the result is finite.

        Returns:
            The same shape, in `dtype`.

        Raises:
            ValueError: In training, the mask of `batch_mask` is not `(B,)`.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        positions = x.astype(wide).reshape(len(x), -1, channels)
        scale, bias = scale.astype(wide), bias.astype(wide)
        if not train:
            gain = jax.lax.rsqrt(running_var.value.astype(wide) + self.eps) * scale
            centred = positions - xla_cpu.along(running_mean.value.astype(wide))
            out = centred * xla_cpu.along(gain) + xla_cpu.along(bias)
            return out.astype(self.dtype).reshape(x.shape)
        mask = _mask_of(len(x)).astype(wide)
        out, mean, variance, count = xla_cpu.normalise_batch(positions, scale, bias, mask, self.eps)
        if not self.is_initializing():
            share = self.momentum * (count > 0).astype(wide)
            unbiased = variance * (count / jnp.maximum(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                old = running.value
                moved = (1 - share) * old.astype(wide) + share * batch
                running.value = jax.lax.stop_gradient(moved).astype(old.dtype)
        return out.astype(self.dtype).reshape(x.shape)


class ConvNorm(nn.Module):
    """A convolution without bias and batch normalisation.

    Attributes:
        features: Output channels.
        kernel_size: Of each axis, odd, says how many axes there are; one number: of both axes of an
            image. Padding keeps the map's size at stride 1.
        stride: Positions between two windows, for all axes or each.
        dtype: Type of the computation.
        kernel_init: How the kernel starts; default: kaiming normal by fan-out.
    """

    features: int
    kernel_size: int | Sequence[int] = 3
    stride: int | Sequence[int] = 1
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, *sizes, C)` to `(B, *sizes / stride, features)`; see `BatchNorm`."""
        one = isinstance(self.kernel_size, int)
        size = (self.kernel_size,) * 2 if one else tuple(self.kernel_size)
        x = Conv(
            self.features,
            size,
            self.stride,
            tuple(side // 2 for side in size),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init or kaiming_normal_fan_out(math.prod(size)),
            name="conv",
        )(x)
        return BatchNorm(self.dtype, name="norm")(x, train=train)


# --- transformers ---------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of one block.

    Each head has `width // heads` channels, so the inner width `heads * (width // heads)` may be
    smaller than the width (256 channels, 3 heads: 255).

    Parameters: packed q, k, v, each ordered (head, channel): with `qkv_bias` the `Dense` layer
    `qkv`, else the kernel `qkv` `(C, 3 * inner)` itself; not `packed`, the `Dense` layers `query`,
    `key` and `value`; and the `Dense` layer `out`.

    With a single token the softmax is identically 1: q and k cannot matter and their gradient is
    exactly zero, so it is left out; without bias, so is their product.

    Attributes:
        heads: Number of heads.
        dropout: Rate, on the attention weights and after the output projection.
        qkv_bias: Whether packed q, k and v have a bias.
        packed: Whether q, k and v are one layer; False: three, with biases.
        dtype: Type of the computation; the softmax is float32 at least.
        kernel_init: How all kernels start; default: as PyTorch's linear layers.
        bias_init: How all biases start; default: likewise.
    """

    heads: int
    dropout: float = 0.0
    qkv_bias: bool = False
    packed: bool = True
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Maps `(..., tokens, C)` to the same shape; leading axes are independent blocks.

        Args:
            x: `(..., tokens, C)`.
            mask: `(..., tokens)`: 0 for a token that none attends to; None: all are attended to.
            train: Whether dropout is on.

        Raises:
            ValueError: Fewer channels than heads.
        """
        tokens, width = x.shape[-2:]
        if width < self.heads:
            raise ValueError(f"{width} channels leave none for each of {self.heads} heads")
        head_width = width // self.heads
        inner = head_width * self.heads
        starts = self.kernel_init, self.bias_init
        x = x.astype(self.dtype)
        if not self.packed:
            parts = [
                Dense(inner, self.dtype, *starts, name=name)(x)
                for name in ("query", "key", "value")
            ]
        elif self.qkv_bias:
            packed = Dense(3 * inner, self.dtype, *starts, name="qkv")(x)
            parts = jnp.split(packed, 3, axis=-1)
        else:
            init = self.kernel_init or torch_uniform(width)
            kernel = self.param("qkv", init, (width, 3 * inner))
            packed = product(x, kernel[:, 2 * inner :] if tokens == 1 else kernel)
            parts = jnp.split(packed, packed.shape[-1] // inner, axis=-1)
        *query_and_key, value = (
            part.reshape(*part.shape[:-1], self.heads, head_width) for part in parts
        )
        drop = nn.Dropout(self.dropout)
        if tokens == 1:
            weights = jnp.ones((*value.shape[:-1], 1), value.dtype)
            attended = drop(weights, deterministic=not train) * value
        else:
            scores = jnp.einsum("...nhd,...mhd->...hnm", *query_and_key) * head_width**-0.5
            scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
            if mask is not None:
                # Not -inf: a softmax over nothing else would not be finite.
                least = jnp.finfo(scores.dtype).min
                scores = jnp.where(mask[..., None, None, :] != 0, scores, least)
            weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
            weights = drop(weights, deterministic=not train)
            attended = jnp.einsum("...hnm,...mhd->...nhd", weights, value)
        attended = attended.reshape(*x.shape[:-1], inner)
        self.sow("intermediates", "attended", attended)
        out = Dense(width, self.dtype, *starts, name="out")(attended)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Mlp(nn.Module):
    """Dense, exact (erf) GELU, dropout, Dense, dropout.

    Attributes:
        mult: Width of the hidden layer as a multiple of the input's.
        dropout: Rate after the GELU and after the second Dense.
        dtype: Type of the computation.
        kernel_init: How the kernels start; default: as PyTorch's.
        bias_init: How the biases start; default: as PyTorch's.
    """

    mult: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(..., C)` to the same shape."""
        width, starts = x.shape[-1], (self.kernel_init, self.bias_init)
        x = gelu(Dense(width * self.mult, self.dtype, *starts, name="fc1")(x))
        self.sow("intermediates", "activated", x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = Dense(width, self.dtype, *starts, name="fc2")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class DropPath(nn.Module):
    """Leaves out a residual branch, for each clip on its own; the others are scaled up to the mean.

    "Stochastic depth" of Huang et al., ECCV 2016. With a rate above 0, `train=True` needs a
    `dropout` RNG.

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


class Block(nn.Module):
    """A pre-norm transformer block: `x + Attention(LN(x))`, then `x + Mlp(LN(x))`.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.

    Attributes:
        heads: Heads of the attention.
        mlp_mult: Hidden width of the MLP as a multiple of the width.
        dropout: Rate inside both branches.
        drop_path: Probability that a clip loses a branch in training; the two draw on their own.
        qkv_bias: Whether q, k and v have a bias.
        norm_eps: Of both LNs.
        dtype: Type of the computation.
        kernel_init: How the kernels of both branches start; default: as PyTorch's linear layers.
        bias_init: How the biases of both branches start; default: likewise.
    """

    heads: int
    mlp_mult: int = 4
    dropout: float = 0.0
    drop_path: float = 0.0
    qkv_bias: bool = False
    norm_eps: float = LAYER_NORM_EPS
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, ..., tokens, C)` to the same shape; axes before the tokens are blocks."""
        shared = {
            "dropout": self.dropout,
            "dtype": self.dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        attention = Attention(self.heads, qkv_bias=self.qkv_bias, **shared, name="attention")
        mlp = Mlp(self.mlp_mult, **shared, name="mlp")
        shape = x.shape
        # Of more than three dimensions two are left inside: see `product`.
        inside = shape if x.ndim <= 3 else (-1, shape[-1])

        def drop(branch: jax.Array, name: str) -> jax.Array:
            path = DropPath(self.drop_path, name=name)
            return path(branch.reshape(shape), train=train).reshape(inside)

        x = x.reshape(inside)
        normed = LayerNorm(self.dtype, self.norm_eps, name="attention_norm")(x)
        x = x + drop(attention(normed.reshape(shape), train=train), "attention_path")
        normed = LayerNorm(self.dtype, self.norm_eps, name="mlp_norm")(x)
        x = x + drop(mlp(normed, train=train), "mlp_path")
        return x.reshape(shape)
