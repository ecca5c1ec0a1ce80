"""The state of a round of training in progress, on disk: a run may be killed at any moment."""

from __future__ import annotations

import concurrent.futures
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.training import manifest, storage

# The newest, and the one before it in case the newest is damaged.
KEPT = 2


class Snapshot(NamedTuple):
    """Where a round stood.

    Attributes:
        epoch: Epochs done.
        arrays: Name -> array, as given to `save`.
    """

    epoch: int
    arrays: dict[str, np.ndarray]


class Snapshots:
    """Snapshots of one round, in a folder of their own: `epoch-N/`, written in the background.

    A snapshot appears complete or not at all, with the SHA-256 of each of its files and with what
    it belongs to; at most `KEPT` (and the one being written) exist.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """`identity`: JSON-safe; what a snapshot must belong to in order to be gone on from."""
        self._folder, self._identity = folder, identity
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None

    def save(self, epoch: int, arrays: dict[str, Any]) -> None:
        """Copies the arrays to the host now and writes them in the background.

        Args:
            epoch: Epochs done.
            arrays: Name -> array, on a device or the host; may be overwritten after this call.

        Raises:
            UserError: The previous snapshot could not be written.
        """
        self.wait()
        # A copy even on a CPU, where an array may share the memory that the next call reuses.
        copies = {name: np.array(jax.device_get(a), copy=True) for name, a in arrays.items()}
        self._writing = self._pool.submit(self._write, epoch, copies)

    def wait(self) -> None:
        """Waits for the snapshot being written.

        Raises:
            UserError: It could not be written; earlier ones are untouched.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def latest(self) -> Snapshot | None:
        """The newest snapshot that is sound; damaged ones are named on standard error.

        Raises:
            UserError: A snapshot belongs to other data, settings or versions; names what differs.
        """
        for epoch, folder in reversed(self._found()):
            try:
                facts = manifest.check(folder, "arrays")
                self._check_identity(folder, facts.get("identity", {}))
                return Snapshot(epoch, storage.restore_state(folder / "arrays"))
            except UserError:
                raise
            except Exception as error:  # Orbax and tensorstore raise many types
                text = f"{folder}: damaged ({_one_line(error)}); going on from an older one"
                print(text, file=sys.stderr, flush=True)
        return None

    def clear(self) -> None:
        """Deletes all snapshots, when the round is finished; waits for the one being written."""
        self.wait()
        self._pool.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _found(self) -> list[tuple[int, Path]]:
        """(epoch, folder), the oldest first."""
        if not self._folder.is_dir():
            return []
        matches = [re.fullmatch(r"epoch-(\d+)", path.name) for path in self._folder.iterdir()]
        return sorted((int(m[1]), self._folder / m[0]) for m in matches if m)

    def _check_identity(self, folder: Path, found: dict[str, Any]) -> None:
        names = sorted({*found, *self._identity})
        changed = [
            f"  {name}: {found.get(name)} there, {self._identity.get(name)} now"
            for name in names
            if found.get(name) != self._identity.get(name)
        ]
        if changed:
            raise UserError(
                f"{folder}: this unfinished training cannot be gone on with, because the result "
                "would differ:\n" + "\n".join(changed) + "\nGo back to what it was started with, "
                f"or delete {self._folder} to train these folds from the beginning."
            )

    def _write(self, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        temporary, final = self._folder / ".writing", self._folder / f"epoch-{epoch}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            storage.save_state(temporary / "arrays", arrays)
            manifest.write(temporary, "arrays", identity=self._identity)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            raise UserError(
                f"{final}: the state of training cannot be written ({_one_line(error)}). Free some "
                "space, then give the same command again: everything written before is kept."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        found = self._found()
        # Later epochs than this one are of an attempt that could not be gone on with.
        rejected = [old for number, old in found if number > epoch]
        earlier = [old for number, old in found if number <= epoch]
        for old in [*rejected, *earlier[:-KEPT]]:
            shutil.rmtree(old, ignore_errors=True)


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else text[:300] + "..."
