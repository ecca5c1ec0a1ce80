"""State on disk: the final variables of folds, and snapshots of the round in training.

Both are arrays that Orbax has written, beside a `manifest.json` with the SHA-256 of each of their
files: a flipped bit would otherwise be read as a number.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import linen as nn
from flax import traverse_util
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from htnet_jax import foreign, models
from htnet_jax.config import read_private, split_private
from htnet_jax.errors import UserError
from htnet_jax.foreign import reading
from htnet_jax.io import check_text, write_atomically
from htnet_jax.training import hosts

# Snapshots of a round: the newest, and the one before it in case the newest is damaged.
KEPT = 2


class LoadedModel(NamedTuple):
    """What `htnet_jax.load` returns.

    Attributes:
        module: The Flax module.
        variables: `{"params": ...}`, float32 arrays; also the network's other collections, such as
            `batch_stats`.
        config: The settings of the run. `config.checkpoint`, which checkpoints of older versions
            lack, says what the checkpoint is: `name` of its folder, `fold`, `run` (a digest of
            settings and data), `dataset`, `fingerprint`, `labels` (the label set) and
            `class_names` in the order of the logits.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: ConfigDict


def attributes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a `config.model` gives, without the model's name."""
    # A config that was stored as JSON has lists for its tuples; modules must be hashable.
    attributes = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    attributes.pop("name", None)
    return attributes


def build_module(config: Mapping[str, Any]) -> nn.Module:
    """The network that a `config.model` names.

    Args:
        config: `name` and the module's attributes.

    Raises:
        UserError: Unknown name or attribute, or sizes that do not fit together.
    """
    name = config.get("name")
    if not isinstance(name, str) or name not in models.MODELS:
        raise UserError(f"config.model.name={name!r} is unknown; use {', '.join(models.MODELS)}")
    try:
        if "parent" in config:
            raise ValueError("parent is Flax's own, not an attribute of the network")
        module = models.MODELS[name](**attributes_of(config))
        module.check_sizes()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"config.model: {error}") from error
    return module


def fold_folder(workdir: Path, fold: str) -> Path:
    """`WORKDIR/checkpoints/FOLD`, with a name that cannot leave that folder.

    Raises:
        UserError: The name is empty.
    """
    if not fold:
        raise UserError("a fold without a name cannot be saved; name the subject in the data")
    name = urllib.parse.quote(fold, safe=" ")
    if name.strip(". ") == "":
        name = name.replace(".", "%2E").replace(" ", "%20")
    return workdir / "checkpoints" / name


def save_fold(folder: Path, variables: Any, config: Mapping[str, Any]) -> None:
    """Writes one fold's checkpoint; it appears complete or not at all. Any process may do so alone.

    Args:
        folder: Where; an older checkpoint there is replaced.
        variables: `{"params": ...}` and other collections, nested dicts of NumPy arrays.
        config: The run's settings, JSON-safe; under `checkpoint` what the checkpoint is. Paths of
            this machine are left out, and the folder's name is added.

    Raises:
        UserError: The folder cannot be written.
    """
    check_text(folder, "checkpoint folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            about = {**config.get("checkpoint", {}), "name": folder.name}
            content = {**split_private(config)[0], "checkpoint": about}
            text = json.dumps(content, indent=2) + "\n"
            write_atomically(temporary / "config.json", lambda file: file.write(text.encode()))
            with _checkpointer() as checkpointer:
                checkpointer.save((temporary / "variables").absolute(), variables)
            # Orbax writes down where on this machine it wrote.
            (temporary / "variables" / "commit_success.txt").write_text("")
            _write_manifest(temporary, "variables")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({error}). Free some space or choose a "
            "folder you can write to, then start again: finished folds are kept."
        ) from error


