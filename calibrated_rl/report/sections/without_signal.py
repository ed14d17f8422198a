"""Updates in which no group's rewards differed, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from calibrated_rl.report.arms import in_order, style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import finite


@dataclass(frozen=True, slots=True)
class EmptyUpdates:
    """What one arm with one seed did not learn from."""

    arm: str
    seed: int
    empty: int
    updates: int
    longest: int
    """Most empty updates in a row."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """Groups of an arm that gave way to others."""

    arm: str
    groups: float
    tokens: float | None
    """Of the policy, a seed."""


@dataclass(frozen=True, slots=True)
class WithoutSignal:
    template: ClassVar[str] = "without_signal.jinja"
    lines: list[EmptyUpdates | Replaced]


def view(run: RunFiles) -> WithoutSignal | None:
    """Nothing where every update had a group whose rewards differed."""
    lines: list[EmptyUpdates | Replaced] = []
    for arm in in_order(run.metrics):
        label = style(arm).label
        for seed, shares in _shares(run, arm).items():
            empty = sum(not share for share in shares)
            if empty:
                lines.append(EmptyUpdates(label, seed, empty, len(shares), _longest(shares)))
        if replaced := _total(run, arm, "groups_discarded"):
            tokens = finite(run.arms().get(arm, {}).get("policy_tokens_discarded"))
            lines.append(Replaced(label, replaced, tokens or None))
    return WithoutSignal(lines) if lines else None


def _shares(run: RunFiles, arm: str) -> dict[int, list[float]]:
    """By seed: the share of groups with a signal in each update."""
    curve = run.metrics[arm].get("groups_with_signal", {})
    seeds = sorted({seed for by_seed in curve.values() for seed in by_seed})
    return {seed: [curve[update][seed] for update in sorted(curve) if seed in curve[update]] for seed in seeds}


def _longest(shares: Sequence[float]) -> int:
    rows = groupby(shares, key=lambda share: not share)
    return max((len(list(row)) for empty, row in rows if empty), default=0)


def _total(run: RunFiles, arm: str, metric: str) -> float:
    return sum(value for by_seed in run.metrics[arm].get(metric, {}).values() for value in by_seed.values())
