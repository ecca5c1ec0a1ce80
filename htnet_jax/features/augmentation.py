"""Variations of face frames for training, on the device: jitter in time, flip, rotation, shift.

Written in JAX, so that they are part of the compiled step. Every clip draws from a key of its own,
which the trainer makes from the seed, the fold, the epoch and the clip: the draws do not depend on
the batch that a clip is in.
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


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How the frames of a clip are moved, all of them alike.

    Attributes:
        flip: Probability of a mirrored face.
        rotation: Most degrees that a face is turned, either way.
        shift: Most pixels that it is moved, on each axis.
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
        angle: `(B,)` float32, degrees, clockwise as the picture is seen.
        down: `(B,)` int32 pixels.
        right: `(B,)` int32 pixels.
    """

    flipped: jax.Array
    angle: jax.Array
    down: jax.Array
    right: jax.Array


def normalise(pixels: jax.Array) -> jax.Array:
    """RGB 0..255, `(..., 3)` -> float32 of mean 0 and variance 1 over ImageNet."""
    shape = (1,) * (pixels.ndim - 1) + (3,)
    mean, std = (jnp.array(values).reshape(shape) for values in (IMAGENET_MEAN, IMAGENET_STD))
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


def sources(move: Move, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each pixel of the moved frames comes from: flip, then rotation, then shift.

    Rotation is about the picture's centre and takes the nearest pixel, as torchvision's by default.

    Args:
        move: Of B clips.
        side: Of the frames, in pixels.

    Returns:
        `(rows, columns, inside)`, each `(B, side, side)`: int32 coordinates, clipped to the
        frame, and whether they were inside it.
    """
    centre = (side - 1) / 2
    row, column = jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij")

    def of_clip(move: Move) -> tuple[jax.Array, jax.Array, jax.Array]:
        # What lies outside after the turn is not brought back by the shift.
        down, right = row - move.down, column - move.right
        inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
        y, x = down - centre, right - centre
        cosine, sine = jnp.cos(jnp.radians(move.angle)), jnp.sin(jnp.radians(move.angle))
        rows = jnp.floor(cosine * y - sine * x + centre + 0.5).astype(jnp.int32)
        columns = jnp.floor(cosine * x + sine * y + centre + 0.5).astype(jnp.int32)
        inside &= (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
        rows, columns = jnp.clip(rows, 0, side - 1), jnp.clip(columns, 0, side - 1)
        return rows, jnp.where(move.flipped, side - 1 - columns, columns), inside

    return jax.vmap(of_clip)(move)


def moved(pixels: jax.Array, frames: jax.Array, where: tuple[jax.Array, ...]) -> jax.Array:
    """Frames as they are moved, normalised.

    Args:
        pixels: `(M, S, S, 3)` uint8, all frames.
        frames: `(B,)` int32, the row of each clip's frame.
        where: From `sources`.

    Returns:
        `(B, S, S, 3)` float32. What no pixel comes to is 0, ImageNet's mean colour.
    """
    rows, columns, inside = where
    side = pixels.shape[1]
    # One number for each pixel: XLA gathers by one index faster than by three.
    flat = (frames[:, None, None] * side + rows) * side + columns
    chosen = normalise(pixels.reshape(-1, 3)[flat])
    return jnp.where(inside[..., None], chosen, 0.0)


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