def load_fold(path: str | os.PathLike[str]) -> LoadedModel:
    """Opens a checkpoint written by `save_fold`; see `htnet_jax.load`."""
    folder = foreign.expanded(path)
    check_text(folder, "checkpoint folder")
    with reading(folder, "checkpoint", "Give a fold's folder, RUN/checkpoints/SUBJECT."):
        if folder.is_file():
            raise UserError(f"{folder}: is a file; give a fold's folder, RUN/checkpoints/SUBJECT")
        # Not a question of rights: a config that cannot be read is named as such below.
        there = os.path.lexists(folder / "variables") and os.path.lexists(folder / "config.json")
        if not there:
            raise UserError(f"{folder}: no checkpoint here. {_where_folds_are(folder)}")
    settings = foreign.read_json(
        folder / "config.json",
        "run's config",
        "Copy it again, or make it readable.",
        lambda content: content["model"]["name"] + content["dataset"]["channels"],
    )
    _check_place(folder, settings)
    with reading(folder / "config.json", "run's config", "Restore it from a copy."):
        config = ConfigDict(settings)
        try:
            module = build_module(config.model)
        except UserError as error:
            raise UserError(f"{folder / 'config.json'}: {error}") from error
        shapes = module.input_shapes(len(config.dataset.channels.split(",")))
        samples = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in shapes]
        expected = jax.eval_shape(
            lambda *inputs: module.init(jax.random.key(0), *inputs, train=False), *samples
        )
    try:
        _check_manifest(folder, "variables")
        with _checkpointer() as checkpointer:
            arrays = (folder / "variables").absolute()
            stored = checkpointer.metadata(arrays).item_metadata.tree
            _check_shapes(folder / "variables", stored, expected)
            _check_memory(arrays, expected)
            numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), expected)
            variables = checkpointer.restore(
                arrays, args=ocp.args.PyTreeRestore(restore_args=numpy)
            )
    except UserError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many types for damaged files
        raise UserError(
            f"{folder}: the checkpoint is damaged or incomplete ({_one_line(error)}); restore it "
            "from a copy or train the fold again"
        ) from error
    if _in_run(folder):
        with config.unlocked():
            config.update_from_flattened_dict(read_private(folder.absolute().parents[1]))
    return LoadedModel(module, variables, config)


def _in_run(folder: Path) -> bool:
    return folder.absolute().parent.name == "checkpoints"


def _check_place(folder: Path, settings: dict[str, Any]) -> None:
    """In a run's folder, the checkpoint is that run's and of the fold that its folder says.

    A folder of checkpoints elsewhere may be called anything; older checkpoints do not name theirs.
    """
    about = settings.get("checkpoint", {})
    if not isinstance(about, dict):
        raise UserError(f"{folder / 'config.json'}: damaged (checkpoint={about!r}); copy it again")
    if not _in_run(folder):
        return
    name = about.get("name", folder.absolute().name)
    if name != folder.absolute().name:
        raise UserError(
            f"{folder}: holds the checkpoint of {name}, copied over this one or renamed. Restore "
            "the fold's own, or move this one out of the folder checkpoints to load it as it is."
        )
    record = folder.absolute().parents[1] / "environment.json"
    if "run" in about and os.path.lexists(record):
        run = foreign.read_json(record, "run's record", check=lambda content: content.keys())
        if run.get("run", about["run"]) != about["run"]:
            raise UserError(
                f"{folder}: holds a checkpoint of another run (other settings or other data than "
                f"those of {record.parent}). Restore the fold's own, or move this one out of the "
                "folder checkpoints to load it as it is."
            )


