"""From a config and a data set to what the network is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from htnet_jax.config import names_in
from htnet_jax.datasets import loading
from htnet_jax.datasets.frames import FrameArrays
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.features.augmentation import Geometry
from htnet_jax.features.feeds import COUNT, EXACT, FIRST, FLOWS, FRAMES, PIXELS, Feed


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
            channels=names_in(dataset.channels),
            scaling=dataset.scaling,
        )
    wanted = config.augmentation
    if set(names) & {*FRAMES}:
        found |= _frame_arrays(arrays, names, config)
    return Feed(names, found, Geometry(wanted.flip, wanted.rotation, wanted.shift))


def check_names(config: ConfigDict, model: Any = None) -> tuple[str, ...]:
    """The names in `config.inputs`.

    Args:
        config: The settings of a run.
        model: The network or baseline; None: it is not asked how many inputs it takes.

    Raises:
        UserError: Names that are unknown or repeated, none at all, or not as many as the network
            takes; variation of inputs that are no frames or not there.
    """
    names = names_in(config.inputs)
    known = (*FLOWS, *FRAMES)
    usual = getattr(model, "inputs", ())
    hint = f"; {config.model.name} usually takes --config.inputs={','.join(usual)}" if usual else ""
    unknown = [name for name in names if name not in known]
    if unknown or not names or len({*names}) != len(names):
        raise UserError(
            f"config.inputs={config.inputs!r}: name the network's inputs in their order, each "
            f"once, comma-separated; there are {', '.join(known)}{hint}"
        )
    wanted = model.input_shapes(1) if hasattr(model, "input_shapes") else names
    if len(wanted) != len(names):
        raise UserError(
            f"config.inputs={config.inputs!r} names {len(names)}, but {config.model.name} takes "
            f"{len(wanted)} of them{hint or '; name as many'}"
        )
    used = [key for key, value in config.augmentation.items() if value]
    if not {*names} <= {*FRAMES}:
        refused, why = used, "only face frames can be varied"
    else:
        # Their names begin with the frame that is drawn.
        others = {"onset", "apex"} - {*names}
        refused = [key for key in used if key.split("_")[0] in others]
        why = "that frame is no input"
    if refused:
        keys = ", ".join(f"config.augmentation.{key}={config.augmentation[key]}" for key in refused)
        raise UserError(
            f"{keys}: {why} (config.inputs={config.inputs!r}); set to 0, or change the inputs{hint}"
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
    stored, size = frames.pixels.shape[1], config.dataset.frame_size
    if size > stored:
        raise UserError(
            f"config.dataset.frame_size={size}, but {arrays.name} stores frames of {stored} px; "
            f"set it to {stored} or less (0: as they are stored)"
        )
    if size:
        frames = frames.resized(size)
    if config.augmentation.shift >= frames.pixels.shape[1]:
        raise UserError(
            f"config.augmentation.shift={config.augmentation.shift} moves frames of "
            f"{frames.pixels.shape[1]} px out of sight; lower it"
        )
    # Pixels are counted in 32 bits when frames are moved.
    if frames.pixels.size // 3 >= 2**31:
        raise UserError(
            f"{arrays.name}: {len(frames.pixels)} frames of {frames.pixels.shape[1]} px are too "
            "many; set a smaller --config.dataset.frame_size, or use fewer sources"
        )
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
    for key, share in ((f"{name}_early", early), (f"{name}_late", late)):
        if share > frames.share:
            raise UserError(
                f"config.augmentation.{key}={share} of the way, but {dataset} holds frames as far "
                f"as {frames.share}; lower it, or choose a config.dataset.config with more "
                "neighbours"
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
