"""TFDS builder of SMIC."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.smic import layout


class Smic(raw_builder.RawBuilder):
    """SMIC: 164 clips of 16 subjects at 100 frames/s (HS), 71 clips each at 25 (VIS, NIR)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = layout
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.LAYOUT
