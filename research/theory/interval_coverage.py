"""How often the intervals of ``statistics/intervals.py`` contain the truth: by simulation, where it is known.

A cell of the table is a population from which whole studies are drawn: how many seeds and scenarios, whether all seeds
meet the same scenarios (crossed) or each its own (nested), and what share of the variance of the mean comes from seeds,
scenarios and noise. Three kinds of score:

- ``normal``: ``mu + a_s + b_k + e_sk``, all normal.
- ``difference``: of two arms that share seeds and scenarios, each of the form above with effects of its own.
- ``binary``: 1 with the probability that a seed has (Beta distributed with mean ``p``) on a scenario; of scenarios a
  share ``common`` is decided once for all seeds.

Where a promise of 95 % cannot be kept, ``why`` says it; the others are expected within ``GOAL``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibrated_rl.statistics.intervals import Floats, limits_over_seeds

GOAL = (0.93, 0.97)
SHARES = (
    (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (4.0, 1.0, 0.0), (1.0, 4.0, 0.0),
    (1.0, 0.0, 4.0), (0.0, 1.0, 4.0),
)  # fmt: skip
"""Of the variance of the mean: seeds, scenarios, noise."""
BINARY = ((0.02, 0.0, 0.0), (0.05, 0.0, 0.0), (0.5, 0.0, 0.0), (0.2, 0.05, 0.0), (0.2, 0.0, 0.5), (0.95, 0.03, 0.3))
"""Mean, standard deviation over seeds, share of scenarios that are decided once for all seeds."""
LEAST_EVENTS = 5.0
"""Of the rarer outcome, expected of scenarios: below, no interval is right that knows only what happened."""
_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One population; see the module's docstring."""

    kind: str
    crossed: bool
    seeds: int
    scenarios: int
    shares: tuple[float, float, float]
    """Of ``SHARES``, or for ``binary`` of ``BINARY``."""

    @property
    def truth(self) -> float:
        return self.shares[0] if self.kind == "binary" else 0.0

    @property
    def why(self) -> str:
        """Why it need not keep its promise; empty where it must."""
        if self.kind == "binary" and self.scenarios * min(self.truth, 1 - self.truth) < LEAST_EVENTS:
            return f"fewer than {LEAST_EVENTS:g} events of the rarer outcome are expected"
        if self.kind == "binary" and self.seeds < 5 and not any(self.shares[1:]):
            return "few values of a mean are possible, and a t of few degrees of freedom is wide beside them"
        return "two seeds" if self.seeds == 2 else ""


def cells(seeds: Sequence[int] = (2, 3, 5, 10), scenarios: Sequence[int] = (100, 400)) -> Iterator[Cell]:
    """The whole table. One seed is there without a variance of seeds, of which it knows nothing."""
    for kind, shares in (("normal", SHARES), ("difference", SHARES), ("binary", BINARY)):
        for crossed in (True, False):
            for share in shares:
                for count in (1, *seeds):
                    varies = share[1] if kind == "binary" else share[0]
                    if count == 1 and (varies or not crossed):
                        continue
                    for k in scenarios:
                        yield Cell(kind=kind, crossed=crossed, seeds=count, scenarios=k, shares=share)


def draw(cell: Cell, studies: int, rng: np.random.Generator) -> Floats:
    """Scores [studies, S, K], or with nested scenarios [studies, S, S K], NaN where a seed did not meet one."""
    size = (studies, cell.seeds, cell.scenarios)
    shared_size = (studies, 1, cell.scenarios) if cell.crossed else size
    if cell.kind == "binary":
        mean, deviation, common = cell.shares
        chance: Any = mean
        if deviation:
            concentration = mean * (1 - mean) / deviation**2 - 1
            chance = rng.beta(mean * concentration, (1 - mean) * concentration, size=(studies, cell.seeds, 1))
        uniform = np.where(rng.random(shared_size) < common, rng.random(shared_size), rng.random(size))
        scores = (uniform < chance).astype(np.float64)
    else:
        scores = _effects(cell, shared_size, size, rng)
        if cell.kind == "difference":
            scores = scores - _effects(cell, shared_size, size, rng)
    if cell.crossed or cell.seeds == 1:
        return scores
    nested = np.full((studies, cell.seeds, cell.seeds, cell.scenarios), np.nan)
    index = np.arange(cell.seeds)
    nested[:, index, index] = scores
    return nested.reshape(studies, cell.seeds, -1)


