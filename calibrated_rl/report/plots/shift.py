"""Plots of what an arm measured of its distance from real dialogues while it trained. Called within ``plot_style``."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from calibrated_rl.report.arms import answers_to_a_simulator, style
from calibrated_rl.report.plots.drawing import INK, figure
from calibrated_rl.report.values import Interval

Points = Sequence[tuple[float, Interval]]
Map = Mapping[int, Sequence[tuple[int, Interval]]]
"""By update: figures by turn."""


def heat_maps(panels: Mapping[str, Mapping[str, Map]], band: tuple[float, float] | None) -> Figure:
    """``panels[figure][arm]``: turn against training step, one row a figure, one column an arm; 0 to 1 in all.
    ``band``, what a classifier finds between two halves of the human dialogues, is marked on the scale."""
    arms = list(dict.fromkeys(arm for by_arm in panels.values() for arm in by_arm))
    fig = figure(8.6, 0.5 + 1.9 * len(panels))
    grid = fig.subplots(len(panels), len(arms), squeeze=False)
    last_map: AxesImage | None = None
    for row, (title, by_arm) in zip(grid, panels.items(), strict=True):
        for axes, arm in zip(row, arms, strict=True):
            axes.grid(False)
            # In two lines: names of figures and arms are too long for one line beside those of their neighbours.
            axes.set_title(f"{title}\n{style(arm).label}")
            if arm not in by_arm:
                words = "none by construction" if not answers_to_a_simulator(arm) else "not measured"
                axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
                axes.set_xticks([])
                axes.set_yticks([])
                continue
            last_map = _heat_map(axes, by_arm[arm])
    if last_map is not None:
        scale = fig.colorbar(last_map, ax=grid, shrink=0.8, label="total variation")
        if band is not None:
            scale.ax.axhspan(*band, facecolor="none", edgecolor="#0072B2", linewidth=1.6, hatch="////")
    return fig


def _heat_map(axes: Axes, by_update: Map) -> AxesImage:
    updates = sorted(by_update)
    turns = sorted({turn for values in by_update.values() for turn, _ in values})
    table = np.full((len(turns), len(updates)), np.nan)
    for column, update in enumerate(updates):
        for turn, value in by_update[update]:
            table[turns.index(turn), column] = value.mean
    image = axes.imshow(table, aspect="auto", origin="lower", vmin=0.0, vmax=1.0, cmap="magma_r")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            color = "white" if value > 0.55 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=6.5)
    axes.set_xticks(range(len(updates)), [str(update) for update in updates])
    axes.set_yticks(range(len(turns)), [str(turn) for turn in turns])
    axes.set_xlabel("update")
    axes.set_ylabel("turn")
    return image


def over_training(
    bounds: Mapping[str, Points],
    exploitation: Mapping[str, Points],
    halves: Mapping[str, tuple[float, float]],
    word: str,
    band: tuple[float, float] | None,
    aligned: Mapping[str, Sequence[int]],
) -> Figure:
    """The bound (or index) and exploitation of each arm over training, and the bound's early and late part.

    Args:
        halves: by arm, the early and the late part of its last figure.
        word: what the first figure may be called.
        band: of the first metric, between two halves of the human dialogues; None where it is exact.
        aligned: by arm, the updates before which its simulator was aligned again; marked by dotted lines.
    """
    fig = figure(8.6, 2.8)
    bound_axes, exploitation_axes, halves_axes = fig.subplots(1, 3, width_ratios=[1.1, 1.1, 0.8])
    for axes, lines, title in ((bound_axes, bounds, word), (exploitation_axes, exploitation, "exploitation")):
        for arm, points in lines.items():
            look = style(arm)
            errors = [[value.errors[side] for _, value in points] for side in (0, 1)]
            axes.errorbar(
                [x for x, _ in points], [value.mean for _, value in points], yerr=errors, color=look.color,
                marker=look.marker, ms=5, elinewidth=1.2,
            )  # fmt: skip
        for arm in lines:
            for update in aligned.get(arm, ()):
                axes.axvline(update, color=style(arm).color, linestyle=":", linewidth=1, alpha=0.7, zorder=1)
        axes.set_title(title)
        axes.set_xlabel("update")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if band is not None:
        bound_axes.axhspan(*band, color="#BDBDB8", alpha=0.55, linewidth=0, zorder=0)
    exploitation_axes.axhline(0, color="#8A8A86", linewidth=1, zorder=1)
    for position, (arm, (early, late)) in enumerate(halves.items()):
        halves_axes.bar(position, early, color=style(arm).color, width=0.62)
        halves_axes.bar(position, late, bottom=early, color=style(arm).color, alpha=0.45, width=0.62)
    halves_axes.set_xticks(range(len(halves)), [style(arm).label for arm in halves], rotation=20)
    halves_axes.set_title("last: early turns, late (pale)")
    handles = []
    for arm in dict.fromkeys((*bounds, *exploitation)):
        look = style(arm)
        handles += bound_axes.plot([], [], color=look.color, marker=look.marker, ms=5, label=look.label)
    fig.legend(handles=handles, loc="outside upper left", ncols=max(1, min(len(handles), 5)))
    return fig


def estimated_and_exact(by_arm: Mapping[str, tuple[Points, Points]], band: tuple[float, float] | None) -> Figure:
    """By turn at the last measurement: what the classifier found, and what is true, for each arm."""
    fig = figure(8.6, 2.6)
    grid = fig.subplots(1, len(by_arm), squeeze=False, sharey=True)[0]
    for axes, (arm, (estimated, exact)) in zip(grid, by_arm.items(), strict=True):
        if band is not None:
            axes.axhspan(*band, color="#BDBDB8", alpha=0.55, linewidth=0, zorder=0)
        for points, marker, label in ((exact, "o", "exact"), (estimated, "s", "classifier")):
            errors = [[value.errors[side] for _, value in points] for side in (0, 1)]
            axes.errorbar(
                [x for x, _ in points], [value.mean for _, value in points], yerr=errors, marker=marker, ms=5,
                color=style(arm).color, mfc="white" if label == "classifier" else style(arm).color,
                linestyle="--" if label == "classifier" else "-", elinewidth=1.2, label=label,
            )  # fmt: skip
        axes.set_title(style(arm).label)
        axes.set_xlabel("user turn")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0].set_ylabel("total variation")
    grid[0].legend()
    return fig
