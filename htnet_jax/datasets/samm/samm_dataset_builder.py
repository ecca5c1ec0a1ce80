"""TFDS builder of SAMM's short clips."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from htnet_jax.datasets import raw_builder
from htnet_jax.datasets.samm import layout


class Samm(raw_builder.RawBuilder):
    """SAMM: flow tensors from the raw or cropped short clips, up to 159 of 29 subjects.

    Label sets: `megc3` (the default: negative, positive, surprise), `five`, `own`, `objective`.
    Variants: `raw`, `cropped`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    LAYOUT_MODULE = layout
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.LAYOUT
