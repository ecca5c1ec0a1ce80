"""TFDS builder of MMEW."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.mmew import layout


class Mmew(raw_builder.RawBuilder):
    """MMEW's micro-expressions: 300 clips of 30 subjects at 90 frames/s, seven emotions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = layout
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.LAYOUT
