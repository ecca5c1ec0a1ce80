"""Variations of clips for training, on the device: jitter in time, flip, rotation, shift.

A clip gets one move for all that the network is fed of it: images are turned and mirrored, vector
fields as well and their vectors with them, tables stay. Written in JAX, so that they are
part of the compiled step. Every clip draws from a key of its own, made from the seed, the fold, the
epoch and the clip: the draws do not depend on the batch that a clip is in.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Mean and standard deviation of ImageNet's RGB values in 0..1, as MMNet normalises its frames
# (torchvision's documentation of its pretrained models gives them).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
# Those of Kinetics-400, for clips (torchvision's documentation of its video models).
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How the images and fields of a clip are moved, all of them alike.

    Attributes:
        flip: Probability of a mirrored face.
        rotation: Most degrees that a face is turned, either way.
        shift: Most pixels that it is moved, on each axis; counted in pixels of the largest images.
    """

    flip: float = 0.0
    rotation: float = 0.0
    shift: int = 0

    def __bool__(self) -> bool:
        """Whether anything is moved at all."""
        return bool(self.flip or self.rotation or self.shift)


class Move(NamedTuple):
    """What was drawn for each of B clips.

    Attributes:
        flipped: `(B,)` bool.
        angle: `(B,)` float32, degrees, clockwise as the image is seen.
        down: `(B,)` int32 pixels.
        right: `(B,)` int32 pixels.
    """

    flipped: jax.Array
    angle: jax.Array
    down: jax.Array
    right: jax.Array


def normalise(pixels: jax.Array, colours: Colours = IMAGENET) -> jax.Array:
    """RGB 0..255, `(..., 3)` -> float32 of mean 0 and variance 1 over a set of images.

    Args:
        pixels: The images.
        colours: Mean and standard deviation of that set's RGB values in 0..1.
    """
    shape = (1,) * (pixels.ndim - 1) + (3,)
    mean, std = (jnp.array(values).reshape(shape) for values in colours)
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def draw_moves(keys: jax.Array, geometry: Geometry) -> Move:
    """Draws how each clip is moved.

    Args:
        keys: `(B,)` keys.
        geometry: How far.
    """

    def draw(key: jax.Array) -> Move:
        flip, turn, down, right = jax.random.split(key, 4)
        most = geometry.shift
        return Move(
            jax.random.bernoulli(flip, geometry.flip),
            jax.random.uniform(turn, (), jnp.float32, -geometry.rotation, geometry.rotation),
            jax.random.randint(down, (), -most, most + 1),
            jax.random.randint(right, (), -most, most + 1),
        )

    return jax.vmap(draw)(keys)


