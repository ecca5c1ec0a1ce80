"""Several processes, usually one a host, that run the same program in lockstep.

Each trains its share of a round on its own devices; between compiled calls they exchange small
arrays through JAX's collectives on the CPU (Gloo). Every process makes the same calls of `gather`
and `texts` in the same order. With one process nothing is exchanged.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from htnet_jax.errors import UserError, say

# How long processes wait for each other before they are connected.
CONNECTING_S = 300
# A process that sends nothing for so long is taken for dead, and JAX ends the others.
HEARTBEAT_S = 40
# How long a process that stops waits for the others to hear of it; they may be compiling.
TELLING_S = 60
# How long processes that have ended wait for the others to end: a report may take minutes.
_ENDING_S = 3600


class PeerStopped(UserError):
    """Another process has stopped."""


def connect(config: ConfigDict) -> None:
    """Joins the other processes, if `config.distributed`; before JAX first uses a device.

    Raises:
        UserError: The coordinator cannot be reached, nothing says where it is, or the settings do
            not fit together.
    """
    address, processes, process = (
        config.get(key, default)
        for key, default in (("coordinator", ""), ("processes", 0), ("process", -1))
    )
    if not config.get("distributed", False):
        if address or processes or process != -1:
            raise UserError(
                "config.coordinator, config.processes and config.process are for several "
                "processes; set --config.distributed=True too"
            )
        return
    _check_flags(address, processes, process)
    where = f" at {address}" if address else ""
    say(
        f"joining the other processes{where}, for up to {CONNECTING_S} s (--config.coordinator, "
        "--config.processes)"
    )
    if address:
        _find(address, wait=process > 0)
    # It would catch SIGTERM, which is used here to stop training.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # JAX reads what is None from the cluster's environment (SLURM, Open MPI, cloud TPUs).
        jax.distributed.initialize(
            coordinator_address=address or None,
            num_processes=processes or None,
            process_id=None if process < 0 else process,
            initialization_timeout=CONNECTING_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=_ENDING_S,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes cannot be joined ({_first_line(error)}). Within {CONNECTING_S} s "
            "of each other start as many processes as --config.processes=N says, each with its own "
            "--config.process=0 to N-1 and the same --config.coordinator=HOST:PORT, a free port of "
            "process 0's host that the others can reach. Only where JAX knows the cluster (SLURM, "
            "Open MPI, cloud TPUs) may these be left out."
        ) from error


def _check_flags(address: str, processes: int, process: int) -> None:
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"config.coordinator={address!r} must be HOST:PORT, a free port of process 0's host"
        )
    if processes < 0:
        raise UserError(f"config.processes={processes} must be the number of processes")
    if process < -1 or (processes and process >= processes):
        most = f"{processes - 1}" if processes else "config.processes - 1"
        raise UserError(
            f"config.process={process} must be 0 to {most} (-1: as the cluster's environment says)"
        )


def _find(address: str, *, wait: bool) -> None:
    """Looks up the coordinator and waits for its answer: JAX would abort instead of raising."""
    host, _, port = address.rpartition(":")
    place = (host.strip("[]"), int(port))
    try:
        socket.getaddrinfo(*place)
    except OSError as error:
        raise UserError(
            f"config.coordinator={address}: there is no such host ({error.strerror or error}); "
            "give the name or address of the host of process 0"
        ) from error
    end = time.monotonic() + CONNECTING_S
    while wait:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process 0 does not answer at --config.coordinator={address} within "
                    f"{CONNECTING_S} s ({error.strerror or error}); start it too, and give all "
                    "processes the name of its host and a port that the others can reach"
                ) from error
        time.sleep(0.5)


def leads() -> bool:
    """Whether this is process 0, which writes the records, results and report."""
    return jax.process_index() == 0


def tell(message: object) -> None:
    """Tells the user something once, not in every process."""
    if leads():
        say(message)


def check_devices() -> None:
    """Checks that the processes have equally many devices of one kind.

    Raises:
        UserError: They do not; raised in all of them.
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


def gather(tree: Any) -> Any:
    """The arrays of all processes, one after the other.

    Args:
        tree: Arrays on the host or on this process's devices; of one shape and type in all
            processes, with at least one axis.

    Returns:
        The same NumPy tree in every process; first axes are joined in the order of the processes.

    Raises:
        PeerStopped: Another process has stopped.
    """
    leaves, structure = jax.tree.flatten(jax.device_get(tree))
    if jax.process_count() > 1:
        contents = _exchange(b"".join(leaf.tobytes() for leaf in leaves))
        ends = np.cumsum([leaf.nbytes for leaf in leaves])
        pieces = [np.split(np.frombuffer(one, np.uint8), ends[:-1]) for one in contents]
        leaves = [
            np.concatenate([part.view(leaf.dtype).reshape(leaf.shape) for part in of_all])
            for leaf, *of_all in zip(leaves, *pieces, strict=True)
        ]
    return jax.tree.unflatten(structure, leaves)


