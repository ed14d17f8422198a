"""Plots of the simulator before and after calibration, beside the human.

Each function takes plain data that is not empty and returns a figure; called within ``plot_style``.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from calibrated_rl.report.arms import AFTER_COLOR, BEFORE_COLOR, HUMAN_COLOR
from calibrated_rl.report.drawing import figure, vertical_only
from calibrated_rl.report.values import Interval, number

WHO = {
    "before": ("simulator before", BEFORE_COLOR, ""),
    "after": ("simulator after", AFTER_COLOR, ""),
    "human": ("human", HUMAN_COLOR, "///"),
}
"""Label, colour and hatch."""


def profile(measures: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """How the simulator behaves (``measures[name][who]``): a panel a measure, since their units differ."""
    columns = min(len(measures), 4)
    rows = -(-len(measures) // columns)
    drawn = figure(8.6 if columns > 2 else 2.9 * columns, 0.5 + 1.75 * rows)
    grid = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, by_who) in zip(grid, measures.items(), strict=False):
        _bars(axes, by_who)
        axes.set_title(name.replace("_", " "))
    for axes in grid[len(measures) :]:
        axes.set_visible(False)
    return drawn


def distance(nll: Mapping[str, Interval], accuracy: Mapping[str, Mapping[str, Interval]],
             null_band: tuple[float, float] | None) -> Figure:  # fmt: skip
    """Negative log-likelihood of human turns, and accuracy of the classifiers that tell simulator from human.

    Args:
        nll: by ``before`` and ``after``, in nats a token; lower is closer. May be empty.
        accuracy: by classifier, then by ``before`` and ``after``; 0.5 is chance. May be empty.
        null_band: accuracy on words between two halves of human data.
    """
    parts: list[tuple[str, Mapping[str, Interval]]] = []
    if nll:
        parts.append(("NLL of human turns", nll))
    parts += [(f"classifier, {name}", by_who) for name, by_who in accuracy.items()]
    drawn = figure(2.85 * len(parts), 2.35)
    for axes, (title, by_who) in zip(drawn.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        is_nll = bool(nll) and by_who is nll
        if not is_nll:
            if null_band is not None and by_who is accuracy.get("words"):
                axes.axhspan(*null_band, color="#BDBDB8", alpha=0.55, linewidth=0, zorder=1)
            axes.axhline(0.5, color="#6A6A66", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            lowest = min([0.5, *(v.mean - v.errors[0] for v in by_who.values()), *(null_band or ())])
            axes.set_ylim(min(lowest - 0.05, 0.4), 1.02)
        _points(axes, by_who)
        axes.set_title(title)
    return drawn


def shift_by_turn(bounds: Mapping[str, Sequence[Interval | None]]) -> Figure:
    """Lower bound on the total variation between simulator and human, by user turn."""
    drawn = figure(8.6, 2.6)
    axes = drawn.subplots()
    for who, values in bounds.items():
        label, color, _ = WHO[who]
        shown = [(turn, value) for turn, value in enumerate(values, start=1) if value is not None]
        turns, means = [turn for turn, _ in shown], [value.mean for _, value in shown]
        errors = [[value.errors[side] for _, value in shown] for side in (0, 1)]
        marker = "D" if who == "before" else "^"
        axes.errorbar(turns, means, yerr=errors, color=color, marker=marker, ms=6, elinewidth=1.2, label=label)
    axes.set_xlabel("user turn")
    axes.set_ylabel("lower bound on TV")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.legend(loc="outside upper left", ncols=2)
    return drawn


def _bars(axes: Axes, by_who: Mapping[str, Interval]) -> None:
    shown = [who for who in WHO if who in by_who]
    for x, who in enumerate(shown):
        _, color, hatch = WHO[who]
        value = by_who[who]
        low, high = value.errors
        axes.bar(x, value.mean, width=0.68, color=color, alpha=0.85, hatch=hatch, edgecolor="white", linewidth=0)
        axes.errorbar(x, value.mean, yerr=[[low], [high]], color="#1A1A1A", elinewidth=1.2, capsize=2.5)
    axes.set_xticks(range(len(shown)), [who.capitalize() for who in shown])
    axes.margins(y=0.12)
    vertical_only(axes)


def _points(axes: Axes, by_who: Mapping[str, Interval]) -> None:
    shown = [who for who in WHO if who in by_who]
    for x, who in enumerate(shown):
        value = by_who[who]
        low, high = value.errors
        marker = "D" if who == "before" else "^"
        axes.errorbar(
            x, value.mean, yerr=[[low], [high]], color=WHO[who][1], fmt=marker, ms=7, elinewidth=1.8, zorder=3
        )
        axes.annotate(number(value.mean), (x, value.mean), xytext=(9, 0), textcoords="offset points", va="center")
    axes.set_xticks(range(len(shown)), [who.capitalize() for who in shown])
    axes.margins(y=0.18)
    axes.set_xlim(-0.6, len(shown) - 0.25)
    vertical_only(axes)
