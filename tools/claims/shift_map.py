"""Who wins where: held-out reward over the sizes of both shifts, and whether the theory's sum predicts it.

    python jobs/shift_map.py runs/frontdesk_map --out docs/results/frontdesk_map.json --picture frontdesk_map.png

Reads a study whose variants are the cells of a map (configs/frontdesk_map.yaml): each named SIMULATOR-POLICY after the
size of the shift of its uncalibrated simulator and of its best policy. For each arm a heat map of the greedy held-out
reward. Then, over all cells and arms, an arm's loss against the oracle of its cell is set against the shift that it
suffers, measured in its own last policy: the sum over turns of epsilon for arms that learn from logs, of delta for
those that learn from a simulator (both exact total variations, each turn with the share of dialogues that have it).
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.config.arms import CALIBRATED, INTERACTIVE, ORACLE, STATIC
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
CLONED = "cloned"
ARMS = (CLONED, STATIC, INTERACTIVE, CALIBRATED)
FROM_LOGS = (CLONED, STATIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One arm in one cell, as a mean over seeds."""

    cell: str
    arm: str
    reward: float
    """Greedy, with held-out people."""
    loss: float
    """The oracle's reward less this one's."""
    epsilon: float
    """Sum over turns of the policy-induced shift; 0 for arms that meet a simulator."""
    delta: float
    """Sum over turns of the simulator-induced shift; 0 for arms that learn from logs."""


def parser_of() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of the study")
    parser.add_argument("--out", type=command.result_file(), metavar="FILE", help="write map and regression as JSON")
    parser.add_argument("--picture", type=command.picture, metavar="FILE", help="draw the maps, e.g. map.png")
    return parser


def main() -> int:
    arguments = parser_of().parse_args()
    from calibrated_rl.storage.files import read_json, write_json

    cells = read_cells(arguments.run, read_json)
    points = [point for name, summary in cells.items() for point in points_of(name, summary)]
    found = regression(points)
    won = winners(points)
    result = {"points": [_as_dict(point) for point in points], "regression": found, "winners": won}
    console.result(table(points, won, found))
    if arguments.out is not None:
        write_json(arguments.out, result)
    if arguments.picture is not None:
        from calibrated_rl.report.plots.drawing import plot_style

        with plot_style():
            draw(points).savefig(arguments.picture, dpi=150)
        console.result(f"picture: {arguments.picture.resolve()}")
    return 0


def _as_dict(point: Point) -> dict[str, Any]:
    return {name: getattr(point, name) for name in Point.__slots__}


def read_cells(run: Path, read_json: Any) -> dict[str, Mapping[str, Any]]:
    """Summaries of the finished cells by name.

    Raises:
        UserError: no folder of such a study, or none of its cells is finished.
    """
    folder = run / "variants"
    if not (run / "config.yaml").is_file() and not folder.is_dir():
        raise UserError(f"{run} is no run folder")
    names = sorted(path.parent.name for path in folder.glob("*-*/summary.json"))
    if not names:
        raise UserError(
            f"{run} has no finished cell: variants named SIMULATOR-POLICY, as configs/frontdesk_map.yaml has"
        )
    return {name: read_json(folder / name / "summary.json") for name in names}


def points_of(cell: str, summary: Mapping[str, Any]) -> list[Point]:
    """The arms of one cell that have both a reward and a measured shift.

    Raises:
        UserError: the cell has no oracle.
    """
    arms = summary["arms"]
    if ORACLE not in arms:
        raise UserError(f"the cell {cell} has no oracle to compare with: add it to 'arms'")
    best = _reward(arms[ORACLE])
    points = []
    for arm in ARMS:
        records = [record for record in arms.get(arm, {}).get("shift", ()) if _measured(arm, record)]
        if not records:
            continue
        reward, shift = _reward(arms[arm]), sum_over_turns(records[-1]["policy" if arm in FROM_LOGS else "simulator"])
        epsilon, delta = (shift, 0.0) if arm in FROM_LOGS else (0.0, shift)
        points.append(Point(cell=cell, arm=arm, reward=reward, loss=best - reward, epsilon=epsilon, delta=delta))
    return points


def _measured(arm: str, record: Mapping[str, Any]) -> bool:
    return record.get("policy" if arm in FROM_LOGS else "simulator") is not None


def _reward(arm: Mapping[str, Any]) -> float:
    return float(arm["held_out_greedy"]["reward"]["mean"])


def sum_over_turns(metric: Mapping[str, Any]) -> float:
    """``sum_t P(a dialogue has turn t) * TV_t``; the first turn's count is that of all dialogues."""
    rows = metric["by_turn"]
    return float(sum(row["mean"] * row["count"] for row in rows) / rows[0]["count"])


