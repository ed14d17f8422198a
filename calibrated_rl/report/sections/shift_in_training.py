"""Shift during training: by turn and training step, the bound, exploitation, and whether metrics with the
simulator predict those with human users."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import style
from calibrated_rl.report.plots import shift as plots
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.sections.alignments import alignments_of
from calibrated_rl.report.values import Interval, by_turn, finite, interval, look_up, mapping
from calibrated_rl.report.views import Plot

MAPS = {"policy": "policy shift ε", "simulator": "simulator shift δ", "history_shift": "history shift"}

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""By arm: its measurements, one an update at which it was measured."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Do reward and success with the simulator predict those with human users?"""

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
    """Whether the scale shows what a classifier finds between two halves of the human dialogues."""
    maps: Plot
    rewards: str
    """Which rewards there are, and so which bound it is: ``terminal``, ``per turn`` or ``terminal and per turn``."""
    over_training: Plot | None
    marked: bool
    """Whether it shows when simulators were aligned again."""
    estimated_and_exact: Plot | None
    transfer: list[Transfer]


def view(run: RunFiles) -> ShiftInTraining | None:
    """Nothing where no arm has measured anything."""
    records = {arm: measurements for arm in run.arms() if (measurements := _records(run, arm))}
    if not records:
        return None
    exact = any(record.get("bound") for record in _all(records))
    metric = "bound" if exact else "shift_index"
    band = _widest(record.get("null_band") for record in _all(records))
    aligned = {arm: sorted({int(each["update"]) for each in alignments_of(run, arm)}) for arm in records}
    maps = {title: by_arm for name, title in MAPS.items() if (by_arm := _maps(records, name))}
    return ShiftInTraining(
        exact=exact,
        banded=band is not None,
        maps=Plot.of(plots.heat_maps(maps, band), "shift by turn and training step"),
        rewards=_rewards(records, metric),
        over_training=_over_training(records, metric, aligned),
        marked=any(aligned.values()),
        estimated_and_exact=_estimated_and_exact(records, band) if exact else None,
        transfer=_transfer(run),
    )


def _over_training(records: Records, metric: str, aligned: Mapping[str, Sequence[int]]) -> Plot | None:
    """The bound, or the index, and exploitation, with the updates before which simulators were ``aligned`` again."""
    bounds, exploitation = _lines(records, metric), _lines(records, "exploitation")
    if not bounds and not exploitation:
        return None
    exact = metric == "bound"
    word = "bound of |J real − J train|" if exact else "shift index (no bound)"
    halves = {arm: half for arm, measurements in records.items() if (half := _halves(measurements[-1], metric))}
    indices = [] if exact else [record.get("shift_index") for record in _all(records)]
    band = _widest(index.get("null_band") for index in indices if index)
    return Plot.of(plots.over_training(bounds, exploitation, halves, word, band, aligned), f"{word} and exploitation")


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
            policies=str(look_up(metrics, "policies")),
            success_error=interval(look_up(metrics, "success_ece")),
            rank_correlation=interval(look_up(metrics, "rank_spearman")),
            exploitation=interval(look_up(metrics, "exploitation")),
        )
        for group, metrics in mapping(run.summary, "shift", "transfer").items()
    ]


def _records(run: RunFiles, arm: str) -> list[Mapping[str, Any]]:
    measurements = look_up(run.summary, "arms", arm, "shift")
    return [each for each in measurements if isinstance(each, dict)] if isinstance(measurements, list) else []


def _all(records: Records) -> Iterable[Mapping[str, Any]]:
    return (record for measurements in records.values() for record in measurements)


def _rewards(records: Records, metric: str) -> str:
    reward_kinds = (look_up(record, metric, "rewards") for record in _all(records))
    return next((rewards for rewards in reward_kinds if isinstance(rewards, str)), "terminal")


def _maps(records: Records, name: str) -> dict[str, plots.Map]:
    maps: dict[str, plots.Map] = {}
    for arm, measurements in records.items():
        by_update = {int(record["update"]): by_turn(look_up(record, name, "by_turn")) for record in measurements}
        measured_turns = {update: turns for update, turns in by_update.items() if turns}
        if measured_turns:
            maps[arm] = measured_turns
    return maps


def _lines(records: Records, name: str) -> dict[str, plots.Points]:
    """By arm: update and metric, without arms that have none."""
    lines = {arm: [(float(record["update"]), value) for record in measurements
                   if (value := interval(record.get(name))) is not None]
             for arm, measurements in records.items()}  # fmt: skip
    return {arm: points for arm, points in lines.items() if points}


def _halves(record: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """What early and late turns have of a metric."""
    early, late = (finite(look_up(record, metric, half)) for half in ("early", "late"))
    return None if early is None or late is None else (early, late)


def _widest(bands: Iterable[Any]) -> tuple[float, float] | None:
    limits = [(finite(low), finite(high)) for low, high in (band for band in bands if band)]
    finite_limits = [(low, high) for low, high in limits if low is not None and high is not None]
    return (min(low for low, _ in finite_limits), max(high for _, high in finite_limits)) if finite_limits else None
