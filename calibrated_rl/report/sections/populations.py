"""Whole dialogues of the simulator beside those of people, before and after calibration."""

from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.plots import populations as plots
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping
from calibrated_rl.report.views import CALIBRATION, Plot

LIKENESS = "likeness_"
ELSEWHERE = {
    "classifier_accuracy": "classifier on words",
    "classifier_accuracy_acts": "classifier on acts",
    "nll_per_byte": "likelihood of a byte",
}
"""Figures that other sections show: they have no band for both, and are nearer where they are lower."""
ENDING = {"ending_f1": "F1", "ending_ece": "calibration error", "ending_bias": "leaves too often by"}

Band = tuple[float, float]
"""Where two halves of people are."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure of the simulator's dialogues."""

    value: Interval
    band: Band | None
    far: str
    """On which side of the band the figure is far from people: ``above``, ``below``, or empty for both."""
    reading: str
    """The figure in a word."""

    @classmethod
    def read(cls, raw: Any) -> "Measured | None":
        value = interval(raw)
        if not isinstance(raw, dict) or value is None:
            return None
        return cls(value, _band(raw.get("null_band")), str(raw.get("far") or ""), str(raw.get("reading", "–")))

    @property
    def distance(self) -> float:
        """How far it is from where two halves of people are: 0 within their band or on its near side."""
        low, high = self.band or (0.0, 0.0)
        above = self.value.mean - high if self.far != "below" else 0.0
        below = low - self.value.mean if self.far != "above" else 0.0
        return max(above, below, 0.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure before and after calibration."""

    name: str
    before: Measured
    after: Measured


@dataclass(frozen=True, slots=True)
class EndingFigure:
    title: str
    before: Interval
    after: Interval


@dataclass(frozen=True, slots=True)
class Populations:
    template: ClassVar[str] = "populations.jinja"
    likeness: Plot | None
    ending: Plot | None
    ending_figures: list[EndingFigure]
    figures: list[Pair]
    banded: int
    """How many of them have a band."""
    nearer: int
    """How many of those are nearer to it after calibration."""
    further: list[str]
    """Those that are further from it."""
    others_nearer: list[str]
    """Figures of other sections that are nearer after calibration."""
    others_not_nearer: list[str]
    refused: dict[str, str]
    """Why a figure was not measured, by name."""


def view(run: RunFiles) -> Populations | None:
    """Nothing where no dialogues were compared."""
    simulator = mapping(run.summary, "simulator")
    figures = _pairs(simulator)
    curves = {when: curve for when in CALIBRATION if (curve := _curve(look_up(simulator, when, "ending_curve")))}
    if not figures and not curves:
        return None
    bars = {
        pair.name.removeprefix(LIKENESS): ({"before": pair.before.value, "after": pair.after.value}, pair.before.band)
        for pair in figures
        if pair.name.startswith(LIKENESS)
    }
    banded = [pair for pair in figures if pair.before.band is not None]
    others = _others(simulator)
    return Populations(
        likeness=Plot.of(plots.likeness(bars), "human-likeness before and after calibration") if bars else None,
        ending=Plot.of(plots.ending(curves), "calibration of the decision to end") if curves else None,
        ending_figures=_ending_figures(simulator),
        figures=figures,
        banded=len(banded),
        nearer=sum(pair.after.distance < pair.before.distance for pair in banded),
        further=[pair.name for pair in banded if pair.after.distance > pair.before.distance],
        others_nearer=[title for title, nearer in others.items() if nearer],
        others_not_nearer=[title for title, nearer in others.items() if not nearer],
        refused={
            name: str(why) for name, why in mapping(simulator, "after", "populations", "refused").items()
        },
    )  # fmt: skip


def _pairs(simulator: dict[str, Any]) -> list[Pair]:
    """The figures that were taken both times."""
    before, after = (mapping(simulator, when, "populations", "figures") for when in CALIBRATION)
    pairs = []
    for name in before:
        then, now = Measured.read(before[name]), Measured.read(after.get(name))
        if then is not None and now is not None:
            pairs.append(Pair(name, then, now))
    return pairs


def _band(raw: Any) -> Band | None:
    if not isinstance(raw, list) or len(raw) != 2:
        return None
    low, high = map(finite, raw)
    return None if low is None or high is None else (low, high)


def _others(simulator: dict[str, Any]) -> dict[str, bool]:
    """Whether calibration brought the figures of other sections nearer, by their title."""
    nearer = {}
    for name, title in ELSEWHERE.items():
        before, after = (interval(look_up(simulator, when, name)) for when in CALIBRATION)
        if before is not None and after is not None:
            nearer[title] = after.mean < before.mean
    return nearer


def _curve(raw: Any) -> list[tuple[float, float, int]]:
    """Probability of ending, how often people ended, and on how many turns that stands."""
    points = []
    for entry in raw if isinstance(raw, list) else []:
        probability, outcome, count = (finite(look_up(entry, key)) for key in ("probability", "outcome", "count"))
        if probability is not None and outcome is not None and count is not None:
            points.append((probability, outcome, int(count)))
    return points


def _ending_figures(simulator: dict[str, Any]) -> list[EndingFigure]:
    figures = []
    for name, title in ENDING.items():
        before, after = (interval(look_up(simulator, when, name)) for when in CALIBRATION)
        if before is not None and after is not None:
            figures.append(EndingFigure(title, before, after))
    return figures
