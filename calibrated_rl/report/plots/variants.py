"""The plot of a study's variants along one number. Called within ``plot_style``."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrated_rl.report.arms import in_order, style
from calibrated_rl.report.plots.drawing import INK, figure
from calibrated_rl.report.values import Interval

Points = Sequence[tuple[float, Interval]]


def sweep(setting: str, rewards: Mapping[str, Points], differences: Points) -> Figure:
    """Held-out reward of each arm against the setting, and beside it what calibration is worth there.

    Args:
        rewards: by arm, (value of the setting, reward), ascending. May be empty.
        differences: the paired differences calibrated − interactive, likewise.
    """
    fig = figure(8.6, 3.1)
    panels = [panel for panel in (rewards, differences) if panel]
    grid = list(fig.subplots(1, len(panels), squeeze=False, width_ratios=[1.25, 1.0][: len(panels)])[0])
    if rewards:
        axes = grid.pop(0)
        values = [x for points in rewards.values() for x, _ in points]
        step = 0.012 * (max(values) - min(values))
        arms = in_order(rewards)
        for position, arm in enumerate(arms):
            look = style(arm)
            # Side by side, so that no interval hides another.
            spread_points = [(x + (position - (len(arms) - 1) / 2) * step, value) for x, value in rewards[arm]]
            _line(axes, spread_points, look.color, look.marker, look.label)
        _label(axes, setting, "held-out reward", values)
        fig.legend(loc="outside upper left", ncols=min(len(arms), 5))
    if differences:
        axes = grid.pop(0)
        axes.axhline(0, color="#8A8A86", linewidth=1, zorder=1)
        _line(axes, differences, INK, "o", "")
        _label(axes, setting, "calibrated − interactive, paired", [x for x, _ in differences])
    return fig


def _line(axes: Axes, points: Points, color: str, marker: str, label: str) -> None:
    errors = [[value.errors[side] for _, value in points] for side in (0, 1)]
    means = [value.mean for _, value in points]
    axes.errorbar([x for x, _ in points], means, yerr=errors, color=color, marker=marker, ms=6, elinewidth=1.4,
                  label=label)  # fmt: skip


def _label(axes: Axes, setting: str, title: str, values: Sequence[float]) -> None:
    axes.set_title(title)
    axes.set_xlabel(setting)
    if len(set(values)) <= 8:
        axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
