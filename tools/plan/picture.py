"""Where the time of an update goes, arm by arm: one horizontal bar each."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from calibrated_rl.report.arms import in_order, style
from calibrated_rl.report.plots.drawing import figure, horizontal_only, plot_style
from tools.plan.measured import Measured

PARTS = {
    "rollout": ("waiting for rollouts", "#4C78A8"),
    "learning": ("store, score and learn", "#E8B04A"),
    "sync": ("weight sync", "#B5534C"),
    "measuring": ("measuring shift", "#72A98F"),
    "checkpoint": ("writing a checkpoint", "#7F7F7F"),
    "aligning": ("aligning the simulator again", "#9C86B8"),
}
"""Label and colour of each part, in the order in which they are stacked."""


def step_figure(arms: Sequence[Measured]) -> Figure:
    """The bars; called within ``plot_style``, with at least one arm."""
    by_name = {measured.arm: measured for measured in arms}
    names = in_order(by_name)
    bars = figure(8.6, 1.2 + 0.42 * len(names))
    axes = bars.subplots()
    labelled = set()
    for row, name in enumerate(names):
        seconds, left = by_name[name].seconds_an_update(), 0.0
        for part, (label, color) in PARTS.items():
            if part not in seconds:
                continue
            axes.barh(
                row, seconds[part], left=left, color=color, height=0.62, label=None if part in labelled else label
            )
            labelled.add(part)
            left += seconds[part]
        axes.annotate(f"{left:.2f} s", (left, row), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), [style(name).label for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel("seconds an update, mean; work of some updates only is spread over all")
    bars.legend(loc="outside upper center", ncols=3)
    horizontal_only(axes)
    return bars


def draw(arms: Sequence[Measured], file: Path) -> None:
    """Write the bars as an image, in the format that the name of ``file`` ends with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with plot_style():
        step_figure(arms).savefig(file, dpi=150, facecolor="white")