def texts(text: str) -> list[str]:
    """The text that each process gives, in their order; raises as `gather`."""
    if jax.process_count() == 1:
        return [text]
    return [content.decode() for content in _exchange(text.encode())]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """An error or an interruption inside stops the other processes too, with a `PeerStopped`."""
    try:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            # For example from one of Orbax's barriers.
            if jax.process_count() == 1 or "coordination" not in str(error).lower():
                raise
            raise _line.lost(error) from error
    except BaseException as error:
        if jax.process_count() > 1 and not _all_know(error):
            # JAX's farewell would wait for the others: end before it, once the error is printed.
            number = getattr(error, "signal", signal.SIGINT)
            status = 128 + number if isinstance(error, KeyboardInterrupt) else 2
            atexit.register(_end, status)
        raise


def _all_know(error: BaseException) -> bool:
    """Whether all processes know that all stop; those that do not are told, if that is possible."""
    if isinstance(error, PeerStopped) or not _line.is_free:
        return _line.is_free
    try:
        _line.send(np.array([1, 0], np.int64), TELLING_S)
    except (PeerStopped, TimeoutError):
        return False
    return True


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exchange(content: bytes) -> list[bytes]:
    """What each process gives; none is told before whether one has stopped."""
    heads = _line.send(np.array([0, len(content)], np.int64))
    stopped = np.flatnonzero(heads[:, 0])
    if len(stopped):
        raise PeerStopped(
            f"process {', '.join(map(str, stopped))} has stopped; see its message. What was "
            "finished is kept; give the same commands again to resume."
        )
    # Rounded up, so that few sizes are compiled for.
    longest = int(heads[:, 1].max())
    unit = 1 << max(6, longest.bit_length() - 3)
    size = -(-max(1, longest) // unit) * unit
    rows = _line.send(np.frombuffer(content.ljust(size, b"\0"), np.uint8))
    return [row[:length].tobytes() for row, length in zip(rows, heads[:, 1], strict=True)]


class _Line:
    """The collective that joins the processes: over one CPU device of each.

    Attributes:
        is_free: Whether all processes are there, and no exchange was interrupted.
    """

    def __init__(self) -> None:
        self.is_free = True
        self._all_gather: Callable[[np.ndarray], np.ndarray] | None = None

    def send(self, row: np.ndarray, timeout: float | None = None) -> np.ndarray:
        """`(n,)`, as many in every process -> `(processes, n)`."""
        sending = concurrent.futures.Future[np.ndarray]()

        def run() -> None:
            try:
                if self._all_gather is None:
                    self._all_gather = _connected()
                sending.set_result(self._all_gather(row))
            except Exception as error:  # raised again below
                sending.set_exception(error)

        self.is_free = False
        # In a thread, because Ctrl-C cannot interrupt JAX's waiting.
        threading.Thread(target=run, daemon=True).start()
        try:
            rows = sending.result(timeout)
        # JAX raises the latter where it runs a collective at once.
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            raise self.lost(error) from error
        self.is_free = True
        return rows

    def lost(self, error: Exception) -> PeerStopped:
        """Nothing can be exchanged any more; what to raise."""
        self.is_free = False
        return PeerStopped(
            "another process has ended without a word, or not come for half an hour "
            f"({_first_line(error)}). What was finished is kept; give the same commands again to "
            "resume."
        )


_line = _Line()


def _connected() -> Callable[[np.ndarray], np.ndarray]:
    """A function `(n,) -> (processes, n)`, when all processes have come."""
    try:
        own = {device.process_index: device for device in reversed(jax.devices("cpu"))}
    except RuntimeError as error:
        raise UserError(
            "several processes talk to each other through JAX's CPU backend: add cpu to "
            f"JAX_PLATFORMS, as in cuda,cpu ({_first_line(error)})"
        ) from error
    mesh = jax.sharding.Mesh(np.array([own[i] for i in range(len(own))]), ("processes",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("processes"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    joined = jax.jit(lambda rows: rows, out_shardings=whole)

    def all_gather(row: np.ndarray) -> np.ndarray:
        part = jax.device_put(row.view(np.uint8)[None], own[jax.process_index()])
        shape = (len(own), *part.shape[1:])
        rows = joined(jax.make_array_from_single_device_arrays(shape, split, [part]))
        return np.asarray(rows.addressable_data(0)).view(row.dtype)

    # Gloo prints on standard output when it connects.
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        all_gather(np.zeros(1))
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
    return all_gather


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
