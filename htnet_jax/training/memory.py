"""How much memory there is, how much a compiled program needs, and whether it has run out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

# Of the free memory; the rest is for pieces too small to use, and for what the runtime takes.
USABLE = 0.95

# Where the main memory is not known (not Linux).
UNKNOWN_BYTES = 4 << 30

# For each version of Linux's control groups: limit, use, and the part of the use that are files'
# pages, which the kernel gives up when it needs memory.
_CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
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
    """Memory that a compiled program takes on each device, as the compiler says; 0: it does not.

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
    """Whether a device's memory did not suffice."""
    text = str(error)
    return text.startswith("RESOURCE_EXHAUSTED") or "out of memory" in text.lower()
