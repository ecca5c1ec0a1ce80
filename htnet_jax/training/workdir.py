"""The folder of a run: new, unfinished or finished, and the records in it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from htnet_jax import foreign
from htnet_jax.config import PRIVATE_FILE
from htnet_jax.errors import UserError
from htnet_jax.evaluation import predictions
from htnet_jax.io import check_text, write_atomically
from htnet_jax.training import memory, settings
from htnet_jax.training.plan import Plan

_PACKAGES = (
    *("htnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "scipy", "scikit-learn"),
)
# Of the records of one model, roughly.
_UNIT_BYTES = 1000
# Those of them that shape a network's arithmetic.
_COMPUTING = ("htnet_jax", "jax", "jaxlib", "flax", "optax")


def create(workdir: Path) -> None:
    """Creates the folder, and finds out now, not after hours of training, if it can be written.

    Raises:
        UserError: It cannot.
    """
    check_text(workdir, "workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be created ({error.strerror}); choose another --workdir"
        ) from error
    probe = workdir / ".writable"
    write_atomically(probe, lambda file: file.write(b""))
    probe.unlink()


def unfinished(workdir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Checks that the folder is new, or holds an unfinished run of the same settings.

    Args:
        workdir: The folder.
        config: The settings, JSON-safe.

    Returns:
        The environment record of the run to resume; empty for a new run.

    Raises:
        UserError: The folder holds another or a finished run.
    """
    refuse_finished(workdir)
    if not (workdir / "config.json").exists():
        return {}
    old, record = _read(workdir)
    changed = settings.differences(old, config)
    if changed:
        raise UserError(
            f"workdir {workdir} holds an unfinished run with other settings:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nChoose another --workdir, or repeat the settings of that run to resume it."
        )
    return record


def refuse_finished(workdir: Path) -> None:
    """Raises a UserError if the folder holds a finished run."""
    if (workdir / predictions.FILE_NAME).exists():
        raise UserError(
            f"workdir {workdir} already holds a finished run; choose another --workdir, or "
            f"print its table again with: python -m htnet_jax.evaluate {workdir}"
        )


def _read(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the environment record of a run."""
    config, record = (
        foreign.read_json(
            workdir / name,
            "record of a run",
            f"workdir {workdir} holds a run that cannot be read; choose another --workdir.",
            check,
        )
        for name, check in (
            ("config.json", lambda content: content.keys()),
            ("environment.json", _check_record),
        )
    )
    return config, record


def _check_record(record: Any) -> None:
    """Raises anything if what resuming reads from an environment record is of another type."""
    if not isinstance(record, dict):
        raise TypeError("not a JSON object")
    for name, kind in (
        ("packages", dict),
        ("files", dict),
        ("hyperparameters", dict),
        ("regrouped", list),
    ):
        if not isinstance(record.get(name, kind()), kind):
            raise TypeError(f"{name}={record[name]!r}")
    changes = record.get("regrouped", [])
    sizes = {
        key: record[key] for key in ("folds_per_device", "inner_folds_per_device") if key in record
    }
    for change in changes:
        str(change["of"])
        sizes["devices_at_once"] = change["devices_at_once"]
    for name, size in sizes.items():
        if type(size) is not int or not 0 <= size < 2**31:
            raise TypeError(f"{name}={size!r}")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks the folder against other processes.

    Raises:
        UserError: Another process trains there.
    """
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"workdir {workdir}: another process is training there; wait for it, or choose "
                "another --workdir"
            ) from error
        yield
    finally:
        os.close(descriptor)


def check_memory(plan: Plan) -> None:
    """Checks that the main memory holds the list of all models, and in the end all results.

    Raises:
        UserError: It does not; with the figures.
    """
    # Two masks over the clips for each model; the results while they are joined.
    need = plan.unit_count * (2 * len(plan.clips) + _UNIT_BYTES) + 2 * plan.result_bytes
    free = memory.main_memory_bytes()
    if need > free:
        raise UserError(
            f"{len(plan.folds)} folds x {len(plan.seeds)} seeds x {1 + plan.inner_folds} models of "
            f"{len(plan.epochs)} epochs need about {need / 1e9:,.1f} GB of memory for their "
            f"results, but {free / 1e9:,.1f} GB are free; set fewer --config.epochs, "
            "--config.seeds or --config.inner_folds"
        )


