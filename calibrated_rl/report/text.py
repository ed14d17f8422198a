"""The plain-text tables that a job prints when it ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.errors import printable
from calibrated_rl.report.arms import MAIN_PAIR, arms_of, in_order, pair_label
from calibrated_rl.report.deployed import GREEDY, SAMPLED, decodings, deployed
from calibrated_rl.report.values import (
    Interval,
    count,
    duration,
    finite,
    interval,
    look_up,
    mapping,
    number,
    or_dash,
    over_what,
    proxies_of,
)

HEADER = ("arm", *(f"reward, {each.name}" for each in (GREEDY, SAMPLED)), "success", "turns", "train reward",
          "gap closed", "human turns", "time")  # fmt: skip
SIMULATOR = {
    "classifier_accuracy": "classifier accuracy, words",
    "classifier_accuracy_acts": "classifier accuracy, acts",
    "exact_tv": "total variation, exact",
    "exact_kl": "KL(human, simulator), exact, nats",
    "human_turn_nll": "NLL of a human turn, nats",
    "nll_per_byte": "NLL of a byte, nats",
}


def table(summary: Mapping[str, Any]) -> str:
    """The arms of ``summary`` (the content of ``summary.json``) with 95 % CIs, one line an arm; below it what was
    measured of paired differences, of the simulator before and after calibration, and of a study's variants, and
    the run's label. A dash stands for what was not measured."""
    with arms_of(summary):
        return _table(summary)


def _table(summary: Mapping[str, Any]) -> str:
    arms = mapping(summary, "arms")
    blocks = [_grid([HEADER, *(_arm(summary, arm) for arm in in_order(arms))])] if arms else ["no arm was measured"]
    differences = _differences(summary)
    if differences:
        shown = decodings(summary)
        header = ["paired difference", *(heading for each in shown for heading in (f"reward, {each.name}", ""))]
        blocks.append(_grid([header, *differences]))
    if proxies := proxy_table(proxies_of(summary)):
        blocks.append(proxies)
    if simulator := simulator_table(mapping(summary, "simulator")):
        blocks.append(simulator)
    if endpoints := endpoint_table(mapping(summary, "endpoints")):
        blocks.append(endpoints)
    variants = mapping(summary, "variants")
    if variants:
        blocks.append(_variants(variants))
    if differences and (over := over_what(summary)):
        blocks.append(f"Intervals: 95 %, {over}")
    if summary.get("label"):
        blocks.append(f"Note: {printable(str(summary['label']))}")
    return "\n\n".join(blocks)


def proxy_table(proxies: Mapping[str, Any]) -> str:
    """Proxies with the clone beside people with people, with 95 % CIs; empty where nothing was measured.

    Args:
        proxies: as ``values.proxies_of``.
    """
    names = list(dict.fromkeys(name for metric in proxies for name in mapping(proxies, metric, "proxies")))
    rows = [
        (
            metric.replace("_", " "),
            _with_bounds(interval(look_up(proxies, metric, "people"))),
            *(_with_bounds(interval(look_up(proxies, metric, "proxies", name, "value"))) for name in names),
        )
        for metric in proxies
    ]
    return _grid([("proxies, with the clone", "people", *names), *rows]) if rows else ""


def endpoint_table(endpoints: Mapping[str, Any]) -> str:
    """What models behind APIs have cost; empty where the run asked none."""
    names = ("answers", "prompt_tokens", "completion_tokens", "cost")
    rows = [
        (
            name,
            *("–" if (value := finite(look_up(endpoints, name, each))) is None else f"{value:.6g}" for each in names),
        )
        for name in endpoints
    ]
    return _grid([("API", "answers", "tokens in", "tokens out", "cost"), *rows]) if rows else ""


def _differences(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line a pair of arms, with two cells a way to decode: the difference, and whether it shows one."""
    by_decoding = [mapping(summary, each.paired) for each in decodings(summary)]
    rows = []
    for pair in dict.fromkeys(pair for pairs in by_decoding for pair in pairs):
        values = [interval(pairs.get(pair)) for pairs in by_decoding]
        if any(values):
            cells = (cell for value in values for cell in (_with_bounds(value, sign=True), _verdict(value)))
            rows.append((pair_label(pair), *cells))
    return rows


def simulator_table(simulator: Mapping[str, Any]) -> str:
    """The simulator before and after calibration, with 95 % CIs; empty where nothing was measured.

    Args:
        simulator: the content of ``simulator.json``.
    """
    rows = []
    for key, words in SIMULATOR.items():
        intervals = [interval(look_up(simulator, phase, key)) for phase in ("before", "after")]
        if any(intervals):
            rows.append((words, *map(_with_bounds, intervals)))
    return _grid([("simulator against human", "before calibration", "after"), *rows]) if rows else ""


def _arm(summary: Mapping[str, Any], arm: str) -> tuple[str, ...]:
    values = mapping(summary, "arms", arm)
    held_out = mapping(values, deployed(summary).setting)
    return (
        arm,
        *(_with_bounds(interval(look_up(values, each.setting, "reward"))) for each in (GREEDY, SAMPLED)),
        _with_bounds(interval(held_out.get("success"))),
        _mean(interval(held_out.get("turns")), 1),
        _mean(interval(values.get("train_reward_last")), 2),
        _mean(interval(look_up(summary, deployed(summary).gap_closed, arm)), 2),
        or_dash(count(values.get("human_turns"))),
        or_dash(duration(values.get("seconds"))),
    )


def _variants(variants: Mapping[str, Any]) -> str:
    """One line a variant: what it changes, held-out reward of its arms, the paired difference, the classifier."""
    arms = in_order(arm for name in variants for arm in mapping(variants, name, "arms"))
    rows = [("variant", "change", *arms, pair_label(MAIN_PAIR), "classifier")]
    for name in variants:
        change, decoding = look_up(variants, name, "change"), deployed(variants[name])
        accuracy = (
            _mean(interval(look_up(variants, name, "simulator", phase, "classifier_accuracy")), 2)
            for phase in ("before", "after")
        )
        rows.append(
            (
                name,
                " ".join(_short(str(setting)) for setting in change) if isinstance(change, list) else "–",
                *(_mean(interval(look_up(variants, name, "arms", arm, decoding.setting, "reward")), 2) for arm in arms),
                _with_bounds(interval(look_up(variants, name, decoding.paired, MAIN_PAIR)), sign=True),
                " → ".join(accuracy),
            )
        )
    return _grid(rows)


def _short(change: str) -> str:
    """``a.b.key=value`` as ``key=value``: the terminal is narrow, the report has it whole."""
    key, equals, value = change.partition("=")
    return key.rsplit(".", 1)[-1] + equals + value


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a line, the first column to the left."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths).rstrip() for row in rows]
    lines.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])


def _verdict(value: Interval | None) -> str:
    shown = value is None or value.bounds is None or value.excludes_zero
    return "" if shown else "no difference shown"


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
