"""Whole dialogues of the simulator beside those of human users, before and after calibration."""

from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.plots import populations as plots
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping
from calibrated_rl.report.views import CALIBRATION, Plot

SIMILARITY = "similarity_"
ELSEWHERE = {
    "classifier_accuracy": "classifier on words",
    "classifier_accuracy_acts": "classifier on acts",
    "nll_per_byte": "likelihood of a byte",
}
"""Metrics that other sections show, without a band; lower is nearer."""
ENDING = {"ending_f1": "F1", "ending_ece": "calibration error", "ending_bias": "leaves too often by"}

Band = tuple[float, float]
"""Where two halves of the human dialogues are."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A metric of the simulator's dialogues."""

    value: Interval
    band: Band | None
    far: str
    """On which side of the band the metric is far from human users: ``above``, ``below``, or empty for both."""
    verdict: str
    """How the metric lies to its band, in a word or two (``shift/verdict.py``)."""

    @classmethod
    def read(cls, raw: Any) -> "Measurement | None":
        value = interval(raw)
        if not isinstance(raw, dict) or value is None:
            return None
        return cls(value, _band(raw.get("null_band")), str(raw.get("far") or ""), str(raw.get("reading", "–")))

    @property
    def distance(self) -> float:
        """How far it is from where two halves of the human dialogues are: 0 within their band or on its near side."""
        low, high = self.band or (0.0, 0.0)
        above = self.value.mean - high if self.far != "below" else 0.0
        below = low - self.value.mean if self.far != "above" else 0.0
        return max(above, below, 0.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One metric before and after calibration."""

    name: str
    before: Measurement
    after: Measurement


@dataclass(frozen=True, slots=True)
class EndingMetric:
    title: str
    before: Interval
    after: Interval


@dataclass(frozen=True, slots=True)
class Populations:
    template: ClassVar[str] = "populations.jinja"
    similarity: Plot | None
    ending: Plot | None
    ending_metrics: list[EndingMetric]
    metrics: list[Pair]
    banded: int
    """How many of them have a band."""
    nearer: int
    """How many of those are nearer to it after calibration."""
    further: list[str]
    """Those that are further from it."""
    elsewhere_nearer: list[str]
    """Metrics of other sections that are nearer after calibration."""
    elsewhere_not_nearer: list[str]
    refused: dict[str, str]
    """Why a metric was not measured, by name."""


def view(run: RunFiles) -> Populations | None:
    """Nothing where no dialogues were compared."""
    simulator = mapping(run.summary, "simulator")
    metrics = _pairs(simulator)
    curves = {phase: curve for phase in CALIBRATION if (curve := _curve(look_up(simulator, phase, "ending_curve")))}
    if not metrics and not curves:
        return None
    bars = {
        pair.name.removeprefix(SIMILARITY): ({"before": pair.before.value, "after": pair.after.value}, pair.before.band)
        for pair in metrics
        if pair.name.startswith(SIMILARITY)
    }
    banded = [pair for pair in metrics if pair.before.band is not None]
    elsewhere = _elsewhere(simulator)
    return Populations(
        similarity=Plot.of(plots.similarity(bars), "similarity before and after calibration") if bars else None,
        ending=Plot.of(plots.ending(curves), "calibration of the decision to end") if curves else None,
        ending_metrics=_ending_metrics(simulator),
        metrics=metrics,
        banded=len(banded),
        nearer=sum(pair.after.distance < pair.before.distance for pair in banded),
        further=[pair.name for pair in banded if pair.after.distance > pair.before.distance],
        elsewhere_nearer=[title for title, nearer in elsewhere.items() if nearer],
        elsewhere_not_nearer=[title for title, nearer in elsewhere.items() if not nearer],
        refused={
            name: str(why) for name, why in mapping(simulator, "after", "populations", "refused").items()
        },
    )  # fmt: skip


def _pairs(simulator: dict[str, Any]) -> list[Pair]:
    """The metrics that were measured both before and after calibration."""
    before, after = (mapping(simulator, phase, "populations", "figures") for phase in CALIBRATION)
    pairs = []
    for name in before:
        measured_before, measured_after = Measurement.read(before[name]), Measurement.read(after.get(name))
        if measured_before is not None and measured_after is not None:
            pairs.append(Pair(name, measured_before, measured_after))
    return pairs


def _band(raw: Any) -> Band | None:
    if not isinstance(raw, list) or len(raw) != 2:
        return None
    low, high = map(finite, raw)
    return None if low is None or high is None else (low, high)


def _elsewhere(simulator: dict[str, Any]) -> dict[str, bool]:
    """Whether calibration brought the metrics of other sections nearer, by their title."""
    nearer = {}
    for name, title in ELSEWHERE.items():
        before, after = (interval(look_up(simulator, phase, name)) for phase in CALIBRATION)
        if before is not None and after is not None:
            nearer[title] = after.mean < before.mean
    return nearer


def _curve(raw: Any) -> list[tuple[float, float, int]]:
    """Probability of ending, how often human users ended, and on how many turns that stands."""
    points = []
    for entry in raw if isinstance(raw, list) else []:
        probability, outcome, count = (finite(look_up(entry, key)) for key in ("probability", "outcome", "count"))
        if probability is not None and outcome is not None and count is not None:
            points.append((probability, outcome, int(count)))
    return points


def _ending_metrics(simulator: dict[str, Any]) -> list[EndingMetric]:
    metrics = []
    for name, title in ENDING.items():
        before, after = (interval(look_up(simulator, phase, name)) for phase in CALIBRATION)
        if before is not None and after is not None:
            metrics.append(EndingMetric(title, before, after))
    return metrics
