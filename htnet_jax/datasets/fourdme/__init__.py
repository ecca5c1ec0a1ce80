"""4DME's micro-expressions, from the clips as they were distributed, as a TFDS data set."""

from htnet_jax.datasets.fourdme.fourdme_dataset_builder import Fourdme

__all__ = ["Fourdme"]
