from htnet_jax.baselines import BASELINES as BASELINES
from htnet_jax.training.baseline_folds import BaselineTrainer as _B


def BaselineTrainer(*a, subjects, **k):
    return _B(*a, persons=subjects, **k)
