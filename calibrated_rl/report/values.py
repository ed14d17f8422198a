"""Metrics of ``summary.json`` as numbers with confidence intervals, and how the report writes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
PROXIES, PROXIES_BEFORE = "proxies", "judges"
"""Key of ``summary.json`` for how well proxies stand for people; and what runs of earlier versions called it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric with the bounds of its 95 % confidence interval; None where none was computed."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """Distances from the mean to the bounds, as error bars want them; 0 where there is no bound."""
        low = self.mean if self.low is None else self.low
        high = self.mean if self.high is None else self.high
        return max(self.mean - low, 0.0), max(high - self.mean, 0.0)

    @property
    def bounds(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def excludes_zero(self) -> bool:
        return self.bounds is not None and (self.bounds[0] > 0 or self.bounds[1] < 0)


def finite(value: Any) -> float | None:
    """``value`` as a float, or None if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval(value: Any) -> Interval | None:
    """Read a bare number, or a mapping with ``mean`` (or ``value``) and perhaps ``low`` and ``high``."""
    if not isinstance(value, Mapping):
        mean = finite(value)
        return None if mean is None else Interval(mean)
    mean = finite(value.get("mean", value.get("value")))
    return None if mean is None else Interval(mean, finite(value.get("low")), finite(value.get("high")))


def look_up(tree: Any, *keys: str) -> Any:
    """``tree[key][key]...``, or None as soon as a key is missing."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def mapping(tree: Any, *keys: str) -> dict[str, Any]:
    """What lies under ``keys`` if it is a mapping, else an empty one."""
    subtree = look_up(tree, *keys)
    return dict(subtree) if isinstance(subtree, Mapping) else {}


def proxies_of(summary: Any) -> dict[str, Any]:
    """What ``evaluation/proxies.py`` has measured, also of runs that were written under its older name."""
    return mapping(summary, PROXIES) or mapping(summary, PROXIES_BEFORE)


def over_what(summary: Any) -> str:
    """What the intervals of the arms' metrics are over; empty where the summary does not tell its seeds."""
    seeds = look_up(summary, "seeds")
    if not isinstance(seeds, list) or not seeds:
        return ""
    if len(seeds) == 1:
        return "over scenarios alone: with one training seed they say nothing of what another would give"
    return "over training seeds and scenarios"


def by_turn(raw: Any) -> list[tuple[int, Interval]]:
    """A metric by user turn: a list with a metric for each turn from 1, or with mappings that name their
    ``turn``. Turns without a metric are left out."""
    intervals = []
    for place, entry in enumerate(raw if isinstance(raw, list) else [], start=1):
        turn = finite(entry.get("turn", place)) if isinstance(entry, Mapping) else place
        value = interval(entry)
        if turn is not None and value is not None:
            intervals.append((int(turn), value))
    return intervals


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """A number with a true minus sign and no negative zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}".replace("-", "−")


def count(value: Any) -> str:
    """A count short enough for a table: 950, 12.3 k, 4.1 M."""
    amount = finite(value)
    if amount is None:
        return NOT_MEASURED
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(amount) >= scale:
            return f"{amount / (1e3 if unit == ' k' else scale):.1f}{unit}"
    return f"{amount:.0f}"


def duration(value: Any) -> str:
    """Seconds as 45 s, 3.2 min or 1.5 h."""
    seconds = finite(value)
    if seconds is None:
        return NOT_MEASURED
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def or_dash(text: str) -> str:
    """``text`` in a table, where a dash stands for what was not measured."""
    return "–" if text == NOT_MEASURED else text