def check_space(workdir: Path, plan: Plan, checkpoints: int, each: int, snapshots: int) -> None:
    """Checks that a run fits on the disk of its folder, beside what is there of it.

    Args:
        workdir: The folder.
        plan: The run.
        checkpoints: How many are kept.
        each: Bytes of one.
        snapshots: Bytes of all that exist at one time.

    Raises:
        UserError: It does not; with the figures.
    """
    # The results of the models, and once more together.
    parts = {
        f"{checkpoints} checkpoints": checkpoints * each,
        "snapshots": snapshots,
        "predictions": 2 * plan.result_bytes,
    }
    there = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    free = shutil.disk_usage(workdir).free
    if sum(parts.values()) - there > free:
        words = ", ".join(f"{name} {size / 1e9:,.1f} GB" for name, size in parts.items())
        raise UserError(
            f"workdir {workdir}: the run needs {sum(parts.values()) / 1e9:,.1f} GB ({words}), but "
            f"only {free / 1e9:,.1f} GB are free; set --config.checkpoints=none or to a few folds, "
            "--config.checkpoint_every=0, fewer --config.epochs or --config.seeds"
        )


def environment(dataset: str, fingerprint: str, groups: dict[str, int]) -> dict[str, Any]:
    """A record of versions, devices and data; it may be published.

    Args:
        dataset: Full name of the data set.
        fingerprint: Its SHA-256.
        groups: Group sizes, which a resumed run must keep: name -> folds per device.
    """
    now = datetime.datetime.now(datetime.UTC)
    return {
        "started": now.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "dataset": dataset,
        "data_fingerprint": fingerprint,
        **groups,
    }


def check_versions(workdir: Path, record: dict[str, Any]) -> None:
    """Checks that a run to resume was started with the versions installed now.

    Args:
        workdir: Its folder.
        record: Its environment record; empty for a new run.

    Raises:
        UserError: A version that shapes the arithmetic differs; names all.
    """
    before = record.get("packages", {})
    changed = [
        f"  {name}: {before[name]} there, {_version(name)} now"
        for name in _COMPUTING
        if name in before and before[name] != _version(name)
    ]
    if changed:
        raise UserError(
            f"workdir {workdir} holds an unfinished run of other versions, and folds trained with "
            "these would not be the same:\n" + "\n".join(changed) + "\nInstall the recorded "
            "versions, or choose another --workdir."
        )


def check_files(workdir: Path, record: dict[str, Any], files: dict[str, str]) -> None:
    """Checks that a run to resume is given files of the same content.

    Args:
        workdir: Its folder.
        record: Its environment record; empty for a new run.
        files: Setting that names a file -> SHA-256 of what was read from it.

    Raises:
        UserError: A content differs; names the settings.
    """
    before = record.get("files", {}) if record else files
    changed = sorted(
        name for name in {*before, *files} if before.get(name, "") != files.get(name, "")
    )
    if changed:
        raise UserError(
            f"workdir {workdir} holds an unfinished run that was started with another file, or "
            f"none, for {', '.join(f'config.{name}' for name in changed)}; give the file that it "
            "was started with, or choose another --workdir"
        )


def identity(settings: str, fingerprint: str) -> dict[str, Any]:
    """What the state of a round belongs to: with anything else the result would differ.

    Args:
        settings: SHA-256 of the settings.
        fingerprint: SHA-256 of the data.
    """
    # For a single device XLA compiles a program of its own, which rounds otherwise.
    count = "one" if jax.local_device_count() == 1 else "several"
    return {
        "settings": settings,
        "data": fingerprint,
        "devices": f"{count} of kind {jax.devices()[0].device_kind}",
        **{name: _version(name) for name in _COMPUTING},
    }


def run_digest(settings: str, fingerprint: str) -> str:
    """What tells a run from others, for its checkpoints; arguments as of `identity`."""
    return hashlib.sha256(f"{settings} {fingerprint}".encode()).hexdigest()


def write_private(workdir: Path, private: dict[str, str]) -> None:
    """Keeps what tells of this machine, and is not to be published: `WORKDIR/private.json`.

    Args:
        workdir: The run's folder.
        private: From `config.split_private`.
    """
    note = "Paths and names of the machine that trained this run; not for publication."
    content = {"note": note, "command": sys.argv, "config": private}
    write_json(workdir / PRIVATE_FILE, content)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
