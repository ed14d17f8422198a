"""The table of the arms: what each earns with held-out users and in training.

A metric is a column below, and nothing else. A metric of the held-out evaluation that has no column gets one under its
own name (see ``evaluation/held_out.py``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import ArmStyle, style
from calibrated_rl.report.deployed import GREEDY, SAMPLED, deployed
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, interval, look_up, mapping, over_what
from calibrated_rl.report.views import Cell

Read = Callable[[Mapping[str, Any], str], Interval | None]
"""A metric of an arm, out of the summary."""


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of every arm."""

    title: str
    read: Read
    digits: int = 2
    sign: bool = False
    optional: bool = False
    """Whether the column is left out where no arm has the metric."""
    meaning: str = ""
    """Explanation above the table, if the column is shown."""


def of_arm(*keys: str) -> Read:
    """The metric under ``keys`` of an arm."""
    return lambda summary, arm: interval(look_up(summary, "arms", arm, *keys))


def _beyond_held_out(summary: Mapping[str, Any], arm: str) -> Interval | None:
    """By how much the training reward lies above the held-out one."""
    reward, training = (of_arm(*keys)(summary, arm) for keys in ((SAMPLED.setting, "reward"), ("train_reward_last",)))
    return None if reward is None or training is None else Interval(training.mean - reward.mean)


def _of_deployed(metric: str) -> Read:
    return lambda summary, arm: interval(look_up(summary, "arms", arm, deployed(summary).setting, metric))


COLUMNS = (
    Column(
        "reward, greedy", of_arm(GREEDY.setting, "reward"), optional=True,
        meaning="Greedy: at temperature 0, as policies are deployed. Sampled: at the temperature of training.",
    ),
    Column("reward, sampled", of_arm(SAMPLED.setting, "reward")),
    Column("training reward", of_arm("train_reward_last")),
    # With a hyphen and a space that do not break the line, the header stays two lines high.
    Column("training −\u00a0sampled", _beyond_held_out, sign=True),
    Column("success", _of_deployed("success")),
    Column("turns", _of_deployed("turns"), digits=1),
    Column(
        "reward, shifted", of_arm("held_out_shifted", "reward"), optional=True,
        meaning="Shifted: users with other traits than the logged ones.",
    ),
    Column(
        "gap closed", lambda summary, arm: interval(look_up(summary, deployed(summary).gap_closed, arm)), optional=True,
        meaning="Gap closed is the share of the way from static to oracle.",
    ),
)  # fmt: skip
HELD_OUT_METRICS = ("reward", "success", "turns")
"""Those that have a column above."""


@dataclass(frozen=True, slots=True)
class ArmRow:
    style: ArmStyle
    cells: list[Cell]
    """One a column."""


@dataclass(frozen=True, slots=True)
class ArmsTable:
    template: ClassVar[str] = "arms_table.jinja"
    over: str
    """What the intervals are over; empty where that is not known."""
    columns: list[Column]
    rows: list[ArmRow]
    """Empty where no arm was measured."""


def view(run: RunFiles) -> ArmsTable:
    arms = run.arms()
    setting = deployed(run.summary).setting
    further_columns: list[Column] = []
    for each in dict.fromkeys((setting, SAMPLED.setting)):  # some metrics are measured of sampled policies alone
        scored = dict.fromkeys(name for metrics in arms.values() for name in mapping(metrics, each))
        shown = {*HELD_OUT_METRICS, *(column.title for column in further_columns)}
        titles = {name: name.replace("_", " ") for name in scored if name not in HELD_OUT_METRICS}
        further_columns += [Column(t, of_arm(each, name)) for name, t in titles.items() if t not in shown]
    names = dict.fromkeys(name for metrics in arms.values() for name in metrics)
    users = [user for of, _, user in (name.partition("@") for name in names) if user and of == setting]
    further_columns += [Column(f"reward, {user}", of_arm(f"{setting}@{user}", "reward")) for user in users]
    columns = [
        column for column in (*COLUMNS, *further_columns)
        if not column.optional or any(column.read(run.summary, arm) is not None for arm in arms)
    ]  # fmt: skip
    rows = [
        ArmRow(style(arm), [Cell(column.read(run.summary, arm), column.digits, column.sign) for column in columns])
        for arm in arms
    ]
    return ArmsTable(over=over_what(run.summary), columns=columns, rows=rows)
