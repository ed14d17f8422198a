"""Plots of the simulator before and after calibration, beside the human.

Each function takes plain data that is not empty and returns a figure; called within ``plot_style``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from calibrated_rl.report.arms import AFTER_COLOR, BEFORE_COLOR, HUMAN_COLOR
from calibrated_rl.report.plots.drawing import figure, vertical_only
from calibrated_rl.report.values import Interval, number

SOURCES = {
    "before": ("simulator before", BEFORE_COLOR, ""),
    "after": ("simulator after", AFTER_COLOR, ""),
    "human": ("human", HUMAN_COLOR, "///"),
}
"""Label, colour and hatch."""
_MARKER = {"before": "D", "after": "^", "human": "o"}


def profile(measures: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """How the simulator behaves (``measures[title][source]``): a panel a measure, since their units differ."""
    columns = min(len(measures), 4)
    rows = -(-len(measures) // columns)
    fig = figure(8.6 if columns > 2 else 2.9 * columns, 0.5 + 1.75 * rows)
    grid = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, by_source) in zip(grid, measures.items(), strict=False):
        _bars(axes, by_source)
        axes.set_title(fill(name, 24))
    for axes in grid[len(measures) :]:
        axes.set_visible(False)
    return fig


@dataclass(frozen=True, slots=True)
class Distance:
    """One panel of ``distance``: a figure before and after calibration, and where it lies for perfect similarity."""

    title: str
    by_source: Mapping[str, Interval]
    none: float | None = 0.0
    """The value when nothing separates simulator and human; None where that is not known."""
    top: float | None = None
    """The largest possible value."""
    band: tuple[float, float] | None = None
    """What two halves of human data give."""

    @property
    def lowest(self) -> float:
        """Where its values begin; at 0 where nothing else is known."""
        return min(self.none or 0.0, *(value.mean - value.errors[0] for value in self.by_source.values()),
                   *(self.band or ()))  # fmt: skip

    @property
    def highest(self) -> float:
        return max(value.mean + value.errors[1] for value in self.by_source.values())


def distance(panels: Sequence[Distance]) -> Figure:
    """Likelihood of human turns, accuracy of classifiers, exact distances: a panel each."""
    columns = len(panels) if len(panels) < 5 else 3
    rows = -(-len(panels) // columns)
    fig = figure(8.6 if len(panels) > 2 else 2.9 * columns, 0.15 + 2.0 * rows)
    grid = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _points(axes, panel.by_source)
        if panel.none is not None:
            axes.axhline(panel.none, color="#6A6A66", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if panel.band is not None:
            axes.axhspan(*panel.band, color="#BDBDB8", alpha=0.55, linewidth=0, zorder=0)
        # Panels of one scale (those of the classifiers) share their lower end.
        lowest = min(peer.lowest for peer in panels if (peer.none, peer.top) == (panel.none, panel.top))
        highest = panel.highest if panel.top is None else panel.top
        margin = 0.06 * (highest - lowest or 1.0)
        axes.set_ylim(
            lowest - (0 if panel.none is None else margin), highest + (2 * margin if panel.top is None else margin)
        )
        axes.set_title(panel.title)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return fig


def shift_by_turn(panels: Mapping[str, Mapping[str, Sequence[tuple[int, Interval]]]]) -> Figure:
    """Simulator-induced shift by user turn: ``panels[title][source]``, all in total variation."""
    fig = figure(8.6, 2.7)
    grid = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, by_source) in zip(grid, panels.items(), strict=True):
        for source, values in by_source.items():
            turns, means = [turn for turn, _ in values], [value.mean for _, value in values]
            errors = [[value.errors[side] for _, value in values] for side in (0, 1)]
            axes.errorbar(
                turns, means, yerr=errors, color=SOURCES[source][1], marker=_MARKER[source], ms=6, elinewidth=1.2
            )
        axes.set_title(title)
        axes.set_xlabel("user turn")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0].set_ylim(bottom=min(0.0, grid[0].get_ylim()[0]))
    grid[0].set_ylabel("total variation, 0 to 1")
    handles = []
    for source in dict.fromkeys(source for by_source in panels.values() for source in by_source):
        handles += grid[0].plot(
            [], [], color=SOURCES[source][1], marker=_MARKER[source], ms=6, label=SOURCES[source][0]
        )
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


def _bars(axes: Axes, by_source: Mapping[str, Interval]) -> None:
    present = [source for source in SOURCES if source in by_source]
    if "human" in by_source and (spread := by_source["human"].bounds) is not None:
        axes.axhspan(*spread, color="#BDBDB8", alpha=0.55, linewidth=0, zorder=0)
    for x, source in enumerate(present):
        _, color, hatch = SOURCES[source]
        value = by_source[source]
        low, high = value.errors
        axes.bar(x, value.mean, width=0.68, color=color, alpha=0.85, hatch=hatch, edgecolor="white", linewidth=0)
        axes.errorbar(x, value.mean, yerr=[[low], [high]], color="#1A1A1A", elinewidth=1.2, capsize=2.5)
    axes.set_xticks(range(len(present)), [source.capitalize() for source in present])
    axes.margins(y=0.12)
    vertical_only(axes)


def _points(axes: Axes, by_source: Mapping[str, Interval]) -> None:
    present = [source for source in SOURCES if source in by_source]
    for x, source in enumerate(present):
        value = by_source[source]
        low, high = value.errors
        axes.errorbar(
            x,
            value.mean,
            yerr=[[low], [high]],
            color=SOURCES[source][1],
            fmt=_MARKER[source],
            ms=7,
            elinewidth=1.8,
            zorder=3,
        )
        axes.annotate(number(value.mean), (x, value.mean), xytext=(9, 2), textcoords="offset points")
    axes.set_xticks(range(len(present)), [source.capitalize() for source in present])
    axes.set_xlim(-0.6, len(present) - 0.25)
    vertical_only(axes)
