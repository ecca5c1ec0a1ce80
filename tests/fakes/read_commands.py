"""Reads the commands of documentation as the programs would, in a process of its own.

Standard input: a JSON list of [module or script, [arguments]]. Standard output: a JSON list of what
is wrong with each, "" if nothing is. Programs define the same flags, so each starts with none.
"""

import contextlib
import io
import json
import runpy
import sys

from absl import flags
from ml_collections import ConfigDict

from htnet_jax.training import settings


def problem_of(program, arguments):
    """What is wrong with one command."""
    run = runpy.run_path if program.endswith(".py") else runpy.run_module
    before = {*flags.FLAGS}
    try:
        names = run(program, run_name="documented")
        if "define_flags" in names:
            names["define_flags"]()
        sys.argv = [program, *arguments]  # config flags read the overrides there
        flags.FLAGS(sys.argv)
        if "config" in flags.FLAGS and isinstance(flags.FLAGS.config, ConfigDict):
            settings.check(flags.FLAGS.config)
    except (Exception, SystemExit) as error:  # whatever a wrong command ends in is the finding
        return f"{type(error).__name__}: {error}"
    finally:
        for name in {*flags.FLAGS} - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return ""


with contextlib.redirect_stdout(io.StringIO()):
    found = [problem_of(program, arguments) for program, arguments in json.load(sys.stdin)]
print(json.dumps(found))
