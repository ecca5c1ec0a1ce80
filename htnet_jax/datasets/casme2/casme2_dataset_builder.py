"""TFDS builder of CASME II."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.casme2 import layout


class Casme2(raw_builder.RawBuilder):
    """CASME II: flow tensors from the raw or cropped clips, up to 255 of 26 subjects.

    Label sets: `megc3` (the default: negative, positive, surprise), `five`, `own`, `objective`.
    Variants: `raw`, `cropped`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = layout
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.LAYOUT
