"""The training command with the linear model, and without a report: for tests that start it."""

import runpy
import sys
from unittest import mock

sys.path.insert(0, __file__.rpartition("/tests/")[0])
sys.path.insert(0, __file__.rpartition("/fakes/")[0])

from fakes.linear import Linear

from htnet_jax import models
from htnet_jax.evaluation import report

with mock.patch.dict(models.MODELS, Linear=Linear), mock.patch.object(report, "write_run"):
    runpy.run_module("htnet_jax.train", run_name="__main__", alter_sys=True)
