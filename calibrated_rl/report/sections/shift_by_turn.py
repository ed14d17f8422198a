"""How far simulator and human are apart at each turn: the classifier's metric and, where the human is a program, the
exact one beside it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.plots import simulator as plots
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import by_turn, finite, look_up, mapping
from calibrated_rl.report.views import CALIBRATION, Plot


@dataclass(frozen=True, slots=True)
class ShiftByTurn:
    template: ClassVar[str] = "shift_by_turn.jinja"
    plot: Plot | None
    is_bound: bool
    """Only where the human is a program may the classifier's metric be called a bound."""
    replies: list[tuple[int, int]]
    """Turn, and on how many human replies its metrics stand; empty where that is not known."""


def view(run: RunFiles) -> ShiftByTurn:
    simulator = mapping(run.summary, "simulator")
    exact = {phase: by_turn(look_up(simulator, phase, "exact_tv", "by_turn")) for phase in CALIBRATION}
    by_classifier = {phase: by_turn(look_up(simulator, phase, "tv_lower_bound_by_turn")) for phase in CALIBRATION}
    is_bound = any(exact.values())
    name = f"{'lower bound' if is_bound else 'shift index'}, from the classifier"
    panels = {}
    for title, by_phase in ((name, by_classifier), ("exact", exact)):
        measured_phases = {phase: values for phase, values in by_phase.items() if values}
        if measured_phases:
            panels[title] = measured_phases
    return ShiftByTurn(
        plot=Plot.of(plots.shift_by_turn(panels), "Shift by turn") if panels else None,
        is_bound=is_bound,
        replies=_replies(simulator),
    )


def _replies(simulator: dict[str, Any]) -> list[tuple[int, int]]:
    for key in ("exact_tv", "classifier_accuracy"):
        rows = look_up(simulator, "after", key, "by_turn")
        pairs = [(finite(look_up(row, "turn")), finite(look_up(row, "count"))) for row in rows or []]
        if pairs:
            return [(int(turn), int(count)) for turn, count in pairs if turn is not None and count is not None]
    return []
