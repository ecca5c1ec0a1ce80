"""What a report shows of the clips: their flow, and what the network sees of it."""

from __future__ import annotations

import numpy as np

from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.evaluation.summary import Images


def pictures(arrays: ClipArrays, inputs: np.ndarray | None, layout: str) -> Images:
    """The pictures of a data set's clips.

    Args:
        arrays: The data set, N clips.
        inputs: `(N, S, S, channels)` float32, from `loading.network_inputs`; None: the network saw
            no mosaics.
        layout: The layout of the inputs; `none`: they are the flow, which needs no second picture.

    Raises:
        ValueError: `inputs` are not those of N clips.
    """
    if inputs is not None and len(inputs) != len(arrays.clips):
        raise ValueError(f"{len(inputs)} inputs for {len(arrays.clips)} clips")
    return Images(
        clips=arrays.clips,
        flow=arrays.flow,
        mosaic=None if inputs is None or layout == "none" else inputs,
        # Faces move both ways. Where nothing is negative, the flow is scaled to 0..255.
        centred=bool((arrays.flow[..., :2] < 0).any()),
    )
