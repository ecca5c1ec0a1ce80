"""TFDS builder of CAS(ME)^3 Part A."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.casme3 import layout


class Casme3(raw_builder.RawBuilder):
    """860 micro-expressions of 94 subjects from Part A of CAS(ME)^3, colour frames."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = layout
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.LAYOUT