def _check_memory(folder: Path, expected: Any) -> None:
    """Raises a ValueError if reading takes more memory than is allowed, or than files may hold."""
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(expected))
    foreign.check_size(needed, foreign.MAX_ARRAYS)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # Zeros, as of new batch statistics, are stored in next to nothing.
    if needed > max(2**28, 1000 * there):
        raise ValueError(f"{there:,} bytes of files for arrays of {needed:,} bytes")


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer that does not wait for other processes."""
    # Orbax raises the errors that it logs.
    logging.set_verbosity(logging.FATAL)
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=uuid.uuid4().hex
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _check_shapes(folder: Path, stored: Any, expected: Any) -> None:
    have, want = (
        {key: tuple(leaf.shape) for key, leaf in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (stored, expected)
    )
    wrong = [
        f"  {key}: stored {have.get(key, 'nothing')}, expected {want.get(key, 'nothing')}"
        for key in sorted({*have, *want})
        if have.get(key) != want.get(key)
    ]
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} arrays do not fit the network that config.json describes\n"
            + "\n".join(wrong)
            + "\nUse the config.json that was saved with this checkpoint."
        )


def _where_folds_are(folder: Path) -> str:
    if folder.parent.name == "checkpoints" and not folder.exists():
        names = sorted(path.parent.name for path in folder.parent.glob("*/config.json"))
        if names:
            return f"{folder.parent} has {', '.join(names)}."
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted(path.parent for path in inside.glob("*/config.json"))
    if found:
        return f"Give one fold's folder, such as {found[0]}."
    return "Give a fold's folder, RUN/checkpoints/SUBJECT."


class Snapshot(NamedTuple):
    """Where a round stood.

    Attributes:
        epoch: Epochs done.
        state: As given to `Snapshots.save`, in memory of its own.
        results: As given there.
    """

    epoch: int
    state: Any
    results: dict[str, np.ndarray]


class Snapshots:
    """Snapshots of one round, in a folder of their own: `epoch_N/`, written in the background.

    A snapshot appears complete or not at all; at most `KEPT` and the one being written exist. Of
    several processes all make the same calls in the same order: each writes and reads the state on
    its own devices.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """`identity`: JSON-safe; what a snapshot must belong to, or the result would differ."""
        self._folder, self._identity = folder.absolute(), identity

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Orbax raises the errors that it logs.
        logging.set_verbosity(logging.FATAL)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Named, the processes meet at barriers of JAX's service rather than on their devices.
        everyone = set(range(jax.process_count()))
        options = ocp.CheckpointManagerOptions(
            create=False,
            max_to_keep=KEPT,
            step_prefix="epoch",
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=everyone, barrier_sync_key_prefix=self._folder.name
            ),
        )
        return ocp.CheckpointManager(
            self._folder,
            options=options,
            item_handlers=ocp.PyTreeCheckpointHandler(
                multiprocessing_options=options.multiprocessing_options
            ),
        )

    def save(self, epoch: int, state: Any, results: Mapping[str, np.ndarray]) -> None:
        """Takes the arrays to the host now and writes them in the background.

        Args:
            epoch: Epochs done; more than at the last snapshot.
            state: Pytree of arrays `(local devices, ...)` on these devices; may be donated
                after this call.
            results: Name -> array on the host, the same in all processes.

        Raises:
            UserError: The previous snapshot could not be written.
        """
        self.wait()
        leaves = jax.tree.leaves(_everywhere(jax.tree.map(_copied, state)))
        tree = {"state": {f"{i:05}": leaf for i, leaf in enumerate(leaves)}, "results": {**results}}
        self._guarded(lambda: self._manager.save(epoch, args=ocp.args.PyTreeSave(tree)))

    def wait(self) -> None:
        """Waits for the snapshot being written.

        Raises:
            UserError: It could not be written; earlier ones are untouched.
        """
        self._guarded(self._manager.wait_until_finished)

    def latest(self, like: Any) -> Snapshot | None:
        """The newest snapshot that is sound; damaged ones are named on standard error and deleted.

        Args:
            like: Arrays or `jax.ShapeDtypeStruct` with sharding, as the state to restore.

        Returns:
            None also if the state on disk has other shapes, as when its folds were grouped
            differently: it is deleted then.

        Raises:
            UserError: A snapshot belongs to other data, settings or versions; names what differs.
                Or the processes see different snapshots.
        """
        if not hosts.gather(np.array([self._folder.is_dir()]))[0]:
            return None
        self.wait()
        for epoch in self._epochs():
            folder = self._folder / f"epoch_{epoch}"
            # Process 0 looks at all files for all.
            found = json.loads(hosts.texts(json.dumps(self._facts(folder)))[0])
            wrong, snapshot = "", None
            try:
                if "damaged" in found:
                    raise DamagedError(found["damaged"])
                self._check_identity(folder, found["identity"])
                snapshot = self._restored(epoch, like)
            except UserError:
                raise
            except Exception as error:  # Orbax and tensorstore raise many types
                wrong = _one_line(error) or type(error).__name__
            # What one process cannot read, none resumes from.
            wrong = next(filter(None, hosts.texts(wrong)), "")
            if not wrong:
                if snapshot is None:
                    hosts.tell(f"Discarding {self._folder}: its folds were grouped differently.")
                    self.clear()
                return snapshot
            hosts.tell(f"{folder}: damaged ({wrong}); resuming from an older one")
            self._manager.delete(epoch)
        return None

    def _epochs(self) -> list[int]:
        """Those of the snapshots on disk, the newest first; the same in all processes."""
        seen = hosts.texts(json.dumps(sorted(self._manager.all_steps(), reverse=True)))
        if len({*seen}) > 1:
            raise UserError(
                f"{self._folder}: the processes see different snapshots there (of the epochs "
                f"{' and '.join(seen)}). Give all of them one --workdir that all hosts share; if "
                "it is one, give the same commands again in a minute."
            )
        return json.loads(seen[0])

    def clear(self) -> None:
        """Deletes all snapshots, when the round is finished; waits for the one being written."""
        if "_manager" in self.__dict__:
            self.wait()
            self._manager.close()
            del self._manager
        if hosts.leads():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _restored(self, epoch: int, like: Any) -> Snapshot | None:
        leaves, structure = jax.tree.flatten(_everywhere(like))
        stored = self._manager.item_metadata(epoch).tree
        if [tuple(leaf.shape) for leaf in stored["state"].values()] != [a.shape for a in leaves]:
            return None
        restore_args = {
            "state": {
                name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)
                for name, leaf in zip(stored["state"], leaves, strict=True)
            },
            "results": {
                name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored["results"]
            },
        }
        tree = self._manager.restore(epoch, args=ocp.args.PyTreeRestore(restore_args=restore_args))
        state = jax.tree.unflatten(structure, list(tree["state"].values()))
        return Snapshot(epoch, jax.tree.map(_copied, _here(state)), tree["results"])

    def _facts(self, folder: Path) -> dict[str, Any]:
        """What the manifest says besides, or what is damaged; process 0 looks for all."""
        if not hosts.leads():
            return {}
        try:
            return _check_manifest(folder, "default")
        except DamagedError as error:
            return {"damaged": str(error)}

    def _check_identity(self, folder: Path, found: dict[str, Any]) -> None:
        changed = [
            f"  {name}: {found.get(name)} there, {self._identity.get(name)} now"
            for name in sorted({*found, *self._identity})
            if found.get(name) != self._identity.get(name)
        ]
        if changed:
            raise UserError(
                f"{folder}: this unfinished training cannot be resumed, because the result would "
                "differ:\n" + "\n".join(changed) + "\nGo back to what it was started with, or "
                f"delete {self._folder} to train these folds from the beginning."
            )

    def _seal(self) -> None:
        """Writes the manifest, when all arrays are written and before the snapshot appears."""
        if hosts.leads():
            (writing,) = self._folder.glob("epoch_*.orbax-checkpoint-tmp*")
            _write_manifest(writing, "default", identity=self._identity)

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (OSError, ValueError, UserError) as error:  # tensorstore: a full disk, ValueError
            raise UserError(
                f"{self._folder}: the state of training cannot be written ({_one_line(error)}). "
                "Free some space, then give the same command again: everything written before is "
                "kept."
            ) from error


