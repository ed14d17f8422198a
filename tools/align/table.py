"""The results of ``jobs/align.py`` as lines of text."""

from collections.abc import Mapping
from typing import Any

from calibrated_rl.statistics.intervals import paired_difference

HEAD = ("method", "weighted sum of exact TV", "minus the first", "exact TV", "KL", "monitor NLL", "seconds")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a method. ``minus the first`` is the paired difference from the first that aligns, over dialogues."""
    aligned = [name for name in results if not name.startswith("none ")]
    rows = [HEAD]
    for name, result in results.items():
        difference = "-"
        if name in aligned[1:]:
            of_first = results[aligned[0]]["by_dialogue"]
            difference = interval(paired_difference(result["by_dialogue"], of_first).as_dict(), "+")
        rows.append(
            (
                name, interval(result["bound"]), difference, interval(result["tv"]), f"{result['kl']['mean']:.3f}",
                f"{result['monitor_nll']:.4f}", f"{result['seconds']:.0f}",
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def interval(values: Mapping[str, Any], sign: str = "") -> str:
    """``mean [low, high]``."""
    mean, low, high = (format(values[name], f"{sign}.3f") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
