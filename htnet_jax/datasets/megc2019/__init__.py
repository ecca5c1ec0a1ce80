"""The MEGC 2019 composite (SMIC, CASME II, SAMM) as a TFDS data set."""

from htnet_jax.datasets.megc2019.megc2019_dataset_builder import Megc2019

__all__ = ["Megc2019"]
