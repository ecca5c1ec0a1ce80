"""The features: what a network can be fed, by name, as arrays that stay on the device.

A network declares the names of its `inputs`, in the order of its arguments, and of what it sees in
training only (`privileged`). A new feature is one loading function here and one line in `FEATURES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from htnet_jax.config import names_in
from htnet_jax.errors import UserError
from htnet_jax.features import augment
from htnet_jax.features.augment import Geometry
from htnet_jax.learn import losses

if TYPE_CHECKING:
    from htnet_jax.datasets.frames import FrameArrays
    from htnet_jax.datasets.loading import ClipArrays


class Values(NamedTuple):
    """A feature of all N clips of a data set.

    Attributes:
        bank: Key of `values` on the device; features may share a bank.
        values: `(M, ...)`: images `(M, S, S, 3)` uint8 RGB, fields `(M, S, S, C)` or tables.
        rows: `(N, ...)` int32: the rows of each clip in the bank; None: row n is clip n.
        first: `(N, ...)` int32: rows to draw from in training instead begin here; None: `rows`.
        count: `(N, ...)` int32: how many there are.
        components: Of a field: the channels of u and v, -1 where there is none.
        centred: Of a table: in training its mean over the rows that occur in a fold's training
            clips is taken off.
        files: Setting that names a file the values come from -> SHA-256 of its content.
    """

    bank: str
    values: np.ndarray
    rows: np.ndarray | None = None
    first: np.ndarray | None = None
    count: np.ndarray | None = None
    components: tuple[int, int] = (-1, -1)
    centred: bool = False
    files: Mapping[str, str] = {}


class Feature(NamedTuple):
    """An entry of `FEATURES`.

    Attributes:
        kind: "image" (turned and mirrored, normalised by `colours`), "field" (turned and mirrored,
            and its vectors with it), "table" (stays as it is, however the clip is moved) or "fixed"
            (shows the face, but cannot be moved: refused beside it).
        load: The values of all clips; None, of privileged ones only: the data set has none.
        stream: Which of a clip's random streams draws its jitter: 0 or 1.
        settings: Keys of `config.augmentation` that draw other frames for it.
        colours: Mean and standard deviation that images are normalised by.
        is_privileged: Whether it is there in training only, as what coders know of a clip.
    """

    kind: str
    load: Callable[[ClipArrays, ConfigDict], Values | None]
    stream: int = 0
    settings: tuple[str, ...] = ()
    colours: augment.Colours = augment.IMAGENET
    is_privileged: bool = False


def _flow(arrays: ClipArrays, config: ConfigDict, layout: str, bank: str) -> Values:
    from htnet_jax.datasets import loading  # here, because it imports TensorFlow Datasets

    channels = names_in(config.dataset.channels)
    values = loading.network_inputs(
        arrays, layout=layout, channels=channels, scaling=config.dataset.scaling
    )
    components = tuple(channels.index(name) if name in channels else -1 for name in ("u", "v"))
    return Values(bank, values, components=components)


def _mosaic(arrays: ClipArrays, config: ConfigDict) -> Values:
    """The four regions of the flow in one image; not a field, because its regions touch."""
    return _flow(arrays, config, config.dataset.layout, "mosaic")


def _whole_flow(arrays: ClipArrays, config: ConfigDict) -> Values:
    moved = [key for key in ("flip", "rotation", "shift") if config.augmentation[key]]
    if moved and config.dataset.scaling != "none":
        raise UserError(
            f"config.augmentation.{moved[0]}={config.augmentation[moved[0]]} moves the flow, but "
            f"config.dataset.scaling={config.dataset.scaling!r} has made its vectors shades; set "
            "--config.dataset.scaling=none, or the augmentation to 0"
        )
    values = _flow(arrays, config, "none", "flow")
    if config.augmentation.rotation and min(values.components) < 0 < max(values.components) + 1:
        raise UserError(
            f"config.augmentation.rotation={config.augmentation.rotation} turns u into v, but "
            f"config.dataset.channels={config.dataset.channels!r} has only one of them; name both, "
            "or set the rotation to 0"
        )
    return values


def _frames(arrays: ClipArrays, config: ConfigDict) -> FrameArrays:
    """The bank of face frames at the size that a config asks for."""
    frames = arrays.frames
    if frames is None:
        raise UserError(
            f"the network's inputs name face frames, but {arrays.name} has no face frames; choose "
            "a config.dataset.config with frames, such as frames_224 (clips: clips_56) of the data "
            "set synthetic or tvl1_28+frames-neighbours (clips: tvl1_28+frames-16+clip-112) of one "
            "made from raw clips"
        )
    stored, size = frames.pixels.shape[1], config.dataset.frame_size
    if size > stored:
        raise UserError(
            f"config.dataset.frame_size={size}, but {arrays.name} stores frames of {stored} px; "
            f"set it to {stored} or less (0: as they are stored)"
        )
    if size:
        frames = frames.resized(size)
    # Pixels are counted in 32 bits when images are moved.
    if frames.pixels.size // 3 >= 2**31:
        raise UserError(
            f"{arrays.name}: {len(frames.pixels)} frames of {frames.pixels.shape[1]} px are too "
            "many; set a smaller --config.dataset.frame_size, or use fewer sources"
        )
    return frames


def _frame(name: str) -> Callable[[ClipArrays, ConfigDict], Values]:
    """The face frame at the onset or at the apex, and those that jitter may take instead."""

    def load(arrays: ClipArrays, config: ConfigDict) -> Values:
        frames = _frames(arrays, config)
        rows = getattr(frames, name)
        exact = Values("frames", frames.pixels, rows[:, 1].astype(np.int32))
        jitter = config.augmentation
        early, late = (jitter.get(f"{name}_{when}", 0.0) for when in ("early", "late"))
        if not (early or late):
            return exact
        for key, share in ((f"{name}_early", early), (f"{name}_late", late)):
            if share > frames.share:
                raise UserError(
                    f"config.augmentation.{key}={share} of the way, but {arrays.name} holds "
                    f"frames as far as {frames.share}; lower it, or choose a "
                    "config.dataset.config with more neighbours"
                )
        first, end = _drawn(frames, rows, name, early, late)
        return exact._replace(first=first, count=end - first)

    return load


def _drawn(
    frames: FrameArrays, rows: np.ndarray, name: str, early: float, late: float
) -> tuple[np.ndarray, np.ndarray]:
    """`(first, end)` of the rows to draw from: frames as far away as the jitter allows."""
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


def _rgb_clip(arrays: ClipArrays, config: ConfigDict) -> Values:
    """Frames evenly from onset to offset."""
    frames = _frames(arrays, config)
    return Values("frames", frames.pixels, frames.rows_evenly(config.dataset.clip_frames))


def _flow_clip(arrays: ClipArrays, config: ConfigDict) -> Values:
    """The flow from the onset to each of the frames of `rgb_clip`."""
    frames = _frames(arrays, config)
    if frames.flow is None:
        raise UserError(
            f"the network's inputs name the flow to each frame of a clip, but {arrays.name} stores "
            "none; choose a config.dataset.config with clips, such as clips_56 of the data set "
            "synthetic or tvl1_28+frames-16+clip-112 of one made from raw clips"
        )
    rows = frames.rows_evenly(config.dataset.clip_frames)
    # In float32: in float16 the factor itself would be rounded.
    gain = np.float32(config.dataset.flow_gain)
    flow = np.empty_like(frames.flow)
    np.multiply(frames.flow, gain, out=flow, casting="same_kind")
    return Values("frame_flow", flow, rows, components=(0, 1))


def _text(arrays: ClipArrays, config: ConfigDict) -> Values | None:
    """An embedding of each clip's action units; the row of a clip without known ones is -1."""
    from htnet_jax.features import text  # here, because it imports the data sets

    table = text.text_table(arrays, config)
    if not table.sets:
        return None
    digest = text.model_digest(config)
    files = {"text.model": digest} if digest else {}
    return Values("text", table.embeddings, table.rows, centred=config.text.centred, files=files)


