"""Held-out reward of every arm: greedy, sampled, and with users of another population than the logged one."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.plots import results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, interval, look_up
from calibrated_rl.report.views import Plot


@dataclass(frozen=True, slots=True)
class HeldOut:
    template: ClassVar[str] = "held_out.jinja"
    plot: Plot | None


EVALUATIONS = {"held_out_greedy": "greedy", "held_out": "sampled", "held_out_shifted": "sampled, shifted population"}


def view(run: RunFiles) -> HeldOut:
    rewards: dict[str, dict[str, Interval]] = {}
    for arm, metrics in run.arms().items():
        read = {name: interval(look_up(metrics, key, "reward")) for key, name in EVALUATIONS.items()}
        if known := {name: value for name, value in read.items() if value is not None}:
            rewards[arm] = known
    return HeldOut(Plot.of(results.forest(rewards), "Held-out reward") if rewards else None)
