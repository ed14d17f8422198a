"""Held-out reward of every arm, with the human users that were logged and with others."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.plots import results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import interval, look_up
from calibrated_rl.report.views import Plot


@dataclass(frozen=True, slots=True)
class HeldOut:
    template: ClassVar[str] = "held_out.jinja"
    plot: Plot | None


def view(run: RunFiles) -> HeldOut:
    rewards = {}
    for arm, metrics in run.arms().items():
        same_population, shifted_population = (
            interval(look_up(metrics, key, "reward")) for key in ("held_out", "held_out_shifted")
        )
        if same_population is not None or shifted_population is not None:
            rewards[arm] = (same_population, shifted_population)
    return HeldOut(Plot.of(results.forest(rewards), "Held-out reward") if rewards else None)
