"""Which flows of a data set show the same thing: equal bytes, or equal but for their scale."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from htnet_jax.progress import progress

# From this similarity on, two flows are taken for one clip. Measured on 28-pixel flows, u and v:
# different clips of the MEGC 2019 release reach 0.936 within a subject and 0.858 between subjects,
# of the synthetic data set (few muscles, rendered) 0.972. A clip against its own copy has at least
# 0.999 after rounding to 8 bits, 0.994 with noise of a tenth of its standard deviation, and 0.988
# after a Gaussian blur of half a pixel. Not found: copies moved by half a pixel (about 0.95), with
# an apex one frame off (0.92 to 0.98) or made by another flow method (0.4 to 0.9).
SAME = 0.98

# Rows compared at once: keeps the temporary float64 copy of 256 flows of 112 pixels at 50 MB.
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Closest:
    """The two most similar flows of some kind.

    Attributes:
        similarity: -1 to 1.
        first: Index of one.
        second: Index of the other, above `first`.
    """

    similarity: float
    first: int
    second: int


@dataclasses.dataclass(frozen=True)
class Alike:
    """Flows that are more similar than a threshold.

    Attributes:
        groups: Indices, ascending, of flows that are connected by similar pairs.
        lowest: For each group, the lowest similarity of such a pair.
        within: The closest two of one owner; None if no owner has two flows.
        between: The closest two of different owners; None if there is one owner only.
    """

    groups: tuple[tuple[int, ...], ...]
    lowest: tuple[float, ...]
    within: Closest | None
    between: Closest | None


def equal_groups(flows: np.ndarray) -> list[tuple[int, ...]]:
    """Groups of two or more flows with the same values everywhere, by first index.

    Args:
        flows: `(N, ...)` float, finite.
    """
    groups: dict[bytes, list[int]] = {}
    for index, flow in enumerate(flows):
        # 0 is added because -0.0 and 0.0 are equal but differ in their bytes.
        groups.setdefault(hashlib.sha256((flow + 0).tobytes()).digest(), []).append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def standardised(flows: np.ndarray) -> np.ndarray:
    """Vectors of length 1 whose inner product is the similarity of two flows.

    Each channel is centred on its mean and divided by its standard deviation, so that neither scale
    nor offset of a channel matters (the released flows are min-max scaled by clip and channel). The
    similarity is the mean of the channels' correlations; a constant channel counts as no channel.

    Args:
        flows: `(N, H, W, C)` finite.

    Returns:
        `(N, H * W * C)` float32; 0 for flows without a channel that varies.

    Raises:
        ValueError: Wrong shape, or values that are not finite.
    """
    if flows.ndim != 4:
        raise ValueError(f"expected flows (N, H, W, C), got shape {flows.shape}")
    found = np.zeros((len(flows), int(np.prod(flows.shape[1:]))), np.float32)
    for start in range(0, len(flows), _BLOCK):
        block = flows[start : start + _BLOCK].astype(np.float64)
        if not np.isfinite(block).all():
            raise ValueError("flows must be finite")
        varies = np.ptp(block, axis=(1, 2)) > 0
        # By the largest value first, so that squares neither overflow nor vanish.
        block -= block.mean(axis=(1, 2), keepdims=True)
        block /= np.where(varies, np.abs(block).max(axis=(1, 2)), 1)[:, None, None]
        length = np.sqrt((block**2).sum(axis=(1, 2)) * varies.sum(axis=1, keepdims=True))
        block *= np.where(varies, 1 / np.where(varies, length, 1), 0)[:, None, None]
        found[start : start + _BLOCK] = block.reshape(len(block), -1)
    return found


def alike(flows: np.ndarray, owners: Sequence[str] | np.ndarray, threshold: float = SAME) -> Alike:
    """Compares all flows with each other.

    Args:
        flows: `(N, H, W, C)` finite; those without a channel that varies are like none.
        owners: `(N,)` who is on the flow.
        threshold: Similarity from which two flows are alike.

    Raises:
        ValueError: The lengths differ, or as `standardised`.
    """
    vectors = standardised(flows)
    owners = np.asarray(owners)
    if owners.shape != (len(vectors),):
        raise ValueError(f"{len(vectors)} flows, but owners have shape {owners.shape}")
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    best: dict[bool, Closest] = {}
    starts = range(0, len(vectors), _BLOCK)
    for start in progress(starts, len(starts), "comparing flows", "block", brief=True):
        rows = np.arange(start, min(start + _BLOCK, len(vectors)))
        similarity = vectors[rows] @ vectors[start:].T
        columns = np.arange(start, len(vectors))
        later = columns > rows[:, None]
        one_owner = owners[rows][:, None] == owners[columns]
        for same in (True, False):
            allowed = np.where(later & (one_owner == same), similarity, -np.inf)
            row, column = np.unravel_index(allowed.argmax(), allowed.shape)
            value = float(allowed[row, column])
            if np.isfinite(value) and (same not in best or value > best[same].similarity):
                best[same] = Closest(min(value, 1.0), int(rows[row]), int(columns[column]))
        row, column = np.nonzero(later & (similarity >= threshold))
        pairs.append((rows[row], columns[column], similarity[row, column]))
    groups, lowest = _groups(len(vectors), pairs)
    return Alike(groups, lowest, best.get(True), best.get(False))


def _groups(
    count: int, pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    """The connected groups by first index, and the lowest similarity in each."""
    if not any(len(first) for first, _, _ in pairs):
        return (), ()
    first, second, similarity = (np.concatenate(part) for part in zip(*pairs, strict=True))
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    _, group_of = csgraph.connected_components(graph, directed=False)
    lowest: dict[int, float] = {}
    for group in np.unique(group_of[first]):
        lowest[int(group)] = min(1.0, float(similarity[group_of[first] == group].min()))
    groups = {group: tuple(np.flatnonzero(group_of == group).tolist()) for group in lowest}
    order = sorted(groups, key=lambda group: groups[group])
    return tuple(groups[group] for group in order), tuple(lowest[group] for group in order)
