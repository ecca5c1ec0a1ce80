"""TFDS builder of 4DME's micro-expressions."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.fourdme import layout


class Fourdme(raw_builder.RawBuilder):
    """The micro-expressions of 4DME, from its gray videos."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = layout
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.LAYOUT
