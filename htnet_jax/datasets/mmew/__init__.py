"""MMEW as a TFDS data set, from raw clips."""

from htnet_jax.datasets.mmew.mmew_dataset_builder import Mmew

__all__ = ["Mmew"]
