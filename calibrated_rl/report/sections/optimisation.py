"""Curves of everything else that was logged while the arms trained: losses, divergences, whatever a part logs.

Metrics that the run names under ``report.metrics`` come first and always get a panel; the rest fills what is left.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.plots import results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.sections import learning
from calibrated_rl.report.values import look_up
from calibrated_rl.report.views import Plot

FIRST = (
    "loss", "kl_update_k3", "kl_sampler_k3", "effective_sample_share", "entropy", "grad_norm", "groups_with_signal",
    "clip_high_share", "clip_low_share", "masked_share", "mismatch_max", "calibration_effective_share",
    "simulator_monitor_nll",
)  # fmt: skip
"""Ahead of the others, which follow by alphabet."""
MOST_PANELS = 16
PER_TURN = re.compile(r"_turn_\d+$")


@dataclass(frozen=True, slots=True)
class Optimisation:
    template: ClassVar[str] = "optimisation.jinja"
    plot: Plot | None
    without_panel: list[str]
    """Metrics that are in the run's table alone."""
    never_logged: list[str]
    """Metrics that the run wanted to see and that nothing logged."""


def view(run: RunFiles) -> Optimisation:
    requested = _requested_metrics(run)
    logged = dict.fromkeys(name for by_name in run.metrics.values() for name in by_name)
    other_metrics = [name for name in logged if name not in (*learning.METRICS, *requested)]
    # One curve for each turn of the dialogue would leave no panel for anything else.
    without_turn = [name for name in other_metrics if not PER_TURN.search(name)]
    by_turn = [PER_TURN.sub("_turn_1, 2, ...", name) for name in other_metrics if name not in without_turn]
    requested_logged = [name for name in requested if name in logged]
    order = [*requested_logged, *_ordered(without_turn)]
    n_panels = max(MOST_PANELS, len(requested_logged))
    panels = run.curves(order[:n_panels])
    return Optimisation(
        plot=Plot.of(results.curves(panels, columns=4), "Optimisation") if panels else None,
        without_panel=[*order[n_panels:], *dict.fromkeys(by_turn)],
        never_logged=[name for name in requested if name not in logged],
    )


def _requested_metrics(run: RunFiles) -> list[str]:
    names = look_up(run.config, "report", "metrics")
    return list(dict.fromkeys(map(str, names))) if isinstance(names, list) else []


def _ordered(names: Iterable[str]) -> list[str]:
    """``names`` without repeats, those in ``FIRST`` first, the rest by alphabet."""
    remaining = set(names)
    return [name for name in FIRST if name in remaining] + sorted(remaining.difference(FIRST))
