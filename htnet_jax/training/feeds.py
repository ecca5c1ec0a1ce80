"""What a network is fed: the inputs that a config names, from arrays that stay on the device.

Inputs are the arguments of the network, in their order: `mosaic` and `flow` are arrays of the data
set; `onset` and `apex` are face frames, which are varied anew in every epoch of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from htnet_jax.datasets import loading
from htnet_jax.datasets.frames import FrameArrays
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.training import augmentation, settings
from htnet_jax.training.augmentation import Geometry

FLOWS = ("mosaic", "flow")
FRAMES = ("onset", "apex")

# Keys of the arrays that frames are fed from.
_PIXELS, _EXACT, _FIRST, _COUNT = "frames", "exact", "first", "count"


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
            augmentation.normalise(arrays[_PIXELS][arrays[f"{name}/{_EXACT}"][rows]])
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
        jitter = [name for name in frames if f"{name}/{_COUNT}" in arrays]
        if not (jitter or (frames and self.geometry)):
            return self.exact(arrays, rows)
        keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), 3))(rows)
        numbers = {
            name: augmentation.jittered(
                keys[:, FRAMES.index(name)],
                arrays[f"{name}/{_FIRST}"][rows],
                arrays[f"{name}/{_COUNT}"][rows],
            )
            if name in jitter
            else arrays[f"{name}/{_EXACT}"][rows]
            for name in frames
        }
        pixels = arrays[_PIXELS]
        if not self.geometry:
            found = {name: augmentation.normalise(pixels[numbers[name]]) for name in frames}
        else:
            move = augmentation.draw_moves(keys[:, 2], self.geometry)
            where = augmentation.sources(move, pixels.shape[1])
            found = {name: augmentation.moved(pixels, numbers[name], where) for name in frames}
        return tuple(found[name] if name in found else arrays[name][rows] for name in self.names)

    def _source(self, name: str) -> str:
        return _PIXELS if name in FRAMES else name


def make_feed(arrays: ClipArrays, config: ConfigDict) -> Feed:
    """The feed that a config asks for.

    Args:
        arrays: The clips.
        config: The settings of a run; those read are `inputs`, `augmentation`, `dataset`.

    Raises:
        UserError: Unknown inputs, augmentation without frames, a data set without frames or with
            too few neighbours for the jitter, or clips that the layout cannot be applied to.
    """
    names = check_names(config)
    dataset = config.dataset
    found: dict[str, np.ndarray] = {}
    for name in set(names) & {*FLOWS}:
        found[name] = loading.network_inputs(
            arrays,
            layout=dataset.layout if name == "mosaic" else "none",
            channels=settings.names(dataset.channels),
            scaling=dataset.scaling,
        )
    wanted = config.augmentation
    if set(names) & {*FRAMES}:
        found |= _frame_arrays(arrays, names, config)
    return Feed(names, found, Geometry(wanted.flip, wanted.rotation, wanted.shift))


def check_names(config: ConfigDict) -> tuple[str, ...]:
    """The names in `config.inputs`.

    Raises:
        UserError: Names that are unknown or repeated, none at all, or augmentation of inputs that
            are no frames.
    """
    names = settings.names(config.inputs)
    known = (*FLOWS, *FRAMES)
    unknown = [name for name in names if name not in known]
    if unknown or not names or len({*names}) != len(names):
        raise UserError(
            f"config.inputs={config.inputs!r}: name the network's inputs in their order, each "
            f"once, comma-separated; there are {', '.join(known)}"
        )
    used = [key for key, value in config.augmentation.items() if value]
    if used and not {*names} <= {*FRAMES}:
        raise UserError(
            f"config.augmentation.{used[0]}={config.augmentation[used[0]]}: only face frames can "
            f"be varied, but config.inputs={config.inputs!r}; set it to 0"
        )
    return tuple(names)


def _frame_arrays(
    arrays: ClipArrays, names: Sequence[str], config: ConfigDict
) -> dict[str, np.ndarray]:
    frames = arrays.frames
    if frames is None:
        raise UserError(
            f"config.inputs={config.inputs!r}, but {arrays.name} has no face frames; choose a "
            "config.dataset.config with frames, such as frames_224 of the data set synthetic or "
            "tvl1_28+frames-neighbours of one made from raw clips"
        )
    if config.dataset.frame_size:
        frames = frames.resized(config.dataset.frame_size)
    found: dict[str, Any] = {_PIXELS: frames.pixels}
    jitter = config.augmentation
    early = {"onset": 0.0, "apex": jitter.apex_early}
    late = {"onset": jitter.onset_late, "apex": jitter.apex_late}
    for name in set(names) & {*FRAMES}:
        rows = getattr(frames, name)
        found[f"{name}/{_EXACT}"] = rows[:, 1].astype(np.int32)
        if early[name] or late[name]:
            first, end = _drawn(frames, rows, name, early[name], late[name], arrays.name)
            found |= {f"{name}/{_FIRST}": first, f"{name}/{_COUNT}": end - first}
    return found


def _drawn(
    frames: FrameArrays, rows: np.ndarray, name: str, early: float, late: float, dataset: str
) -> tuple[np.ndarray, np.ndarray]:
    """`(first, end)` of the rows to draw from: frames as far away as the jitter allows."""
    if max(early, late) > frames.share:
        raise UserError(
            f"config.augmentation: a jitter of {max(early, late)} of the way, but {dataset} holds "
            f"frames as far as {frames.share}; lower it, or choose a config.dataset.config with "
            "more neighbours"
        )
    onset, apex, offset = frames.span.T
    rise, fall = apex - onset, offset - apex
    before = reach(rise, early)
    after = reach(rise if name == "onset" else fall, late)
    first, end = rows[:, 1].copy(), rows[:, 1] + 1
    for clip, (lowest, exact, stop) in enumerate(rows):
        away = frames.numbers[lowest:stop] - frames.numbers[exact]
        near = np.flatnonzero((away >= -before[clip]) & (away <= after[clip]))
        first[clip], end[clip] = lowest + near[0], lowest + near[-1] + 1
    return first.astype(np.int32), end.astype(np.int32)


def reach(distances: np.ndarray, share: float) -> np.ndarray:
    """Whole frames in a share of some distances; `(N,)` integers, at least 0."""
    # The release's int(.15 * distance / 4), whose share is .15 / 4: that changes no digit.
    return np.maximum(np.trunc(share * distances), 0).astype(np.int64)