def regression(points: Sequence[Point], seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Least squares of the loss on both sums and a constant, with 95 % intervals by a bootstrap over cells; and the
    rank correlation (Spearman) of the loss with ``epsilon + delta``, the sum as the theory has it.

    Raises:
        UserError: fewer than three cells.
    """
    import numpy as np
    from scipy.stats import spearmanr

    cells = sorted({point.cell for point in points})
    if len(cells) < 3:
        raise UserError(f"a regression over {len(cells)} cells says nothing: it needs at least 3")
    of_cell = {cell: [point for point in points if point.cell == cell] for cell in cells}

    def fit(sample: Sequence[Point]) -> tuple[Any, float, float]:
        design = np.array([[1.0, point.epsilon, point.delta] for point in sample])
        loss = np.array([point.loss for point in sample])
        coefficients = np.linalg.lstsq(design, loss, rcond=None)[0]
        left = float(((loss - design @ coefficients) ** 2).sum())
        rank = float(spearmanr(design[:, 1] + design[:, 2], loss).statistic)
        return coefficients, 1 - left / float(((loss - loss.mean()) ** 2).sum()), rank

    coefficients, explained, rank = fit(points)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        sample = [point for cell in rng.choice(cells, len(cells)) for point in of_cell[str(cell)]]
        values, share, order = fit(sample)
        drawn.append([*values, share, order])
    low, high = np.nanquantile(np.array(drawn), (0.025, 0.975), axis=0)
    names = ("constant", "epsilon", "delta", "explained", "rank_correlation")
    means = [*coefficients, explained, rank]
    return {
        name: {"mean": float(mean), "low": float(low[i]), "high": float(high[i])}
        for i, (name, mean) in enumerate(zip(names, means, strict=True))
    } | {"cells": len(cells), "points": len(points)}


def winners(points: Sequence[Point]) -> dict[str, Any]:
    """Over all pairs of arms in a cell that differ by more than 0.05 in reward: in how many the one with the smaller
    sum of shifts earns more."""
    right = pairs = 0
    for i, one in enumerate(points):
        for other in points[i + 1 :]:
            more = one.epsilon + one.delta - other.epsilon - other.delta
            if one.cell == other.cell and abs(one.reward - other.reward) > 0.05 and more:
                pairs += 1
                right += (more < 0) == (one.reward > other.reward)
    return {"pairs": pairs, "right": right}


def table(points: Sequence[Point], won: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """One line a cell, and the regression below."""
    arms = [arm for arm in ARMS if any(point.arm == arm for point in points)]
    lines = ["cell                 " + "".join(f"{arm:>13}" for arm in arms)]
    for cell in dict.fromkeys(point.cell for point in points):
        by_arm = {point.arm: point for point in points if point.cell == cell}
        cells = (f"{by_arm[arm].reward:>13.2f}" if arm in by_arm else " " * 12 + "–" for arm in arms)
        lines.append(f"{cell:<21}" + "".join(cells))
    for name in ("epsilon", "delta", "explained", "rank_correlation"):
        value = found[name]
        lines.append(f"{name.replace('_', ' ')}: {value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]")
    lines.append(f"the smaller shift wins in {won['right']} of {won['pairs']} pairs")
    return "\n".join(lines)


def draw(points: Sequence[Point]) -> "Figure":
    """A heat map for each arm (simulator's shift across, the policy's down), and loss against the sum of shifts."""
    import numpy as np

    from calibrated_rl.report.arms import style
    from calibrated_rl.report.plots.drawing import figure

    names = list(dict.fromkeys(point.cell for point in points))
    across, down = (_in_order({name.split("-")[side] for name in names}) for side in (0, 1))
    arms = [arm for arm in ARMS if any(point.arm == arm for point in points)]
    fig = figure(2.4 * (len(arms) + 1), 2.6)
    grid = fig.subplots(1, len(arms) + 1)
    low, high = min(point.reward for point in points), max(point.reward for point in points)
    for axes, arm in zip(grid, arms, strict=False):
        values = np.full((len(down), len(across)), np.nan)
        for point in points:
            if point.arm == arm:
                simulator, policy = point.cell.split("-")
                values[down.index(policy), across.index(simulator)] = point.reward
        axes.imshow(values, vmin=low, vmax=high, cmap="viridis")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
        axes.set_title(style(arm).label)
        axes.set_xticks(range(len(across)), across)
        axes.set_yticks(range(len(down)), down)
        axes.set_xlabel("simulator's shift")
        axes.grid(False)
    grid[0].set_ylabel("policy's shift")
    axes = grid[-1]
    for arm in arms:
        of_arm = [point for point in points if point.arm == arm]
        look = style(arm)
        axes.plot([point.epsilon + point.delta for point in of_arm], [point.loss for point in of_arm], look.marker,
                  color=look.color, ms=5, label=look.label)  # fmt: skip
    axes.set_title("loss against the oracle")
    axes.set_xlabel("measured shift, summed over turns")
    axes.legend(fontsize=7)
    return fig


def _in_order(sizes: set[str]) -> list[str]:
    """Small, medium, large, then others by name."""
    known = ("none", "small", "medium", "large")
    return sorted(sizes, key=lambda size: (known.index(size) if size in known else len(known), size))
