"""The plain-text table of arms that a job prints when it ends."""

from collections.abc import Mapping
from typing import Any

from calibrated_rl.report.arms import in_order, pair_label
from calibrated_rl.report.values import Interval, count, duration, interval, look_up, mapping, number

HEADER = ("arm", "held-out reward", "success", "turns", "train reward", "gap closed", "human turns", "time")


def table(summary: Mapping[str, Any]) -> str:
    """The arms of ``summary`` (the content of ``summary.json``) with 95 % CIs, one line an arm; a dash stands
    for what was not measured. Paired differences follow below."""
    arms = mapping(summary, "arms")
    if not arms:
        return "no arm was measured"
    rows = [HEADER]
    for arm in in_order(arms):
        values = arms[arm]
        held_out = mapping(values, "held_out")
        rows.append(
            (
                arm,
                _with_bounds(interval(held_out.get("reward"))),
                _with_bounds(interval(held_out.get("success"))),
                _mean(interval(held_out.get("turns")), 1),
                _mean(interval(values.get("train_reward_last")), 2),
                _mean(interval(look_up(summary, "gap_closed", arm)), 2),
                _dash(count(values.get("human_turns"))),
                _dash(duration(values.get("seconds"))),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "─" * len(lines[0]))
    for pair, value in mapping(summary, "paired").items():
        difference = interval(value)
        if difference is not None:
            verdict = "" if difference.excludes_zero or difference.bounds is None else "  (no difference shown)"
            lines.append(f"{pair_label(pair)}: {_with_bounds(difference, sign=True)}{verdict}")
    if summary.get("label"):
        lines.append(f"Note: {summary['label']}")
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])


def _with_bounds(value: Interval | None, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    mean = number(value.mean, sign=sign)
    if value.bounds is None:
        return mean
    low, high = (number(bound, sign=sign) for bound in value.bounds)
    return f"{mean} [{low}, {high}]"


def _mean(value: Interval | None, digits: int) -> str:
    return "–" if value is None else number(value.mean, digits)


def _dash(text: str) -> str:
    return "–" if text == "not measured" else text
