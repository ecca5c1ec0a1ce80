"""The data sets, as TFDS builders: importing this package makes `tfds.builder(NAME)` know them."""

from htnet_jax.datasets.casme2 import Casme2
from htnet_jax.datasets.casme3 import Casme3
from htnet_jax.datasets.fourdme import Fourdme
from htnet_jax.datasets.megc2019 import Megc2019
from htnet_jax.datasets.mmew import Mmew
from htnet_jax.datasets.samm import Samm
from htnet_jax.datasets.smic import Smic
from htnet_jax.datasets.synthetic import Synthetic

# Name -> builder class, for `loading.load`.
BUILDERS = {
    builder.name: builder
    for builder in (Casme2, Casme3, Fourdme, Megc2019, Mmew, Samm, Smic, Synthetic)
}
