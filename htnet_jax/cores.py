"""How many processor cores there are for this process."""

from __future__ import annotations

import os


def core_count() -> int:
    """Cores this process may use; on Linux a container's share, not the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
