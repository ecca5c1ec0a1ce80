"""Trains a network or fits a baseline, leaving subjects out, and reports UF1 and UAR.

  python -m htnet_jax.train --config=configs/demo.py --workdir=runs/demo [--config.KEY=VALUE ...]

`--config` is a Python file with `get_config()`; its keys are explained by
`--help` and in docs/settings.md. The run's folder receives `config.json`, `environment.json`,
`predictions.npz` (the test logits of every fold and epoch), `metrics.json`, `report.html` and the
folds' final parameters in `checkpoints/`. An interrupted run (Ctrl-C and SIGTERM save the folds in
training) resumes when the same command is given again; a finished one is never overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from htnet_jax import foreign
from htnet_jax.config import hint, parser_for
from htnet_jax.errors import UserError, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the results of this run.")


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe and prints its table.

    Raises:
        UserError: A flag is missing, or anything that `experiment.run` raises.
    """
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; {hint(argv[1])}")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError(
            "give --config=FILE and --workdir=DIR, for example:\n"
            "  python -m htnet_jax.train --config=configs/demo.py --workdir=runs/demo"
        )
    config, workdir = _CONFIG.value, foreign.expanded(_WORKDIR.value)
    _set_up_jax(config)

    from htnet_jax.evaluation import tables
    from htnet_jax.training import experiment

    run = experiment.run(config, workdir)
    if run is None:
        return
    print(tables.text([run]))
    print(f"Written to {workdir}: predictions.npz, metrics.json, report.html")


def _set_up_jax(config: ConfigDict) -> None:
    """Settings that only work before JAX first uses a device."""
    import jax

    from htnet_jax.io import core_count
    from htnet_jax.training import hosts, settings

    # The others are checked where all processes hear of it, unless there is but one.
    first = ("distributed", "coordinator", "processes", "process", "cpu_devices")
    if config.get("distributed") is not True or settings.wrong_values(config, first):
        settings.check(config)

    jax.config.update("jax_num_cpu_devices", config.get("cpu_devices", 0) or core_count())
    if not jax.config.jax_compilation_cache_dir:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = foreign.expanded(cache) / "htnet_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    hosts.connect(config)


def _settings() -> str:
    from htnet_jax.training import settings

    return settings.as_text()


if __name__ == "__main__":
    run_command(main, flags_parser=parser_for(_CONFIG, _settings))
