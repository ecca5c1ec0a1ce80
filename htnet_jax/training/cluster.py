"""Several processes that share the folds of one run, usually on several hosts.

Folds are independent, so the processes never exchange numbers: each trains its share of the groups
and leaves the results in the run's folder, which all of them must see. JAX's coordination service
lets them find each other, and ends the others when one of them dies.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import platform
import queue
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically
from htnet_jax.training.stopping import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.5

# How long processes wait for each other before they are connected.
CONNECTING_S = 300

# How long they wait until process 0 has prepared the run; it may have to build the data set first.
_PREPARING_S = 24 * 3600

# A network file system may show a new file this much later on other hosts (NFS: acdirmax, 60 s).
_APPEARING_S = 90

# How long processes that have ended wait for the others to end: a snapshot may take minutes.
_ENDING_S = 3600

_SESSION = "session.txt"


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


ALONE = Cluster()


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
    _say(
        f"joining the other processes{f' at {address}' if address else ''}, for up to "
        f"{CONNECTING_S} s (--config.coordinator, --config.processes)"
    )
    if address:
        _resolve(address)
    if address and index > 0:
        _find(address)
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
            # Or a process that still writes its last snapshot would be ended with the first.
            shutdown_timeout_seconds=_ENDING_S,
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


def _resolve(address: str) -> None:
    """Looks the coordinator's host up; JAX would wait for a host that there is not, then abort."""
    host, _, port = address.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise UserError(
            f"config.coordinator={address}: there is no such host ({error.strerror or error}); "
            "give the name or address of the host of process 0"
        ) from error


def _find(address: str) -> None:
    """Waits until process 0 answers; JAX would kill this process instead of raising an error."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + CONNECTING_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process 0 does not answer at --config.coordinator={address} within "
                    f"{CONNECTING_S} s ({error.strerror or error}); start it too, and give all "
                    "processes the name of its host and a port that the others can reach"
                ) from error
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _check_flags(address: str, count: int, index: int) -> None:
    port = address.rpartition(":")[2]
    if address and not (address.rpartition(":")[0] and port.isdigit() and 0 < int(port) < 65536):
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


class Others:
    """The other processes of a run: all begin together, and when one stops early, all do.

    Word of a process that stops is left in the run's folder, under a name that process 0 makes up
    each time the processes begin: what an earlier attempt, or another run, has left says nothing.
    """

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        """`folder`: that of the unfinished results, which process 0 makes."""
        self._folder, self._cluster = folder, cluster
        self._before = self._read()
        self._session = ""
        self._have_met = False

    def meet(self) -> None:
        """Waits until all processes have come here; process 0 comes when the run is prepared.

        Raises:
            UserError: Process 0 has stopped before it came, or has another folder.
        """
        if self._cluster.count == 1:
            return
        self._begin(is_prepared=True)
        if not self._session:
            raise UserError(
                f"process {self._cluster.index} on {platform.node()} does not see what process 0 "
                f"has prepared in {self._folder.parent}. Either process 0 has stopped (see its "
                "message), or this is not the same folder: give all processes one --workdir, in a "
                "folder that all hosts share."
            )
        if not self._cluster.leads:
            write_atomically(self._joined(self._cluster.index), lambda file: file.write(b""))
            return
        helpers = range(1, self._cluster.count)
        # A helper that sees another folder says so itself when this time is over.
        end = time.monotonic() + 1.5 * _APPEARING_S
        while missing := [
            index
            for index in helpers
            if not (self._joined(index).is_file() or self._word(index).is_file())
        ]:
            if time.monotonic() > end:
                raise UserError(
                    f"{self._folder.parent}: not all processes see this folder (missing: process "
                    f"{', '.join(map(str, missing))}); give all one --workdir, in a folder that "
                    "all hosts share"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS / 5)

    def stopped(self) -> str:
        """Why another process has stopped; empty: none has."""
        if not self._session:
            return ""
        for index in range(self._cluster.count):
            path = self._word(index)
            if index != self._cluster.index and path.is_file():
                return (
                    f"process {index} has stopped ({path.read_text().strip()}). What was finished "
                    "is kept; give the same commands again to go on."
                )
        return ""

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Tells the others when the block ends with an error or an interruption."""
        try:
            yield
        except BaseException as error:
            if self._cluster.count > 1:
                self._tell(str(error) or "interrupted")
            raise

    def _tell(self, reason: str) -> None:
        try:
            if not self._have_met:
                _say(f"process {self._cluster.index} stops ({reason}), when the others know")
                self._begin(is_prepared=False)
            if self._session:
                content = reason.encode()
                write_atomically(self._word(self._cluster.index), lambda file: file.write(content))
        except UserError as error:
            # Such as a full disk; JAX's service will end the others then.
            _say(f"the other processes cannot be told: {error}")

    def _begin(self, *, is_prepared: bool) -> None:
        """Agrees on the name of this session; there is none if process 0 has not prepared it."""
        self._have_met = True
        # Everybody comes to both, whatever has happened: JAX's service would not let a process go
        # while another is still waiting for it.
        _come_to("htnet_jax: all know of an earlier session")
        if self._cluster.leads and is_prepared:
            self._session = uuid.uuid4().hex
            content = self._session.encode()
            write_atomically(self._folder / _SESSION, lambda file: file.write(content))
        _come_to("htnet_jax: all may know of this session")
        if not self._cluster.leads:
            # If this process stops anyhow, process 0 most likely does too, for the same reason.
            end = time.monotonic() + (_APPEARING_S if is_prepared else _APPEARING_S / 10)
            while self._read() == self._before and time.monotonic() < end:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            self._session = self._read() if self._read() != self._before else ""

    def _read(self) -> str:
        path = self._folder / _SESSION
        return path.read_text() if path.is_file() else ""

    def _joined(self, index: int) -> Path:
        return self._folder / f"joined-{self._session}-{index}.txt"

    def _word(self, index: int) -> Path:
        return self._folder / f"stopped-{self._session}-{index}.txt"


def _come_to(barrier: str) -> None:
    """Waits until all have come to a barrier of JAX's coordination service.

    Raises:
        UserError: They have not.
    """
    from orbax.checkpoint import multihost

    come_to = multihost.get_barrier_sync_fn()
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def come() -> None:
        try:
            come_to(key=barrier, timeout_ms=_PREPARING_S * 1000)
        except RuntimeError as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # In a thread, because Ctrl-C cannot interrupt JAX's waiting.
    threading.Thread(target=come, daemon=True).start()
    error = outcome.get()
    if error:
        raise UserError(f"the other processes cannot be reached ({error})") from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
