"""The data sets, as TFDS builders: importing this package makes `tfds.builder(NAME)` know them."""

from htnet_jax.datasets.megc2019 import Megc2019
from htnet_jax.datasets.synthetic import Synthetic

# Name -> builder class, for `loading.load`.
BUILDERS = {builder.name: builder for builder in (Megc2019, Synthetic)}

__all__ = ["BUILDERS", "Megc2019", "Synthetic"]
