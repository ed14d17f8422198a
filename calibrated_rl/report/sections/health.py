"""Simulator health: how often each detector found its mistake, in human logs and in the simulators' turns."""

from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import answers_to_a_simulator, style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping
from calibrated_rl.report.views import CALIBRATION

WORDS = {
    "role_inversion": "talks like the policy",
    "early_stop": "ends before its matter is settled",
    "after_end": "speaks on after the end",
    "empty_turn": "says nothing",
    "goal_drift": "contradicts its goal",
    "copying": "copies the policy",
    "language_change": "changes the language",
    "leaked_reasoning": "says what it was to think",
}
"""Words for the detectors that we know, in the order in which they are shown; others follow by name."""


@dataclass(frozen=True, slots=True)
class Count:
    """One rate; None where no turn was judged."""

    value: Interval | None
    turns: float | None
    course: tuple[float, float] | None = None
    """Of an arm: the rates at the beginning and at the end of training."""
    is_above: bool = False
    """Whether it lies above the threshold."""


@dataclass(frozen=True, slots=True)
class Row:
    detector: str
    meaning: str
    threshold: float | None
    counts: list[Count]
    """In the order of ``Health.columns``."""


@dataclass(frozen=True, slots=True)
class Health:
    template: ClassVar[str] = "health.jinja"
    columns: list[str]
    rows: list[Row]
    has_thresholds: bool


def view(run: RunFiles) -> Health | None:
    """Nothing for runs of versions that did not count it."""
    sources = _sources(run)
    names = list(dict.fromkeys(name for rates in sources.values() for name in rates))
    if not names:
        return None
    thresholds = {name: finite(value) for name, value in mapping(run.config, "health", "thresholds").items()}
    rows = []
    for name in sorted(names, key=lambda name: [*WORDS, name].index(name)):
        threshold = thresholds.get(name)
        counts = [_count(rates.get(name), threshold) for rates in sources.values()]
        rows.append(Row(name.replace("_", " "), WORDS.get(name, ""), threshold, counts))
    return Health(list(sources), rows, has_thresholds=any(row.threshold is not None for row in rows))


def _sources(run: RunFiles) -> dict[str, dict[str, Any]]:
    """Rates by detector, by the heading of their column; without columns in which nothing was counted."""
    sources = {"human logs": mapping(run.summary, "simulator", "human", "health")}
    for phase in CALIBRATION:
        sources[f"simulator {phase} calibration"] = mapping(run.summary, "simulator", phase, "health")
    for arm, metrics in run.arms().items():
        if answers_to_a_simulator(arm):
            sources[f"in training: {style(arm).label}"] = mapping(metrics, "health")
    return {heading: rates for heading, rates in sources.items() if rates}


def _count(raw: Any, threshold: float | None) -> Count:
    value, turns = interval(raw), finite(look_up(raw, "turns"))
    first, last = (finite(look_up(raw, key)) for key in ("first", "last"))
    course = None if first is None or last is None else (first, last)
    latest = last if last is not None else None if value is None else value.mean
    return Count(value, turns, course, threshold is not None and latest is not None and latest > threshold)
