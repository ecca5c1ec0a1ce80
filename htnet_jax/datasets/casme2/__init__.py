"""CASME II, from its raw or cropped clips, as a TFDS data set."""

from htnet_jax.datasets.casme2.casme2_dataset_builder import Casme2

__all__ = ["Casme2"]
