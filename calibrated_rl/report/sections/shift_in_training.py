"""Shift while training goes on: by turn and training step, the bound, exploitation, and whether figures with the
simulator foretell those with people."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import style
from calibrated_rl.report.plots import shift as plots
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, by_turn, finite, interval, look_up, mapping
from calibrated_rl.report.views import Plot

MAPS = {"policy": "policy shift ε", "simulator": "simulator shift δ", "history_shift": "history shift"}

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""By arm: its measurements, one an update at which it was measured."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Does reward and success with the simulator foretell what people give?"""

    label: str
    policies: str
    success_error: Interval | None
    rank_correlation: Interval | None
    exploitation: Interval | None


@dataclass(frozen=True, slots=True)
class ShiftInTraining:
    template: ClassVar[str] = "shift_in_training.jinja"
    exact: bool
    """Whether δ is exact, so that the bound is one."""
    banded: bool
    """Whether the scale shows what a classifier finds between two halves of people."""
    maps: Plot
    rewards: str
    """Which rewards there are, and so which bound it is: ``terminal``, ``per turn`` or ``terminal and per turn``."""
    over_training: Plot | None
    estimated_and_exact: Plot | None
    transfer: list[Transfer]


def view(run: RunFiles) -> ShiftInTraining | None:
    """Nothing where no arm has measured anything."""
    records = {arm: measurements for arm in run.arms() if (measurements := _records(run, arm))}
    if not records:
        return None
    exact = any(record.get("bound") for record in _all(records))
    figure = "bound" if exact else "shift_index"
    band = _widest(record.get("null_band") for record in _all(records))
    maps = {title: by_arm for name, title in MAPS.items() if (by_arm := _maps(records, name))}
    return ShiftInTraining(
        exact=exact,
        banded=band is not None,
        maps=Plot.of(plots.heat_maps(maps, band), "shift by turn and training step"),
        rewards=_rewards(records, figure),
        over_training=_over_training(records, figure),
        estimated_and_exact=_estimated_and_exact(records, band) if exact else None,
        transfer=_transfer(run),
    )


def _over_training(records: Records, figure: str) -> Plot | None:
    """The bound, or the index, and exploitation."""
    figures, exploitation = _lines(records, figure), _lines(records, "exploitation")
    if not figures and not exploitation:
        return None
    exact = figure == "bound"
    word = "bound of |J real − J train|" if exact else "shift index (no bound)"
    halves = {arm: half for arm, measurements in records.items() if (half := _halves(measurements[-1], figure))}
    indices = [] if exact else [record.get("shift_index") for record in _all(records)]
    band = _widest(index.get("null_band") for index in indices if index)
    return Plot.of(plots.over_training(figures, exploitation, halves, word, band), f"{word} and exploitation")


def _estimated_and_exact(records: Records, band: tuple[float, float] | None) -> Plot | None:
    pairs = {}
    for arm, measurements in records.items():
        estimated, exact = (
            [(float(turn), value) for turn, value in by_turn(look_up(measurements[-1], name, "by_turn"))]
            for name in ("simulator_estimated", "simulator")
        )
        if estimated and exact:
            pairs[arm] = (estimated, exact)
    return Plot.of(plots.estimated_and_exact(pairs, band), "estimated and exact shift") if pairs else None


def _transfer(run: RunFiles) -> list[Transfer]:
    return [
        Transfer(
            label="checkpoints of all arms" if group == "all" else style(group).label,
            policies=str(look_up(figures, "policies")),
            success_error=interval(look_up(figures, "success_ece")),
            rank_correlation=interval(look_up(figures, "rank_spearman")),
            exploitation=interval(look_up(figures, "exploitation")),
        )
        for group, figures in mapping(run.summary, "shift", "transfer").items()
    ]


def _records(run: RunFiles, arm: str) -> list[Mapping[str, Any]]:
    measurements = look_up(run.summary, "arms", arm, "shift")
    return [each for each in measurements if isinstance(each, dict)] if isinstance(measurements, list) else []


def _all(records: Records) -> Iterable[Mapping[str, Any]]:
    return (record for measurements in records.values() for record in measurements)


def _rewards(records: Records, figure: str) -> str:
    named = (look_up(record, figure, "rewards") for record in _all(records))
    return next((rewards for rewards in named if isinstance(rewards, str)), "terminal")


def _maps(records: Records, name: str) -> dict[str, plots.Map]:
    maps: dict[str, plots.Map] = {}
    for arm, measurements in records.items():
        by_update = {int(record["update"]): by_turn(look_up(record, name, "by_turn")) for record in measurements}
        known = {update: turns for update, turns in by_update.items() if turns}
        if known:
            maps[arm] = known
    return maps


def _lines(records: Records, name: str) -> dict[str, plots.Points]:
    """By arm: update and figure, without arms that have none."""
    lines = {arm: [(float(record["update"]), value) for record in measurements
                   if (value := interval(record.get(name))) is not None]
             for arm, measurements in records.items()}  # fmt: skip
    return {arm: points for arm, points in lines.items() if points}


def _halves(record: Mapping[str, Any], figure: str) -> tuple[float, float] | None:
    """What early and late turns have of a figure."""
    early, late = (finite(look_up(record, figure, part)) for part in ("early", "late"))
    return None if early is None or late is None else (early, late)


def _widest(bands: Iterable[Any]) -> tuple[float, float] | None:
    limits = [(finite(low), finite(high)) for low, high in (band for band in bands if band)]
    known = [(low, high) for low, high in limits if low is not None and high is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
