"""SMIC as a TFDS data set, from raw clips."""

from htnet_jax.datasets.smic.smic_dataset_builder import Smic

__all__ = ["Smic"]