def _copied(array: jax.Array) -> jax.Array:
    """In memory of its own: on a CPU Orbax and JAX share it, and donating would overwrite it."""
    if jax.devices()[0].platform != "cpu":
        return array
    parts = [
        jax.device_put(np.array(shard.data), shard.device, may_alias=False)
        for shard in array.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def _mesh(array: Any) -> jax.sharding.Mesh:
    """The devices of an array, and those in their places in the other processes."""
    own = len(array.sharding.device_set)
    devices = [
        device
        for index in range(jax.process_count())
        for device in [d for d in jax.devices() if d.process_index == index][:own]
    ]
    return jax.sharding.Mesh(np.array(devices), ("devices",))


_SPLIT = jax.sharding.PartitionSpec("devices")


def _everywhere(tree: Any) -> Any:
    """Arrays, or their shapes, (local devices, ...) as those of all processes (devices, ...)."""

    def spread(leaf: Any) -> Any:
        mesh = _mesh(leaf)
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return multihost_utils.host_local_array_to_global_array(leaf, mesh, _SPLIT)
        shape = (leaf.shape[0] * jax.process_count(), *leaf.shape[1:])
        sharding = jax.sharding.NamedSharding(mesh, _SPLIT)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return tree if jax.process_count() == 1 else jax.tree.map(spread, tree)


def _here(tree: Any) -> Any:
    """Arrays of all processes (devices, ...) as those of this one (local devices, ...)."""

    def own(leaf: jax.Array) -> jax.Array:
        return multihost_utils.global_array_to_host_local_array(leaf, leaf.sharding.mesh, _SPLIT)

    return tree if jax.process_count() == 1 else jax.tree.map(own, tree)


class DamagedError(Exception):
    """A checkpoint whose files are not the ones that were written; says which."""


def _write_manifest(folder: Path, arrays: str, **facts: Any) -> None:
    """Writes the SHA-256 of the files in `folder/arrays`, and JSON-safe facts beside them."""
    content = json.dumps({"files": _hashes(folder, arrays), **facts}, indent=2) + "\n"
    write_atomically(folder / "manifest.json", lambda file: file.write(content.encode()))


def _check_manifest(folder: Path, arrays: str) -> dict[str, Any]:
    """Compares the files with the manifest, before anything opens them; returns its facts.

    Raises:
        DamagedError: The manifest cannot be read, or files are changed, missing or new.
    """
    try:
        content = json.loads(foreign.read_bytes(folder / "manifest.json"))
        expected = content.pop("files")
        found = _hashes(folder, arrays)
        wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    except DamagedError:
        raise
    except Exception as error:  # whatever parsing a foreign file raises
        raise DamagedError(f"{type(error).__name__}: {_one_line(error)}") from error
    if wrong:
        raise DamagedError(f"changed or missing: {', '.join(wrong)}")
    return content


def _hashes(folder: Path, arrays: str) -> dict[str, str]:
    found = {}
    for path in sorted((folder / arrays).rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        # Not read at once: a file may hold gigabytes. A pipe, or a link to a folder, is refused.
        with foreign.opened(path, foreign.MAX_ARRAYS) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else text[:300] + "..."
