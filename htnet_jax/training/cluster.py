"""Several processes that share the folds of one run, one on each host.

Folds are independent, so the processes never exchange numbers: each trains its share of the groups
and leaves the results in the run's folder, which all of them must see. JAX's coordination service
lets them find each other, and ends the others when one of them dies.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from htnet_jax.errors import UserError
from htnet_jax.training.stopping import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.5


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
        UserError: The coordinator cannot be reached, or nothing says where it is.
    """
    if not config.get("distributed", False):
        return
    # The processes exchange no numbers; Gloo would wait for all of them, and print.
    jax.config.update("jax_cpu_collectives_implementation", None)
    try:
        # What is None, JAX finds out from the cluster's environment (SLURM, Open MPI, cloud TPUs).
        jax.distributed.initialize(
            coordinator_address=config.coordinator or None,
            num_processes=config.processes or None,
            process_id=None if config.process < 0 else config.process,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes cannot be joined ({error}); in a cluster that JAX does not know, "
            "give each process --config.coordinator=HOST:PORT, --config.processes=N and its own "
            "--config.process=0 to N-1"
        ) from error


def here() -> Cluster:
    """This process among all that are connected."""
    return Cluster(jax.process_index(), jax.process_count())


def wait(until: Callable[[], bool], stop: StopRequest | None = None) -> None:
    """Looks again and again until `until()` is true.

    Raises:
        Stopped: `stop` is requested meanwhile.
    """
    # Not a barrier of JAX's: those give up after half a minute on a CPU.
    while not until():
        if stop:
            stop.raise_if_requested()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
