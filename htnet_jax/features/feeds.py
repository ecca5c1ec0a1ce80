"""What a network is fed: several inputs, from arrays that stay on the device.

Inputs are the arguments of the network, in their order: `mosaic` and `flow` are arrays of the data
set; `onset` and `apex` are face frames, which are varied anew in every epoch of training.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from htnet_jax.features import augmentation
from htnet_jax.features.augmentation import Geometry

# Names of inputs: arrays of the data set, and face frames.
FLOWS = ("mosaic", "flow")
FRAMES = ("onset", "apex")

# Keys of the arrays that frames are fed from.
PIXELS, EXACT, FIRST, COUNT = "frames", "exact", "first", "count"


@dataclasses.dataclass(frozen=True)
class Feed:
    """The inputs of all clips of a data set.

    Attributes:
        names: Of the inputs, in the order of the network's arguments.
        arrays: What stays on the device: by name `(N, ...)` float32 arrays; for frames `frames`
            `(M, S, S, 3)` uint8, and for `onset` and `apex` int32 rows of it, `(N,)` each:
            `NAME/exact`, and `NAME/first` and `NAME/count` of the frames to draw from.
        geometry: How frames are moved in training.
    """

    names: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    geometry: Geometry = dataclasses.field(default_factory=Geometry)

    @classmethod
    def of_array(cls, inputs: np.ndarray) -> Feed:
        """The feed of a network with one input, `(N, ...)`, fed as float32."""
        return cls(("inputs",), {"inputs": np.asarray(inputs, np.float32)})

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each input of one clip."""
        return tuple(self.arrays[self._source(name)].shape[1:] for name in self.names)

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip's inputs, as float32."""
        return sum(4 * int(np.prod(shape)) for shape in self.shapes)

    def exact(self, arrays: dict[str, jax.Array], rows: jax.Array) -> tuple[jax.Array, ...]:
        """The inputs of clips as they are predicted.

        Args:
            arrays: `self.arrays` on the device.
            rows: `(B,)` int32, the clips.

        Returns:
            `(B, ...)` float32 for each input.
        """
        return tuple(
            augmentation.normalise(arrays[PIXELS][arrays[f"{name}/{EXACT}"][rows]])
            if name in FRAMES
            else arrays[name][rows]
            for name in self.names
        )

    def varied(
        self, arrays: dict[str, jax.Array], rows: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The inputs of clips as they are trained on: frames jittered and moved.

        Args:
            arrays: `self.arrays` on the device.
            rows: `(B,)` int32, the clips.
            key: Of the epoch; each clip gets a key of its own from it.

        Returns:
            As `exact`.
        """
        frames = [name for name in self.names if name in FRAMES]
        jitter = [name for name in frames if f"{name}/{COUNT}" in arrays]
        if not (jitter or (frames and self.geometry)):
            return self.exact(arrays, rows)
        keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), 3))(rows)
        numbers = {
            name: augmentation.jittered(
                keys[:, FRAMES.index(name)],
                arrays[f"{name}/{FIRST}"][rows],
                arrays[f"{name}/{COUNT}"][rows],
            )
            if name in jitter
            else arrays[f"{name}/{EXACT}"][rows]
            for name in frames
        }
        pixels = arrays[PIXELS]
        if not self.geometry:
            found = {name: augmentation.normalise(pixels[numbers[name]]) for name in frames}
        else:
            move = augmentation.draw_moves(keys[:, 2], self.geometry)
            where = augmentation.sources(move, pixels.shape[1])
            found = {name: augmentation.moved(pixels, numbers[name], where) for name in frames}
        return tuple(found[name] if name in found else arrays[name][rows] for name in self.names)

    def _source(self, name: str) -> str:
        return PIXELS if name in FRAMES else name
