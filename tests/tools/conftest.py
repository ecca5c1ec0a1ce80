"""Each tool in one process of its own: importing JAX and PyTorch takes most of a run's time.

Not this process: the flags of all commands would meet in absl's one table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

WORKER = """
import contextlib, importlib.util, io, json, sys, traceback
from absl import flags
from htnet_jax.errors import run_command
from htnet_jax.config import parser_for
import htnet_jax.torch_bridge
spec = importlib.util.spec_from_file_location("tool", sys.argv[1])
tool = sys.modules["tool"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
if hasattr(tool, "CEILINGS"):  # the benchmark's: measured in no time
    tool.CEILINGS, tool.SECONDS_PER_MEASUREMENT = {"cpu": (64, 4096)}, 0.0
answers = sys.stdout
for line in sys.stdin:
    sys.argv = ["tool.py", *json.loads(line)]
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # overrides, which every command line defines anew
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(tool.main, flags_parser=parser_for(tool._CONFIG))
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def tool(request, tmp_path_factory):
    """Runs the tool that the test module is named after."""
    name = request.module.__name__.rpartition("test_")[2] + ".py"
    log = tmp_path_factory.mktemp("worker") / "stderr"
    with (
        open(log, "w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(TOOLS / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                # Compiling takes most of the time.
                "XLA_FLAGS": "--xla_backend_optimization_level=0",
            },
        ) as process,
    ):

        def run(*arguments):
            process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, log.read_text()
            return SimpleNamespace(
                **dict(zip(("returncode", "stdout", "stderr"), json.loads(answer), strict=True))
            )

        yield run
        process.stdin.close()


@pytest.fixture
def accepts(tool):
    def run(*arguments):
        result = tool(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture
def refuses(tool):
    """Runs the tool, which must end with status 2 and one message, and nothing else."""

    def run(*arguments):
        result = tool(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("error: ") == 1
        assert "Traceback" not in result.stderr
        assert "Written" not in result.stdout
        return result.stderr[result.stderr.index("error: ") :]

    return run
