"""How many folds train side by side on a device: estimate, compiler's figure, halving.

The size of a group is estimated first, then checked against what the compiler says that the program
needs. Where that does not fit, or the memory runs out all the same, the groups become smaller
(`Regrouped`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from htnet_jax.errors import UserError

Item = TypeVar("Item")

# Of the free memory; the rest is for pieces too small to use, and for what the runtime takes.
USABLE = 0.95

# Measured at dim 32 on 2 CPU cores: batched products of 4 folds cost 1.3 times as much per fold.
MAX_FOLDS_PER_CPU_DEVICE = 1

# The first group size is chosen from a guess at what training takes: this times parameters, their
# gradient and the optimizer's state, for activations and the temporary copies of an update.
WORKING_FACTOR = 1.5

# Where the main memory is not known (not Linux).
UNKNOWN_BYTES = 4 << 30

# For each version of Linux's control groups: limit, use, and the part of the use that are files'
# pages, which the kernel gives up when it needs memory.
_CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Regrouped(Exception):
    """Groups of the size in use do not fit into memory; the trainer now has smaller ones.

    Its message says so in one line. Nothing of the round is left: ask `rounds` again, and begin
    with snapshots of no other group size.
    """


class GroupSize:
    """The group size in use, and how it becomes smaller.

    Attributes:
        size: Folds on a device.
        pool: Devices that may be used.
        devices_at_once: Devices to use at most because the memory does not suffice for more; else
            0.
    """

    def __init__(
        self,
        folds: int,
        pool: Sequence[jax.Device],
        state_bytes: int,
        parameter_bytes: int,
        *,
        processes: int = 1,
        size: int = 0,
        devices_at_once: int = 0,
    ) -> None:
        """Chooses the first size.

        Args:
            folds: All there are.
            pool: This process's devices.
            state_bytes: Of one fold's parameters and optimizer.
            parameter_bytes: Of its parameters alone.
            processes: That share the folds.
            size: Use this size, but no more than there are folds; 0: what is estimated to fit,
                balanced over the devices.
            devices_at_once: Use so many devices at most; 0: all.

        Raises:
            UserError: The memory does not suffice for a single fold.
        """
        free, least = available_bytes(pool[:1]), state_bytes + parameter_bytes
        if least > free:
            raise UserError(
                f"a single fold takes at least {least / 1e9:,.1f} GB of memory (parameters, "
                f"gradient, optimizer), but {free / 1e9:,.1f} GB are free. Set a smaller network "
                "(config.model), end other programs, or use a device with more memory."
            )
        self._folds, self._state_bytes, self._processes = folds, state_bytes, processes
        self.pool = list(pool[:devices_at_once] if devices_at_once else pool)
        self.devices_at_once = devices_at_once
        self._is_cpu = self.pool[0].platform == "cpu"
        guess = WORKING_FACTOR * (state_bytes + parameter_bytes)
        fit = int(available_bytes(self.pool) / guess)
        if self._is_cpu:
            fit = min(fit, MAX_FOLDS_PER_CPU_DEVICE)
        # Places beyond the last fold would be trained like folds. The limit does not depend on the
        # devices, because the same size gives the same bits.
        self.size = min(size, folds) or balanced_size(folds, len(self.pool) * processes, fit)

    def check(self, program_bytes: int, copies: int, devices: Sequence[jax.Device]) -> None:
        """Makes the groups smaller if the compiled program does not fit.

        Args:
            program_bytes: What the compiler says that it takes on each device.
            copies: Of the state that the memory must hold besides.
            devices: In use.

        Raises:
            Regrouped: It does not fit.
            UserError: It does not, and nothing can be made smaller.
        """
        needed = program_bytes + copies * self.size * self._state_bytes
        free = available_bytes(devices)
        if needed > USABLE * free:
            fit = min(int(USABLE * free * self.size / needed), self.size - 1)
            self.shrink(fit, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free", devices)

    def shrink(self, fit: int, why: str, devices: Sequence[jax.Device]) -> NoReturn:
        """Fewer folds on each device, at most `fit`; where there is but one, fewer CPU devices.

        Args:
            fit: Less than the size in use.
            why: What does not suffice, for the messages.
            devices: In use.

        Raises:
            Regrouped: Always, unless nothing can be made smaller.
            UserError: Nothing can.
        """
        size, count = self.size, len(devices)
        if self._processes > 1:
            raise UserError(
                f"{why} with folds_per_device={size}. Several processes cannot change that by "
                "themselves: start again in another --workdir with a smaller "
                "--config.folds_per_device, or with fewer devices in each process."
            )
        if self._is_cpu:
            # They share one memory: smaller groups on more devices would need as much.
            self.pool = list(devices)
        if size > 1:
            self.size = balanced_size(self._folds, len(self.pool), fit)
            raise Regrouped(f"{why} with {size} folds a device: continuing with {self.size}")
        if self._is_cpu and count > 1:
            self.devices_at_once = count // 2
            self.pool = list(devices[: self.devices_at_once])
            raise Regrouped(
                f"{why} with {count} devices at once: continuing with {self.devices_at_once} "
                "(each trains one fold)"
            )
        raise UserError(
            f"{why} with a single fold: its parameters and optimizer alone take "
            f"{self._state_bytes / 1e9:.2f} GB, and {available_bytes(devices) / 1e9:.2f} "
            "GB are free. Set a smaller --config.batch_size or a smaller network (config.model), "
            "end other programs, or use a device with more memory."
        )


def available_bytes(devices: Sequence[jax.Device]) -> int:
    """Free memory for each of some devices that work at the same time.

    Args:
        devices: All of one kind. CPU devices share the main memory equally; of other kinds the one
            with the least counts.
    """
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
    return main_memory_bytes() // len(devices)


def main_memory_bytes(root: Path = Path("/")) -> int:
    """Free main memory, at most what the process's container has left; not on Linux: 4 GiB.

    Args:
        root: Of the file system in which Linux reports it; for tests.
    """
    try:
        text = (root / "proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return UNKNOWN_BYTES
    return max(0, min([free, *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What is left below each limit that the process's control group and those above it have."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # "0::/path" of version 2, "4:memory:/path" of version 1.
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        names = _CGROUPS[number != "0"]
        mount = root / "sys/fs/cgroup" / ("" if number == "0" else "memory")
        folder = mount / path.lstrip("/")
        # In a container the path may be that of the host: then only the mount itself is there.
        for one in [folder, *folder.parents]:
            left = _left(one, *names)
            if left is not None:
                yield left
            if one == mount:
                break


def _left(folder: Path, limit: str, use: str, files: str) -> int | None:
    """Bytes below the limit of one control group; None: it has none."""
    try:
        highest, used = ((folder / name).read_text().strip() for name in (limit, use))
        stat = (folder / "memory.stat").read_text().split()
    except OSError:
        return None
    if highest == "max":
        return None
    reclaimable = dict(zip(stat[::2], stat[1::2], strict=False)).get(files, 0)
    return int(highest) - int(used) + int(reclaimable)


def needed_bytes(program: Any) -> int:
    """Memory that a compiled program takes on each device, as the compiler says; 0: unknown.

    Args:
        program: From `jax.stages.Lowered.compile`; of one for several devices the compiler tells
            the sizes on one of them.
    """
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    # Donated arguments and the outputs in their place are counted once.
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def is_exhausted(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether an error says that a device ran out of memory."""
    text = str(error)
    return text.startswith("RESOURCE_EXHAUSTED") or "out of memory" in text.lower()


def balanced_size(folds: int, devices: int, fit: int) -> int:
    """Folds per device so that all rounds are about equally full.

    Args:
        folds: All there are.
        devices: That work at the same time.
        fit: Folds that a device has room for; less than 1 counts as 1.

    Returns:
        The smallest group that needs no more rounds than groups of `fit`.
    """
    rounds = math.ceil(folds / (max(1, fit) * devices))
    return math.ceil(folds / (rounds * devices))


def groups(folds: Sequence[Item], devices: int, size: int) -> list[list[Item]]:
    """Cuts folds into groups for the devices.

    Args:
        folds: In order.
        devices: That work at the same time, each on one group.
        size: Most folds of a group.

    Returns:
        Groups that differ by one fold at most, the larger ones first; in the last round every
        device has one, unless there are fewer folds than that.
    """
    if not folds:
        return []
    rounds = math.ceil(len(folds) / (devices * size))
    return spread(folds, min(rounds * devices, len(folds)))


def spread(items: Sequence[Item], parts: int) -> list[list[Item]]:
    """Cuts a sequence into parts that differ by one item at most, the larger ones first."""
    least, more = divmod(len(items), parts)
    starts = [part * least + min(part, more) for part in range(parts + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(starts)]