def sources(move: Move, side: int, scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each pixel of a moved image comes from: flip, then rotation, then shift.

    Rotation is about the image's centre and takes the nearest pixel, as torchvision's by default.

    Args:
        move: Of B clips.
        side: Of the images, in pixels.
        scale: Pixels of these images for one pixel that a shift counts in.

    Returns:
        `(rows, columns, inside)`, each `(B, side, side)`: int32 coordinates, clipped to the
        image, and whether they were inside it.
    """
    centre = (side - 1) / 2
    row, column = jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij")

    def pixels(shift: jax.Array) -> jax.Array:
        return shift if scale == 1 else jnp.rint(scale * shift).astype(jnp.int32)

    def of_clip(move: Move) -> tuple[jax.Array, jax.Array, jax.Array]:
        # What lies outside after the turn is not brought back by the shift.
        down, right = row - pixels(move.down), column - pixels(move.right)
        inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
        y, x = down - centre, right - centre
        cosine, sine = jnp.cos(jnp.radians(move.angle)), jnp.sin(jnp.radians(move.angle))
        rows = jnp.floor(cosine * y - sine * x + centre + 0.5).astype(jnp.int32)
        columns = jnp.floor(cosine * x + sine * y + centre + 0.5).astype(jnp.int32)
        inside &= (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
        rows, columns = jnp.clip(rows, 0, side - 1), jnp.clip(columns, 0, side - 1)
        return rows, jnp.where(move.flipped, side - 1 - columns, columns), inside

    return jax.vmap(of_clip)(move)


def gathered(bank: jax.Array, chosen: jax.Array, where: tuple[jax.Array, ...]) -> jax.Array:
    """The pixels that come to each place of some images; outside the image, those at its edge.

    Args:
        bank: `(M, S, S, C)`, all images.
        chosen: `(B, ...)` int32, the rows of each clip's images.
        where: From `sources`.

    Returns:
        `(B, ..., S, S, C)` of the type of `bank`.
    """
    rows, columns, _ = (_beside(a, chosen.ndim - 1) for a in where)
    side = bank.shape[1]
    # One number for each pixel: XLA gathers by one index faster than by three.
    flat = (chosen[..., None, None] * side + rows) * side + columns
    return bank.reshape(-1, bank.shape[-1])[flat]


def moved_images(
    bank: jax.Array,
    chosen: jax.Array,
    where: tuple[jax.Array, ...],
    colours: Colours = IMAGENET,
) -> jax.Array:
    """Images as they are moved, normalised.

    Args:
        bank: `(M, S, S, 3)` uint8 RGB.
        chosen: `(B, ...)` int32, the rows of each clip's images.
        where: From `sources`.
        colours: As for `normalise`.

    Returns:
        `(B, ..., S, S, 3)` float32. What no pixel comes to is 0, the mean colour.
    """
    inside = _beside(where[2], chosen.ndim - 1)
    return jnp.where(inside[..., None], normalise(gathered(bank, chosen, where), colours), 0.0)


def moved_fields(
    bank: jax.Array,
    chosen: jax.Array,
    where: tuple[jax.Array, ...],
    move: Move,
    components: tuple[int, int],
) -> jax.Array:
    """Vector fields as they are moved: their places, and their vectors with them.

    Where no pixel comes to nothing moves. A mirror changes the sign of u; a rotation turns (u, v).
    Further channels, such as optical strain, are scalars and stay as they are.

    Args:
        bank: `(M, S, S, C)` floats.
        chosen: `(B, ...)` int32, the rows of each clip's fields.
        where: From `sources`.
        move: What `where` was made from.
        components: Channels of u (to the right) and v (downwards); -1: not there.

    Returns:
        `(B, ..., S, S, C)` float32.
    """
    fields = gathered(bank, chosen, where)
    fields = fields.astype(jnp.promote_types(fields.dtype, jnp.float32))
    fields = jnp.where(_beside(where[2], chosen.ndim - 1)[..., None], fields, 0.0)
    shape = (-1, *(1,) * (fields.ndim - 2))
    mirror = jnp.where(move.flipped, -1.0, 1.0).reshape(shape)
    angle = jnp.radians(move.angle).reshape(shape)
    u, v = (fields[..., c] if c >= 0 else None for c in components)
    if u is not None:
        u = mirror * u
    if u is not None and v is not None:
        # Clockwise as the image is seen, with v downwards.
        u, v = (
            jnp.cos(angle) * u - jnp.sin(angle) * v,
            jnp.sin(angle) * u + jnp.cos(angle) * v,
        )
    for component, values in zip(components, (u, v), strict=True):
        if values is not None:
            fields = fields.at[..., component].set(values)
    return fields


def _beside(where: jax.Array, axes: int) -> jax.Array:
    """`(B, S, S)` -> `(B, 1, ..., S, S)`, for clips of several images each."""
    return where.reshape(len(where), *(1,) * axes, *where.shape[1:])


def jittered(keys: jax.Array, first: jax.Array, count: jax.Array) -> jax.Array:
    """One of `count` successive frames from `first`, for each clip, all equally likely.

    Args:
        keys: `(B,)` keys.
        first: `(B,)` int32.
        count: `(B,)` int32, at least 1.

    Returns:
        `(B,)` int32.
    """
    return first + jax.vmap(lambda key, n: jax.random.randint(key, (), 0, n))(keys, count)