def _effects(cell: Cell, shared_size: tuple[int, ...], size: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Scores of which the mean has the cell's shares as variance, scenarios of all seeds being the same or not."""
    studies, seeds, scenarios = size
    of_seeds, of_scenarios, of_noise = cell.shares
    different = scenarios if cell.crossed else seeds * scenarios
    return np.asarray(
        math.sqrt(of_seeds * seeds) * rng.normal(size=(studies, seeds, 1))
        + math.sqrt(of_scenarios * different) * rng.normal(size=shared_size)
        + math.sqrt(of_noise * seeds * scenarios) * rng.normal(size=size)
    )


def row(cell: Cell, studies: int, seed: int) -> dict[str, Any]:
    """The cell with its ``coverage`` over so many studies, the mean ``width`` of the interval, ``ideal``, the width of
    one that knows the variance of the mean, and whether the coverage is ``expected`` to be within ``GOAL``."""
    rng = np.random.default_rng([seed, cell.seeds, cell.scenarios, int(cell.crossed), *map(ord, cell.kind)])
    inside, width, means = [], [], []
    at_once = max(1, _CHUNK // (cell.seeds * cell.scenarios * (1 if cell.crossed else cell.seeds)))
    for start in range(0, studies, at_once):
        mean, low, high = limits_over_seeds(draw(cell, min(at_once, studies - start), rng))
        inside.append((low <= cell.truth) & (cell.truth <= high))
        width.append(high - low)
        means.append(mean)
    return {
        **asdict(cell),
        "coverage": float(np.concatenate(inside).mean()),
        "width": float(np.concatenate(width).mean()),
        "ideal": 2 * 1.96 * float(np.concatenate(means).std()),
        "studies": studies,
        "why": cell.why,
    }


def table(studies: int, seed: int) -> list[dict[str, Any]]:
    """All cells. At 2,000 studies a coverage of 95 % has a standard error of 0.5 points."""
    return [row(cell, studies, seed) for cell in cells()]


def misses(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows outside ``GOAL`` by more than chance (two standard errors), though nothing excuses them."""
    return [
        each
        for each in rows
        if not each["why"]
        and not (
            GOAL[0] - 2 * math.sqrt(GOAL[0] * (1 - GOAL[0]) / each["studies"])
            <= each["coverage"]
            <= GOAL[1] + 2 * math.sqrt(GOAL[1] * (1 - GOAL[1]) / each["studies"])
        )
    ]


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The table as lines: for each population the coverages in percent, by number of scenarios and of seeds."""
    lines = []
    for kind in dict.fromkeys(each["kind"] for each in rows):
        unit = "mean, sd of seeds, common scenarios" if kind == "binary" else "variances: seeds, scenarios, noise"
        of_kind = [each for each in rows if each["kind"] == kind]
        columns = sorted({(each["scenarios"], each["seeds"]) for each in of_kind})
        lines.append(f"{kind} ({unit}); columns: scenarios/seeds " + " ".join(f"{k}/{s}" for k, s in columns))
        for crossed, shares in dict.fromkeys((each["crossed"], each["shares"]) for each in of_kind):
            coverages = {
                (each["scenarios"], each["seeds"]): each["coverage"]
                for each in of_kind
                if each["crossed"] is crossed and each["shares"] == shares
            }
            cells_text = [f"{100 * coverages[column]:6.1f}" if column in coverages else "     –" for column in columns]
            name = ", ".join(f"{share:g}" for share in shares)
            lines.append(f"  {'crossed' if crossed else 'nested ':<8} {name:<14}" + "".join(cells_text))
    return "\n".join(lines)
