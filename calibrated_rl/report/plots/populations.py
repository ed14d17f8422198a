"""Plots of the simulator's dialogues beside the human ones. Called within ``plot_style`` with data that is not
empty."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from calibrated_rl.report.plots.drawing import figure, vertical_only
from calibrated_rl.report.plots.simulator import SOURCES
from calibrated_rl.report.values import Interval

_WIDTH = 0.36


def similarity(bars: Mapping[str, tuple[Mapping[str, Interval], tuple[float, float] | None]]) -> Figure:
    """``bars[dimension]``: the metric before and after, side by side, over the band of two halves of
    the human dialogues."""
    fig = figure(8.6, 2.6)
    axes = fig.subplots()
    for position, (by_phase, band) in enumerate(bars.values()):
        if band is not None:
            axes.fill_between(
                [position - 0.46, position + 0.46], *band, color="#BDBDB8", alpha=0.55, linewidth=0, zorder=0
            )
        for side, phase in ((-0.5, "before"), (0.5, "after")):
            if phase in by_phase:
                value, (_, color, _) = by_phase[phase], SOURCES[phase]
                axes.bar(position + side * _WIDTH, value.mean, width=_WIDTH * 0.95, color=color, alpha=0.85)
                low, high = value.errors
                axes.errorbar(position + side * _WIDTH, value.mean, yerr=[[low], [high]], color="#1A1A1A", capsize=2.5)
    axes.set_xticks(range(len(bars)), [name.replace("_", " ") for name in bars])
    axes.set_ylabel("0 to 100")
    vertical_only(axes)
    for phase in ("before", "after"):
        axes.bar(0, 0, color=SOURCES[phase][1], alpha=0.85, label=SOURCES[phase][0])
    axes.fill_between([0, 0], 0, 0, color="#BDBDB8", alpha=0.55, label="two halves of the human dialogues")
    fig.legend(loc="outside upper left", ncols=3)
    return fig


def ending(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> Figure:
    """Probability of ending against how often human users ended; the area of a point goes with the turns it stands
    for."""
    fig = figure(3.6, 3.0)
    axes = fig.subplots()
    axes.plot([0, 1], [0, 1], color="#6A6A66", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for phase, points in curves.items():
        label, color, _ = SOURCES[phase]
        largest = max(count for _, _, count in points)
        axes.plot([p for p, _, _ in points], [y for _, y, _ in points], color=color, linewidth=1, label=label)
        axes.scatter([p for p, _, _ in points], [y for _, y, _ in points], color=color,
                     s=[12 + 70 * count / largest for _, _, count in points])  # fmt: skip
    axes.set_xlabel("probability of ending")
    axes.set_ylabel("share that humans ended")
    axes.legend()
    return fig
