"""The simulator against the human: how it talks, and how far it is from the human, before and after calibration."""

from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.plots import simulator as plots
from calibrated_rl.report.plots.simulator import Distance
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping
from calibrated_rl.report.views import CALIBRATION, Plot

MEASURES = {
    "goal_kept": "keeps to its goal",
    "first_turn_disclosure": "told in its first turn",
    "turn_words": "words a turn",
    "short_turns": "turns of ≤ 3 words",
    "user_turns": "turns a dialogue",
    "leaving": "leaves",
    "change_uttered": "utters its change",
    "wrong_confirmed": "confirms wrong facts",
}
"""Words for the measures that we know, in the order in which they are shown; others follow by name."""
SAME_AS = {"left": "leaving", "words_per_turn": "turn_words"}
"""Measures of tasks that say what a measure of every task says already."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What an estimator had to say about its metric."""

    metric: str
    phase: str
    text: str


@dataclass(frozen=True, slots=True)
class Simulator:
    template: ClassVar[str] = "simulator.jinja"
    profile: Plot | None
    distances: Plot | None
    banded: bool
    """Whether some distance shows what two halves of human data give."""
    exact: bool
    """Whether the human is a program, whose exact probabilities are known."""
    remarks: list[Remark]


def view(run: RunFiles) -> Simulator:
    simulator = mapping(run.summary, "simulator")
    measures, panels = _profile(simulator), _distances(simulator)
    return Simulator(
        profile=Plot.of(plots.profile(measures), "profile of simulator and human") if measures else None,
        distances=Plot.of(plots.distance(panels), "NLL, classifier accuracy and exact distances") if panels else None,
        banded=any(panel.band for panel in panels),
        exact=any("exact_tv" in mapping(simulator, phase) for phase in CALIBRATION),
        remarks=_remarks(simulator),
    )


def _profile(simulator: dict[str, Any]) -> dict[str, dict[str, Interval]]:
    """Measures by their title, then by whom."""
    by_source = {source: mapping(simulator, source, "profile") for source in plots.SOURCES}
    names = list(dict.fromkeys(name for measures in by_source.values() for name in measures))
    names = [name for name in names if SAME_AS.get(name) not in names]
    profile: dict[str, dict[str, Interval]] = {}
    for name in sorted(names, key=lambda name: [*MEASURES, name].index(name)):
        values = {source: value for source in by_source if (value := interval(by_source[source].get(name))) is not None}
        if values:
            profile[MEASURES.get(name, name.replace("_", " "))] = values
    return profile


def _distances(simulator: dict[str, Any]) -> list[Distance]:
    """The panels for which there is a metric."""
    low, high = (finite(look_up(simulator, "null_band", bound)) for bound in ("low", "high"))
    on_acts = look_up(simulator, "before", "classifier_accuracy_acts", "null_band")
    by_acts = _before_after(simulator, "classifier_accuracy_acts")
    panels = [
        Distance("NLL of a human turn, nats", _before_after(simulator, "human_turn_nll"), none=None),
        Distance("NLL of a byte, nats", _before_after(simulator, "nll_per_byte"), none=None),
        Distance("classifier on words", _before_after(simulator, "classifier_accuracy"), none=0.5, top=1.0,
                 band=None if low is None or high is None else (low, high)),
        Distance("classifier on acts", by_acts, none=0.5, top=1.0,
                 band=tuple(on_acts) if isinstance(on_acts, list) else None),
        Distance("total variation, exact", _before_after(simulator, "exact_tv"), top=1.0),
        Distance("KL(human, simulator), exact, nats", _before_after(simulator, "exact_kl")),
    ]  # fmt: skip
    return [panel for panel in panels if panel.by_source]


def _before_after(simulator: dict[str, Any], key: str) -> dict[str, Interval]:
    values = {phase: interval(look_up(simulator, phase, key)) for phase in CALIBRATION}
    return {phase: value for phase, value in values.items() if value is not None}


def _remarks(simulator: dict[str, Any]) -> list[Remark]:
    remarks = []
    for phase in CALIBRATION:
        for name, metric in mapping(simulator, phase).items():
            notes = look_up(metric, "notes")
            for text in notes if isinstance(notes, list) else []:
                remarks.append(Remark(name.replace("_", " "), phase, str(text)))
    return remarks