def _au_set(arrays: ClipArrays, config: ConfigDict) -> Values | None:
    """The number of each clip's set of action units; -1: they are not known."""
    from htnet_jax.features import text

    sets, rows = text.sets_of(arrays)
    return Values("au_set", rows) if sets else None


FEATURES: dict[str, Feature] = {
    "mosaic": Feature("fixed", _mosaic),
    "flow": Feature("field", _whole_flow),
    "onset": Feature("image", _frame("onset"), 0, ("onset_late",)),
    "apex": Feature("image", _frame("apex"), 1, ("apex_early", "apex_late")),
    "rgb_clip": Feature("image", _rgb_clip, colours=augment.KINETICS),
    "flow_clip": Feature("field", _flow_clip),
    "text": Feature("table", _text, is_privileged=True),
    "au_set": Feature("table", _au_set, is_privileged=True),
}
_GEOMETRY = ("flip", "rotation", "shift")
# Kinds that are moved with a clip.
_MOVED = ("image", "field")


@dataclasses.dataclass(frozen=True)
class Feed:
    """The features of all clips of a data set, as one network is fed them.

    Attributes:
        names: Of the inputs, in the order of the network's arguments.
        arrays: What stays on the device, by key: the banks, and int32 rows of them: `NAME/exact`,
            and `NAME/first` and `NAME/count` of the rows to draw from in training.
        geometry: How images and fields are moved in training.
        privileged: Names of what the network sees in training only.
        features: Name -> its kind and stream; those not in it are tables.
        banks: Name -> key of its bank; those not in it have a bank of their own name.
        components: Name of a field -> its channels of u and v.
        centred: Names of tables whose mean is taken off, see `fitted`.
        absent: Privileged features that the data set does not have; they are not fed.
        files: Setting that names a file which features come from -> SHA-256 of its content.
    """

    names: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    privileged: tuple[str, ...] = ()
    features: Mapping[str, Feature] = dataclasses.field(default_factory=lambda: FEATURES)
    banks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    components: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    centred: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_array(cls, inputs: np.ndarray) -> Feed:
        """The feed of a network with one input, `(N, ...)`, fed as float32."""
        return cls(("inputs",), {"inputs": np.asarray(inputs, np.float32)})

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each input of one clip."""
        return tuple(self.shape_of(name) for name in self.names)

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
            `(B, ...)` for each input; images and fields are float32.
        """
        return tuple(
            self._finished(name, arrays[self._bank(name)][self._rows(name, arrays, rows)])
            for name in self.names
        )

    def fitted(
        self, arrays: dict[str, jax.Array], rows: jax.Array, valid: jax.Array
    ) -> dict[str, jax.Array]:
        """The arrays, with the means of centred tables over a fold's training clips.

        A row that several clips have counts once: the mean is over what is told apart.

        Args:
            arrays: `self.arrays` on the device.
            rows: `(L,)` int32, the training clips.
            valid: `(L,)` bool: False for padding.
        """
        centres = {}
        for name in self.centred:
            bank, used = arrays[self._bank(name)], self._rows(name, arrays, rows)
            occurs = jnp.zeros(len(bank), bank.dtype).at[used].max(valid & (used >= 0))
            centres[f"{name}/centre"] = occurs @ bank / jnp.maximum(occurs.sum(), 1)
        return arrays | centres

    def varied(
        self, arrays: dict[str, jax.Array], rows: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        """The inputs of clips as they are trained on: jittered in time and moved.

        Args:
            arrays: `self.arrays` on the device, or what `fitted` made of them.
            rows: `(B,)` int32, the clips.
            key: Of the epoch; each clip gets a key of its own from it.

        Returns:
            The inputs, as `exact`, and the privileged features by name.
        """
        everything = (*self.names, *self.privileged)
        jittered = [name for name in everything if f"{name}/count" in arrays]
        moved = [name for name in everything if self.geometry and self._kind(name) in _MOVED]
        keys = move = None
        if jittered or moved:
            keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), 3))(rows)
        if moved:
            move = augment.draw_moves(keys[:, 2], self.geometry)
        largest = max((self.shape_of(name)[-2] for name in moved), default=0)
        where = {
            side: augment.sources(move, side, side / largest)
            for side in sorted({self.shape_of(name)[-2] for name in moved})
        }
        found = {}
        for name in everything:
            bank = arrays[self._bank(name)]
            chosen = self._rows(name, arrays, rows)
            if name in jittered:
                first, count = arrays[f"{name}/first"][rows], arrays[f"{name}/count"][rows]
                chosen = augment.jittered(keys[:, self.features[name].stream], first, count)
            if name not in moved:
                found[name] = self._finished(name, bank[chosen])
                if (centre := arrays.get(f"{name}/centre")) is not None:
                    found[name] = found[name] - centre[None]
                continue
            places = where[bank.shape[1]]
            if self._kind(name) == "image":
                found[name] = augment.moved_images(
                    bank, chosen, places, self.features[name].colours
                )
            else:
                parts = self.components.get(name, (-1, -1))
                found[name] = augment.moved_fields(bank, chosen, places, move, parts)
        privileged = {name: found[name] for name in self.privileged}
        return tuple(found[name] for name in self.names), privileged

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a feature of one clip."""
        rows = self.arrays.get(f"{name}/exact")
        each = () if rows is None else rows.shape[1:]
        return (*each, *self.arrays[self._bank(name)].shape[1:])

    def _kind(self, name: str) -> str:
        return self.features[name].kind if name in self.features else "table"

    def _bank(self, name: str) -> str:
        return self.banks.get(name, name)

    def _rows(self, name: str, arrays: Mapping[str, jax.Array], rows: jax.Array) -> jax.Array:
        exact = arrays.get(f"{name}/exact")
        return rows if exact is None else exact[rows]

    def _finished(self, name: str, values: jax.Array) -> jax.Array:
        if self._kind(name) == "image":
            return augment.normalise(values, self.features[name].colours)
        # Flow may be stored in halves.
        return values.astype(jnp.float32) if values.dtype == jnp.float16 else values


def make_feed(arrays: ClipArrays, config: ConfigDict, model: Any = None) -> Feed:
    """The feed that a config asks for.

    Args:
        arrays: The clips.
        config: The settings of a run; those read are `inputs`, `augmentation`, `dataset`, `text`,
            `losses`.
        model: The network or baseline, whose own `inputs` are used where the config names none.

    Raises:
        UserError: As `check_names`; a data set without what is named, or with too few neighbours
            for the jitter; clips that the layout cannot be applied to.
    """
    names = check_names(config, model)
    privileged = privileged_names(config, model)
    found: dict[str, np.ndarray] = {}
    banks, components, centred, absent, files = {}, {}, [], [], {}
    for name in (*names, *privileged):
        values = FEATURES[name].load(arrays, config)
        if values is None:
            absent.append(name)
            continue
        if values.centred:
            centred.append(name)
        files |= values.files
        banks[name], components[name] = values.bank, values.components
        found[values.bank] = values.values
        for key, rows in (("exact", values.rows), ("first", values.first), ("count", values.count)):
            if rows is not None:
                found[f"{name}/{key}"] = rows
    wanted = config.augmentation
    feed = Feed(
        names,
        found,
        Geometry(wanted.flip, wanted.rotation, wanted.shift),
        tuple(name for name in privileged if name not in absent),
        banks=banks,
        components=components,
        centred=tuple(centred),
        absent=tuple(absent),
        files=files,
    )
    sides = [feed.shape_of(name)[-2] for name in names if FEATURES[name].kind in _MOVED]
    if sides and wanted.shift >= max(sides):
        raise UserError(
            f"config.augmentation.shift={wanted.shift} moves images of {max(sides)} px out of "
            "sight; lower it"
        )
    return feed


def privileged_names(config: ConfigDict, model: Any = None) -> tuple[str, ...]:
    """What is fed in training only: what the model declares, and what the losses in use read.

    What losses read is left out where none of them is in use.

    Args:
        config: The settings of a run.
        model: The network or baseline.
    """
    reading = losses.declared(config.losses, "reads", model)
    own = [name for name in getattr(model, "privileged", ()) if reading.get(name, True)]
    return tuple(dict.fromkeys([*own, *(name for name, used in reading.items() if used)]))


def check_names(config: ConfigDict, model: Any = None) -> tuple[str, ...]:
    """The names in `config.inputs`, or those that the model declares where it is empty.

    Args:
        config: The settings of a run.
        model: The network or baseline; None: only the config is looked at.

    Raises:
        UserError: Names that are unknown or repeated, none at all, or not as many as the model
            declares; variation of what cannot be varied or is no input.
    """
    declared = tuple(getattr(model, "inputs", ()))
    names = tuple(names_in(config.inputs)) or declared
    seen = [name for name, feature in FEATURES.items() if not feature.is_privileged]
    hint = f"; {config.model.name} usually takes --config.inputs={','.join(declared)}"
    hint = hint if declared else ""
    unknown = [name for name in names if name not in seen]
    if unknown or not names or len({*names}) != len(names):
        raise UserError(
            f"config.inputs={config.inputs!r}: name the network's inputs in their order, each "
            f"once, comma-separated; there are {', '.join(seen)}{hint}"
        )
    if declared and len(declared) != len(names):
        raise UserError(
            f"config.inputs={config.inputs!r} names {len(names)}, but {config.model.name} takes "
            f"{len(declared)} of them{hint}"
        )
    privileged = privileged_names(config, model)
    if lost := [name for name in privileged if name not in FEATURES]:
        raise UserError(
            f"{config.model.name} sees {', '.join(lost)} in training, which is no feature; there "
            f"are {', '.join(FEATURES)}"
        )
    _check_variation(config, (*names, *privileged), hint)
    return names


def _check_variation(config: ConfigDict, names: Sequence[str], hint: str) -> None:
    used = [key for key, value in config.augmentation.items() if value]
    fixed = [name for name in names if FEATURES[name].kind == "fixed"]
    settings = {key for name in names for key in FEATURES[name].settings}
    if fixed:
        # Moved frames beside a mosaic that stays would be another face.
        refused, why = used, f"{fixed[0]} cannot be varied"
    else:
        refused = [key for key in used if key not in _GEOMETRY and key not in settings]
        why = "that frame is no input"
    if refused:
        keys = ", ".join(f"config.augmentation.{key}={config.augmentation[key]}" for key in refused)
        raise UserError(
            f"{keys}: {why} (config.inputs={','.join(names)!r}); set to 0, or change the inputs"
            f"{hint}"
        )
