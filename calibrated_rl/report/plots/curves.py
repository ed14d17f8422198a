"""One metric of several runs, against updates or against the time that training took."""

from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calibrated_rl.report.plots.drawing import figure
from calibrated_rl.report.plots.results import running_mean

COLORS = ("#1B5E8C", "#C4542B", "#3D8B5F", "#8A5AA8", "#A8842C", "#5B6670")
LINES = ("-", "--", ":")


class Line(NamedTuple):
    """One run."""

    at: NDArray[np.float64]
    """Update, or seconds since training began, at which each value was there: [N]."""
    values: NDArray[np.float64]
    """[N]"""


def lines(by_name: Mapping[str, Line], metric: str, against: str) -> Figure:
    """A line a run, smoothed by a running mean; the faint line behind it is not smoothed."""
    fig = figure(8.6, 4.2)
    axes = fig.subplots()
    looks = cycle((color, line) for line in LINES for color in COLORS)
    for (name, line), (color, stroke) in zip(by_name.items(), looks, strict=False):
        axes.plot(line.at, line.values, color=color, alpha=0.2, linewidth=0.8)
        smooth = running_mean(line.values, max(1, len(line.values) // 12))
        axes.plot(line.at, smooth, color=color, linestyle=stroke, label=name)
    axes.set_xlabel(against)
    axes.set_ylabel(metric.replace("_", " "))
    fig.legend(loc="outside upper left", ncols=4)
    return fig
