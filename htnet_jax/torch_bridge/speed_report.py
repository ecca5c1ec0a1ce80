"""What measured seconds mean: rates, ratios, shares of the ceilings; as JSON and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from htnet_jax.torch_bridge.stopwatch import quartiles

# Side -> heading. "ours" is compared with each of the others that were measured.
SIDES = {"ours": "ours", "torch": "PyTorch", "torch_compile": "torch.compile"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that was measured on every side.

    Attributes:
        unit: What the seconds are for, in words.
        flops: Useful FLOPs a unit.
        bytes: Bytes a unit that cannot be avoided; None: the arithmetic takes longer.
        difference: Of ours and PyTorch's results, relative; measured before the timing.
    """

    unit: str
    flops: int
    bytes: int | None
    difference: float


def ceiling_figures(work: int, unit: str, seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`ours_UNIT_per_s`, `torch_UNIT_per_s` and the better one as `UNIT_per_s`, from medians."""
    rates = {side: work / quartiles(values)[0] for side, values in seconds.items()}
    figures: dict[str, Any] = {f"{side}_{unit}_per_s": rate for side, rate in rates.items()}
    return {**figures, f"{unit}_per_s": max(rates.values())}


def case_figures(
    case: Case, seconds: Mapping[str, np.ndarray], ceilings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All figures of one case.

    Args:
        case: What was measured.
        seconds: Key of `SIDES` -> `(repeats,)`, seconds a unit.
        ceilings: "product" and "read" by `ceiling_figures`, measured in the same rounds.

    Returns:
        For each side `SIDE_s` (the median), `SIDE_quartiles_s`, `SIDE_seconds` (all), and the rates
        `SIDE_flops_per_s` and `SIDE_of_product_ceiling` (for bytes: `SIDE_bytes_per_s`,
        `SIDE_of_read_ceiling`), beside the ceilings `product_ceiling_flops_per_s` and
        `read_ceiling_bytes_per_s`. `ratio` is the median of PyTorch's seconds over that of ours;
        `ratio_quartiles` are those of the rounds. With torch.compile also `ratio_compile`.
    """
    figures: dict[str, Any] = {"unit": case.unit, "repeats": len(seconds["ours"])}
    works = {"flops": (case.flops, "product"), "bytes": (case.bytes, "read")}
    for name, (work, ceiling) in works.items():
        figures[name] = work
        figures[f"{ceiling}_ceiling_{name}_per_s"] = ceilings[ceiling][f"{name}_per_s"]
    for side, values in seconds.items():
        middle, low, high = quartiles(values)
        figures[f"{side}_s"] = middle
        figures[f"{side}_quartiles_s"] = [low, high]
        figures[f"{side}_seconds"] = values.tolist()
        for name, (work, ceiling) in works.items():
            if work is not None:
                figures[f"{side}_{name}_per_s"] = work / middle
                limit = figures[f"{ceiling}_ceiling_{name}_per_s"]
                figures[f"{side}_of_{ceiling}_ceiling"] = work / middle / limit
    for side, key in (("torch", "ratio"), ("torch_compile", "ratio_compile")):
        if side in seconds:
            figures[key] = figures[f"{side}_s"] / figures["ours_s"]
            rounds = quartiles(seconds[side] / seconds["ours"])
            figures[f"{key}_quartiles"] = list(rounds[1:])
    figures["difference"] = case.difference
    return figures


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures for people: a line a case and side, then the ceilings.

    Args:
        figures: Name of a case -> `case_figures`; "ceilings" -> name -> `ceiling_figures`.
    """
    rows = [["", "", "median", "quartiles", "ratio", "FLOP/s", "of ceiling", "bytes/s", "of read"]]
    for name, case in figures.items():
        if name in ("ceilings", "machine"):
            continue
        for side, heading in SIDES.items():
            if f"{side}_s" not in case:
                continue
            low, high = case[f"{side}_quartiles_s"]
            ratio = {"torch": "ratio", "torch_compile": "ratio_compile"}.get(side)
            read = case.get(f"{side}_of_read_ceiling")
            rows.append(
                [
                    name,
                    heading,
                    _time(case[f"{side}_s"]),
                    f"{_time(low)} .. {_time(high)}",
                    f"{case[ratio]:.2f}" if ratio else "",
                    _rate(case[f"{side}_flops_per_s"]),
                    f"{case[f'{side}_of_product_ceiling']:.0%}",
                    "" if read is None else _rate(case[f"{side}_bytes_per_s"]),
                    "" if read is None else f"{read:.0%}",
                ]
            )
    for name, ceiling in figures.get("ceilings", {}).items():
        unit = "flops" if "flops_per_s" in ceiling else "bytes"
        for side in ("ours", "torch"):
            rate = _rate(ceiling[f"{side}_{unit}_per_s"])
            columns = [rate, "", "", ""] if unit == "flops" else ["", "", rate, ""]
            rows.append([f"ceiling: {name}", SIDES[side], "", "", "", *columns])
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _time(seconds: float) -> str:
    for scale, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _rate(rate: float) -> str:
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if rate >= scale:
            return f"{rate / scale:.3g} {prefix}"
    return f"{rate:.3g}"
