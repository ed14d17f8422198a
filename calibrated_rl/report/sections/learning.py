"""Curves of reward, success and length while the arms train."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.plots import results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.views import Plot

METRICS = ("reward", "success", "turns")
"""All others are shown under optimisation."""


@dataclass(frozen=True, slots=True)
class Learning:
    template: ClassVar[str] = "learning.jinja"
    plot: Plot | None


def view(run: RunFiles) -> Learning:
    panels = run.curves(METRICS)
    fig = results.curves(panels, columns=min(len(panels), 3)) if panels else None
    return Learning(Plot.of(fig, "Learning curves") if fig else None)
