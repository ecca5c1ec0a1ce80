"""A run as reports take it: its predictions, their scores, and what is known of how it was made."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.evaluation.summary import Summary, summarize


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What can be shown of the clips of a run.

    Attributes:
        clips: `(N,)` str, the clips there are pictures of.
        flow: `(N, S, S, 3)` float32: u, v and optical strain, in any unit.
        mosaic: `(N, S, S, channels)` float32, the network's input; None where that is the flow.
        centred: Zero motion is 0. False: the flow is scaled to 0..255 by clip and channel (as the
            released pictures are), so that the level of zero motion is unknown.
    """

    clips: np.ndarray
    flow: np.ndarray
    mosaic: np.ndarray | None
    centred: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run in a report.

    Attributes:
        name: How the report calls it; unique in a report.
        predictions: Its predictions.
        summary: Their scores, from `summarize`.
        config: Its settings, if known.
        environment: Versions, devices and times, if known.
        pictures: Flows and mosaics for the gallery, if at hand.
    """

    name: str
    predictions: Predictions
    summary: Summary
    config: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    pictures: Pictures | None = None

    @classmethod
    def of(cls, name: str, predictions: Predictions, **known: Any) -> Run:
        """A run with its scores computed; `known`: the optional attributes."""
        return cls(name, predictions, summarize(predictions), **known)
