"""The plot of ``jobs/validate_theory.py``: what the exact world says about bounds and estimators, on one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from calibrated_rl.report.plots.drawing import figure, plot_style
from research.theory.theory import HORIZON, SMALL_SHIFT, Point, gaps

COLOURS = {
    "persistent": "#2F6DB3",
    "forgetting": "#3C9A6A",
    "tight": "#2B2B2B",
    "echo": "#C9822B",
    "synonyms": "#9A9A96",
}
LABELS = {
    "persistent": "persistent (a dialogue can be lost)",
    "forgetting": "forgetting (random machines)",
    "tight": "tight (every deviation loses all)",
    "echo": "echo (nothing is remembered)",
    "synonyms": "synonyms (costs nothing)",
}
REWARD_TITLES = {"per_turn": "rewards turn by turn", "terminal": "one terminal reward"}
Found = Mapping[str, Mapping[float, list[Point]]]


def draw(file: Path, result: Mapping[str, Any], points: Found) -> None:
    """Twelve panels, written as PNG to ``file``.

    Args:
        result: what ``jobs/validate_theory.py`` writes.
        points: the points behind it, ``theory.all_points``.
    """
    with plot_style():
        page = figure(14, 16)
        panels = page.subplots(4, 3)
        for column, reward in enumerate(("per_turn", "terminal")):
            _growth(panels[0, column], points, reward)
            _saturation(panels[1, column], points, reward)
            _trainings(panels[3, column], points, result["regret"], reward)
        _regret_by_shift(panels[3, 2], result["regret"])
        _bound(panels[0, 2], points)
        _slope(panels[1, 2], result)
        _remedies(panels[2, 0], result["remedies"])
        _bias(panels[2, 1], result["by_dialogues"])
        _coverage(panels[2, 2], result)
        page.savefig(file, dpi=110)


def _growth(axes: Axes, points: Found, reward: Any) -> None:
    horizon = np.arange(1, HORIZON + 1)
    for family, colour in COLOURS.items():
        gap = gaps(points[family][SMALL_SHIFT], "interactive", reward)
        axes.plot(horizon, gap.mean(axis=0), color=colour, label=LABELS[family])
        if len(gap) > 4:
            axes.fill_between(horizon, *np.quantile(gap, [0.1, 0.9], axis=0), color=colour, alpha=0.15, linewidth=0)
    bound = SMALL_SHIFT * (horizon * (horizon + 1) / 2 if reward == "per_turn" else horizon)
    axes.plot(horizon, bound, color="#B33A3A", linestyle="--", linewidth=1.2, label="bound")
    caption = f"δ = {SMALL_SHIFT:.4f} in every turn; band: 10-90 %"
    axes.set_title(f"Gap of interactive training, {REWARD_TITLES[reward]}\n({caption})")
    axes.set_xlabel("turns H")
    axes.set_ylabel("gap (units of R)")
    if reward == "per_turn":
        axes.legend(fontsize=7)


def _trainings(axes: Axes, points: Found, regrets: Mapping[str, Any], reward: Any) -> None:
    """Gap of a fixed policy (lines) and regret of the policy that training finds (points), both as a share of what can
    be earned, for static and for interactive training."""
    horizon, shift = np.arange(1, HORIZON + 1), 0.1
    max_return = horizon if reward == "per_turn" else 1
    for training, colour, marker in (("static", "#E69F00", "s"), ("interactive", "#2F6DB3", "o")):
        gap = gaps(points["persistent"][shift], training, reward).mean(axis=0)  # type: ignore[arg-type]
        axes.plot(horizon, gap / max_return, color=colour, label=f"gap, {training}")
        lost = regrets["regret"][training][reward][f"{shift:.4g}"]
        axes.plot(regrets["horizons"], lost, color=colour, marker=marker, linestyle=":", label=f"regret, {training}")
    axes.set_ylim(0, 1)
    axes.set_title(f"Gap of a fixed policy, regret of the trained one\n({REWARD_TITLES[reward]}; shift {shift:g})")
    axes.set_xlabel("turns H")
    axes.set_ylabel("share of what can be earned")
    axes.legend(fontsize=7)


def _regret_by_shift(axes: Axes, regrets: Mapping[str, Any]) -> None:
    """Regret at the longest horizon against the size of shift."""
    for arm, colour in (("static", "#E69F00"), ("static_q", "#9A9A96"), ("interactive", "#2F6DB3")):
        for reward, style in (("per_turn", "-"), ("terminal", "--")):
            by_shift = regrets["regret"][arm][reward]
            shifts = sorted(by_shift, key=float)
            label = f"{arm}, {REWARD_TITLES[reward]}"
            axes.plot([float(s) for s in shifts], [by_shift[s][-1] for s in shifts], style, color=colour, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    longest = regrets["horizons"][-1]
    axes.set_title(f"Regret of the trained policy at H = {longest}\n(persistent; static_q: by Q of logs)")
    axes.set_xlabel("shift in every turn")
    axes.legend(fontsize=7)


def _saturation(axes: Axes, points: Found, reward: Any) -> None:
    horizon = np.arange(1, HORIZON + 1)
    shifts = sorted(points["persistent"])
    for i, shift in enumerate(shifts):
        gap = gaps(points["persistent"][shift], "interactive", reward).mean(axis=0)
        max_return = horizon if reward == "per_turn" else 1
        colour = (0.10 + 0.12 * i, 0.30 + 0.06 * i, 0.75 - 0.12 * i)
        axes.plot(horizon, gap / max_return, color=colour, label=f"δ = {shift:.2g}")
        slope = (horizon + 1) / 2 if reward == "per_turn" else horizon
        axes.plot(horizon, np.minimum(shift * slope, 1.2), color=colour, linestyle=":", linewidth=1)
    axes.set_ylim(0, 1.05)
    axes.set_title(f"Saturation, {REWARD_TITLES[reward]}\n(persistent; dotted: bound)")
    axes.set_xlabel("turns H")
    axes.set_ylabel("gap / the most a dialogue can earn")
    axes.legend(fontsize=7)


def _bound(axes: Axes, points_by_family: Found) -> None:
    for family, colour in COLOURS.items():
        points = [p for at_shift in points_by_family[family].values() for p in at_shift]
        gap, bound = (np.concatenate([getattr(p, name)[4::5] for p in points]) for name in ("gap", "bound"))
        is_positive = (gap > 1e-7) & (bound > 1e-7)
        axes.scatter(
            bound[is_positive], gap[is_positive], s=3, alpha=0.35, color=colour, label=LABELS[family].split(" ")[0]
        )
    limits = [1e-4, 1e3]
    axes.plot(limits, limits, color="#B33A3A", linestyle="--", linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=[1e-6, 1e3], xlabel="bound", ylabel="exact gap")
    for axis in (axes.xaxis, axes.yaxis):
        # The report's style reads no mathematics, in which matplotlib would write powers of ten.
        axis.set_major_locator(LogLocator(numticks=5))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title("No gap exceeds its bound\n(every 5th horizon; all trainings and rewards)")
    axes.legend(fontsize=7, markerscale=3)


def _slope(axes: Axes, result: Mapping[str, Any]) -> None:
    for family in ("persistent", "forgetting"):
        for reward, style in (("per_turn", "-"), ("terminal", "--")):
            rows = result["growth_by_family"][family]["interactive"][reward]["local_slope"]
            rows_with_mean = [row for row in rows if row["mean"] is not None and row["horizon"] >= 3]
            horizon = [row["horizon"] for row in rows_with_mean]
            label = f"{family}, {REWARD_TITLES[reward]}"
            axes.plot(horizon, [row["mean"] for row in rows_with_mean], style, color=COLOURS[family], label=label)
            low, high = ([row[side] for row in rows_with_mean] for side in ("low", "high"))
            axes.fill_between(horizon, low, high, color=COLOURS[family], alpha=0.15, linewidth=0)
    axes.set_ylim(-1, 3)
    axes.set_title("Local slope of log gap on log H\n(interactive; band: 95 % over constructions)")
    axes.set_xlabel("turns H")
    axes.legend(fontsize=7)


def _remedies(axes: Axes, remedies: Mapping[str, Any]) -> None:
    table = np.array(remedies["per_turn"]["same_sign"] or remedies["per_turn"]["gap"])
    image = axes.imshow(table, cmap="Blues", origin="upper")
    shares = [f"{share:g}" for share in remedies["shares"]]
    axes.set_xticks(range(len(shares)), shares)
    axes.set_yticks(range(len(shares)), shares)
    for i, j in np.ndindex(table.shape):
        shade = "white" if table[i, j] > table.max() / 2 else "black"
        axes.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center", color=shade, fontsize=7)
    axes.grid(False)
    axes.set_xlabel("share of δ left (calibration →)")
    axes.set_ylabel("share of ε left (interaction ↓)")
    axes.set_title(f"Gap at H = {remedies['horizon']}, δ = ε = {remedies['shift']:g} at first\n(errors of one sign)")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _bias(axes: Axes, curve: Mapping[str, Any]) -> None:
    colours = {
        "delta_tv_plug_in": "#B33A3A",
        "delta_tv_counts": "#2F6DB3",
        "delta_tv_probabilities": "#3C9A6A",
        "delta_table_classifier": "#9A9A96",
    }
    counts = np.array(curve["dialogues"])
    for name, colour in colours.items():
        rows = curve["estimators"][name]
        bias, width = (np.array([row[key] for row in rows]) for key in ("bias", "width"))
        axes.plot(counts, bias, color=colour, marker="o", markersize=3, label=name.removeprefix("delta_"))
        if "classifier" not in name:
            axes.fill_between(counts, bias - width / 2, bias + width / 2, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(0, color="#2B2B2B", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("dialogues")
    axes.set_title(f"Bias of estimates of δ = {curve['shift']:g}\n(band: mean interval; classifier: its lower limit)")
    axes.legend(fontsize=7)


def _coverage(axes: Axes, result: Mapping[str, Any]) -> None:
    bars = [(name, share, "#2F6DB3") for name, share in result["coverage"].items()]
    bars += [(name, row["share"], "#D9A5A5") for name, row in result["plug_ins"].items()]
    bars += [(f"{name} (below)", share, "#3C9A6A") for name, share in result["lower_bounds"].items()]
    names, shares, colours = zip(*reversed(bars), strict=True)
    axes.barh(names, shares, color=colours)
    axes.axvline(0.90, color="#2B2B2B", linestyle="--", linewidth=1)
    axes.axvline(0.95, color="#2B2B2B", linestyle=":", linewidth=1)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlim(0, 1)
    axes.grid(False, axis="y")
    axes.set_title("Share of 95 % intervals that contain the truth\n(red: plug-ins, for contrast; green: lower bounds)")
