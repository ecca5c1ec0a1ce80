"""From a config and a data set to what the network is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from htnet_jax.datasets import loading
from htnet_jax.datasets.frames import FrameArrays
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.training import settings
from htnet_jax.training.augmentation import Geometry
from htnet_jax.training.feeds import COUNT, EXACT, FIRST, FLOWS, FRAMES, PIXELS, Feed


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
    found: dict[str, Any] = {PIXELS: frames.pixels}
    jitter = config.augmentation
    early = {"onset": 0.0, "apex": jitter.apex_early}
    late = {"onset": jitter.onset_late, "apex": jitter.apex_late}
    for name in set(names) & {*FRAMES}:
        rows = getattr(frames, name)
        found[f"{name}/{EXACT}"] = rows[:, 1].astype(np.int32)
        if early[name] or late[name]:
            first, end = _drawn(frames, rows, name, early[name], late[name], arrays.name)
            found |= {f"{name}/{FIRST}": first, f"{name}/{COUNT}": end - first}
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
