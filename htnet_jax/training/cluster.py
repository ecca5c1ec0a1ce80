"""Several processes that share the folds of one run, usually on several hosts.

Folds are independent, so the processes never exchange numbers: each trains its share of the groups
and leaves the results in the run's folder, which all of them must see. JAX's coordination service
lets them find each other, and ends the others when one of them dies.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from htnet_jax.errors import UserError
from htnet_jax.evaluation.files import write_atomically
from htnet_jax.training.stopping import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.5

# How long processes wait for each other before they are connected.
CONNECTING_S = 300

# How long they wait until process 0 has prepared the run; it may have to build the data set first.
_PREPARING_S = 24 * 3600

# A network file system may show a new file this much later on other hosts (NFS: acdirmax, 60 s).
_APPEARING_S = 90


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process among all.

    Attributes:
        index: 0 to `count` - 1; process 0 writes the records and the report.
        count: Number of processes.
    """

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0


def connect(config: ConfigDict) -> None:
    """Joins the other processes, if `config.distributed`; before JAX first uses a device.

    Raises:
        UserError: The coordinator cannot be reached, nothing says where it is, or the settings do
            not fit together.
    """
    address, count, index = (
        config.get(key, default)
        for key, default in (("coordinator", ""), ("processes", 0), ("process", -1))
    )
    if not config.get("distributed", False):
        if address or count or index != -1:
            raise UserError(
                "config.coordinator, config.processes and config.process are for several "
                "processes; set --config.distributed=True too"
            )
        return
    _check_flags(address, count, index)
    # The processes exchange no numbers; Gloo would wait for all of them, and print.
    jax.config.update("jax_cpu_collectives_implementation", None)
    # It would catch SIGTERM, and a process that waits could not be ended.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # What is None, JAX finds out from the cluster's environment (SLURM, Open MPI, cloud TPUs).
        jax.distributed.initialize(
            coordinator_address=address or None,
            num_processes=count or None,
            process_id=None if index < 0 else index,
            initialization_timeout=CONNECTING_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the other processes cannot be joined ({reason}). Within {CONNECTING_S} s of each "
            "other start as many processes as --config.processes=N says, each with its own "
            "--config.process=0 to N-1 and the same --config.coordinator=HOST:PORT, a free port of "
            "process 0's host that the others can reach. Only where JAX knows the cluster (SLURM, "
            "Open MPI, cloud TPUs) may these be left out."
        ) from error


def _check_flags(address: str, count: int, index: int) -> None:
    port = address.rpartition(":")[2]
    if address and not (":" in address and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"config.coordinator={address!r} must be HOST:PORT, a free port of process 0's host"
        )
    if count < 0:
        raise UserError(f"config.processes={count} must be the number of processes")
    if index < -1 or (count and index >= count):
        most = f"{count - 1}" if count else "config.processes - 1"
        raise UserError(
            f"config.process={index} must be 0 to {most} (-1: as the cluster's environment says)"
        )


def here() -> Cluster:
    """This process among all that are connected.

    Raises:
        UserError: The processes do not have as many devices each, of one kind: they would deal out
            the folds otherwise, and the results would depend on who trains a fold.
    """
    owned: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for device in jax.devices():
        owned[device.process_index][device.device_kind] += 1
    if any(devices != owned[0] for devices in owned.values()):
        lines = [
            f"  process {index}: " + ", ".join(f"{n} x {kind}" for kind, n in devices.items())
            for index, devices in sorted(owned.items())
        ]
        raise UserError(
            "the processes must have the same devices:\n"
            + "\n".join(lines)
            + "\nStart them on equal hosts, on CPUs with the same --config.cpu_devices."
        )
    return Cluster(jax.process_index(), jax.process_count())


def meet() -> None:
    """Waits until all processes have come here; once in a run.

    Process 0 comes when the run is prepared, so that nobody takes what an earlier run left for the
    present one.

    Raises:
        UserError: Somebody did not come.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    barrier = multihost.get_barrier_sync_fn()
    over = threading.Event()
    failures: list[Exception] = []

    def arrive() -> None:
        try:
            barrier(key="htnet_jax run is prepared", timeout_ms=_PREPARING_S * 1000)
        except Exception as error:  # the service's many errors, which are private types of JAX
            failures.append(error)
        finally:
            over.set()

    # In a thread, because Ctrl-C cannot interrupt JAX's waiting.
    threading.Thread(target=arrive, daemon=True).start()
    over.wait()
    if failures:
        reason = str(failures[0]).strip().splitlines()[0]
        raise UserError(
            f"another process has stopped before training began; see its message ({reason})"
        ) from failures[0]


def wait(until: Callable[[], bool], stop: StopRequest | None = None) -> None:
    """Looks again and again until `until()` is true.

    Raises:
        Stopped: `stop` is requested meanwhile.
        UserError: Another process has stopped, if `stop` looks for that.
    """
    # Not a barrier of JAX's: those give up after half a minute on a CPU.
    while not until():
        if stop:
            stop.raise_if_requested()
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def wait_for_file(path: Path) -> bool:
    """Whether a file that process 0 has written is seen here, given time to appear."""
    end = time.monotonic() + _APPEARING_S
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


class Word:
    """What a process that stops early leaves in the run's folder, so that the others stop too."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        """`folder`: that of the unfinished results."""
        self._folder, self._cluster = folder, cluster

    def forget(self) -> None:
        """Removes what processes of an earlier attempt have left."""
        for path in self._folder.glob("stopped-*.txt"):
            path.unlink()

    def of_others(self) -> str:
        """Why another process has stopped; empty: none has."""
        if self._cluster.count == 1:
            return ""
        for index in range(self._cluster.count):
            path = self._path(index)
            if index != self._cluster.index and path.is_file():
                return (
                    f"process {index} has stopped ({path.read_text().strip()}). What was finished "
                    "is kept; give the same commands again to go on."
                )
        return ""

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Leaves word when the block ends with an error or an interruption."""
        try:
            yield
        except BaseException as error:
            if self._cluster.count > 1 and self._folder.is_dir():
                self._leave(str(error) or "interrupted")
            raise

    def _leave(self, reason: str) -> None:
        try:
            content = reason.encode()
            write_atomically(self._path(self._cluster.index), lambda file: file.write(content))
        except UserError as error:
            # The disk may be full; JAX's service will end the others then.
            print(f"the other processes cannot be told: {error}", file=sys.stderr, flush=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"stopped-{index}.txt"
