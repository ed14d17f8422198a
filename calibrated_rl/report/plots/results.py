"""Plots of what the arms are worth: held-out reward, paired differences, learning curves, endings.

Each function takes plain data that is not empty and returns a figure; called within ``plot_style``.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill as filled_lines
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrated_rl.report.arms import in_order, pair_label, style
from calibrated_rl.report.plots.drawing import INK, figure, horizontal_only, zero_line
from calibrated_rl.report.run_files import Curve
from calibrated_rl.report.values import Interval, number

_ENDING_COLORS = ("#4C78A8", "#E8B04A", "#B5534C", "#72A98F", "#9C86B8", "#7F7F7F", "#C58F6E", "#A9C4DE")


_FILLS: Sequence[Literal["full", "left", "none"]] = ("full", "left", "none")
"""Of markers: whole, half, and hollow."""


def forest(rows: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Held-out reward by arm and evaluation, each with its interval; the evaluations in one order, the first filled."""
    arms = in_order(rows)
    shown = list(dict.fromkeys(name for arm in arms for name in rows[arm]))
    fig = figure(8.6, 0.8 + (0.3 + 0.08 * len(shown)) * len(arms))
    axes = fig.subplots()
    offsets = np.linspace(-0.22, 0.22, len(shown)) if len(shown) > 1 else np.zeros(1)
    fills = _FILLS[: len(shown)]
    for row, arm in enumerate(arms):
        look = style(arm)
        for offset, fill, name in zip(offsets, fills, shown, strict=True):
            if name in rows[arm]:
                _whisker(axes, rows[arm][name], row + offset, look.color, look.marker, fill)
    if len(shown) > 1:
        for fill, name in zip(fills, shown, strict=True):
            axes.plot([], [], "o", color=INK, fillstyle=fill, mfcalt="white", ms=5, label=name)
        fig.legend(loc="outside upper right", ncols=len(shown))
    axes.set_yticks(range(len(arms)), [style(arm).label for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("held-out reward, mean and 95 % CI")
    horizontal_only(axes)
    return fig


def paired(panels: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Differences of held-out reward over the same scenarios and users, one panel a way to decode; 0 means no
    difference."""
    pairs = list(dict.fromkeys(pair for differences in panels.values() for pair in differences))
    fig = figure(8.6, 0.9 + 0.36 * len(pairs))
    grid = fig.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, differences) in zip(grid, panels.items(), strict=True):
        _differences(axes, {pair: differences[pair] for pair in pairs if pair in differences}, pairs)
        if len(panels) > 1:
            axes.set_title(name)
    grid[0].set_yticks(range(len(pairs)), [pair_label(pair) for pair in pairs])
    grid[0].set_ylim(len(pairs) - 0.5, -0.5)
    fig.supxlabel("difference in held-out reward, mean and 95 % CI", fontsize=8.5)
    return fig


def _differences(axes: Axes, differences: Mapping[str, Interval], pairs: Sequence[str]) -> None:
    zero_line(axes)
    for pair, value in differences.items():
        row, look = pairs.index(pair), style(pair.split("-")[0])
        _whisker(axes, value, row, look.color, look.marker, "full" if value.excludes_zero else "none")
        label_x = value.high if value.high is not None else value.mean
        axes.annotate(
            number(value.mean, sign=True),
            (label_x, row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.margins(x=0.12)
    horizontal_only(axes)


def _whisker(axes: Axes, value: Interval, row: float, color: str, marker: str, fill: str) -> None:
    """``fill``: one of ``_FILLS``."""
    low, high = value.errors
    axes.errorbar(
        value.mean, row, xerr=[[low], [high]], fmt=marker, color=color, mfc="white" if fill == "none" else color,
        mfcalt="white", fillstyle="left" if fill == "left" else "full", ms=7, mew=1.4, elinewidth=1.8, capsize=0,
        zorder=3,
    )  # fmt: skip


def curves(panels: Mapping[str, Mapping[str, Curve]], columns: int) -> Figure:
    """Small multiples: one panel a metric (``panels[metric][arm]``), one line an arm.

    A line is the mean over seeds, smoothed by a running mean once it is long; the faint line behind it is not
    smoothed, and the faint band spans the seeds.
    """
    arms = in_order(arm for by_arm in panels.values() for arm in by_arm)
    rows = -(-len(panels) // columns)
    fig = figure(8.6, 0.55 + (2.5 if columns < 3 else 1.75) * rows)
    grid = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, by_arm) in zip(grid, panels.items(), strict=False):
        for arm in in_order(by_arm):
            _curve(axes, by_arm[arm], arm)
        axes.set_title(filled_lines(name.replace("_", " "), 24 if columns > 3 else 40))
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        axes.yaxis.get_major_locator().set_params(nbins=5)
        _calm(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    fig.supxlabel("update", fontsize=8.5)
    handles = []
    for arm in arms:
        look = style(arm)
        handles += grid[0].plot([], [], color=look.color, marker=look.marker, ms=5, label=look.label)
    fig.legend(handles=handles, loc="outside upper left", ncols=min(len(arms), 5))
    return fig


def _calm(axes: Axes) -> None:
    """Rounding errors are no curve: what stays within a millionth of its size is drawn as flat."""
    low, high = axes.get_ylim()
    size = max(abs(low), abs(high))
    if high - low < 1e-6 * size:
        axes.set_ylim((low + high) / 2 - 0.1 * size, (low + high) / 2 + 0.1 * size)


def _curve(axes: Axes, curve: Curve, arm: str) -> None:
    look = style(arm)
    updates = sorted(curve)
    by_update = [list(curve[update].values()) for update in updates]
    mean = np.array([np.mean(values) for values in by_update])
    if max(len(values) for values in by_update) > 1:
        lows, highs = [min(v) for v in by_update], [max(v) for v in by_update]
        axes.fill_between(updates, lows, highs, color=look.color, alpha=0.12, linewidth=0)
    smooth = running_mean(mean, len(mean) // 12)
    if len(mean) >= 24:
        axes.plot(updates, mean, color=look.color, alpha=0.25, linewidth=0.8)
    every = max(len(updates) // 5, 1)
    axes.plot(updates, smooth, color=look.color, marker=look.marker, ms=4, markevery=every)


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean of each value and up to ``half`` neighbours on either side; [N] to [N]."""
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def endings(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """How held-out dialogues end: one stacked bar an arm; a share under 7 % stays without its number."""
    arms = in_order(shares)
    totals: dict[str, float] = {}
    for by_ending in shares.values():
        for ending, share in by_ending.items():
            totals[ending] = totals.get(ending, 0.0) + share
    kinds = sorted(totals, key=lambda ending: (-totals[ending], ending))
    fig = figure(8.6, 0.95 + 0.34 * len(arms))
    axes = fig.subplots()
    offsets = np.zeros(len(arms))
    for index, ending in enumerate(kinds):
        widths = np.array([shares[arm].get(ending, 0.0) for arm in arms])
        color, hatch = _ending_look(index)
        axes.barh(
            range(len(arms)), widths, left=offsets, height=0.72, color=color, edgecolor="white", hatch=hatch,
            label=ending.replace("_", " "),
        )  # fmt: skip
        for row, width in enumerate(widths):
            if width >= 0.07:
                axes.text(
                    offsets[row] + width / 2, row, f"{100 * width:.0f} %", ha="center", va="center",
                    color=_text_on(color), fontsize=7.5,
                )  # fmt: skip
        offsets += widths
    axes.set_yticks(range(len(arms)), [style(arm).label for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlim(0, max(1.0, float(offsets.max())))
    axes.set_xlabel("share of held-out dialogues")
    horizontal_only(axes)
    axes.grid(False)
    fig.legend(loc="outside upper left", ncols=min(len(kinds), 6))
    return fig


def _ending_look(index: int) -> tuple[str, str]:
    """Colour and hatch of the ending with this rank: the colours repeat, hatched, if there are many."""
    return _ENDING_COLORS[index % len(_ENDING_COLORS)], "///" if index >= len(_ENDING_COLORS) else ""


def _text_on(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
