"""Published scores on the MEGC 2019 composite, grouped by how their epoch was selected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from htnet_jax.evaluation.selection import Selection

SOURCES = ("smic", "casme2", "samm")
"""The sources of the MEGC 2019 composite; the rows below hold for exactly these."""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One published row.

    Attributes:
        method: name of the method.
        selection: how the epoch was selected, in words.
        scores: group ("composite" or a source) -> (UF1, UAR).
        origin: the paper the method comes from.
    """

    method: str
    selection: str
    scores: dict[str, tuple[float, float]]
    origin: str


_UNKNOWN = "selection not known to us"


def _row(method: str, selection: str, origin: str, *scores: tuple[float, float]) -> PublishedRow:
    groups = ("composite", *SOURCES)
    return PublishedRow(method, selection, dict(zip(groups, scores, strict=True)), origin)


# UF1 and UAR as in the comparison table of the HTNet paper (arXiv 2307.14637). HTNet's release
# scores the test subject after every epoch and keeps the best; STSTNet's takes the last epoch.
PUBLISHED = (
    _row(
        "STSTNet",
        Selection.FINAL.description,
        "Liong et al., FG 2019",
        (0.7353, 0.7605),
        (0.6801, 0.7013),
        (0.8382, 0.8686),
        (0.6588, 0.6810),
    ),
    _row(
        "HTNet",
        Selection.ORACLE.description,
        "Wang et al., arXiv 2307.14637",
        (0.8603, 0.8475),
        (0.8049, 0.7905),
        (0.9532, 0.9516),
        (0.8131, 0.8124),
    ),
    _row(
        "FeatRef",
        _UNKNOWN,
        "Zhou et al., Pattern Recognition 2022",
        (0.7838, 0.7832),
        (0.7011, 0.7083),
        (0.8915, 0.8873),
        (0.7372, 0.7155),
    ),
    _row(
        "RCN",
        _UNKNOWN,
        "Xia et al., TIP 2020",
        (0.7432, 0.7190),
        (0.6326, 0.6441),
        (0.8512, 0.8123),
        (0.7601, 0.6715),
    ),
)


def comparable_rows(sources: Iterable[str]) -> tuple[PublishedRow, ...]:
    """The published rows when `sources` are exactly those of the composite, else none."""
    return PUBLISHED if {str(source) for source in sources} == set(SOURCES) else ()
