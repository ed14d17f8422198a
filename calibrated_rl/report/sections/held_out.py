"""Held-out reward of every arm, with the people that were logged and with others."""

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
    for arm, figures in run.arms().items():
        same, shifted = (interval(look_up(figures, key, "reward")) for key in ("held_out", "held_out_shifted"))
        if same is not None or shifted is not None:
            rewards[arm] = (same, shifted)
    return HeldOut(Plot.of(results.forest(rewards), "Held-out reward") if rewards else None)
