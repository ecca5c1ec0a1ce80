"""SAMM's short clips as a TFDS data set."""

from htnet_jax.datasets.samm.samm_dataset_builder import Samm

__all__ = ["Samm"]
