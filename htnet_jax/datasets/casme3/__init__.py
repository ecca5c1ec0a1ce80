"""CAS(ME)^3 Part A, from the clips as they were distributed, as a TFDS data set."""

from htnet_jax.datasets.casme3.casme3_dataset_builder import Casme3

__all__ = ["Casme3"]
