"""Simple classifiers to judge networks against. NumPy, SciPy and scikit-learn only: no JAX.

scikit-learn is imported when something is fitted, not before.
"""

from htnet_jax.baselines.common import Baseline, Fitted
from htnet_jax.baselines.kernel_ridge import KernelRidge
from htnet_jax.baselines.logistic_regression import LogisticRegression
from htnet_jax.baselines.majority import MajorityClass
from htnet_jax.baselines.rbf_svm import RBFSVM

# `config.model.name` -> class; a new baseline is added here.
BASELINES: dict[str, type[Baseline]] = {
    "MajorityClass": MajorityClass,
    "LogisticRegression": LogisticRegression,
    "RBFSVM": RBFSVM,
    "KernelRidge": KernelRidge,
}

__all__ = [
    "BASELINES",
    "RBFSVM",
    "Baseline",
    "Fitted",
    "KernelRidge",
    "LogisticRegression",
    "MajorityClass",
]
