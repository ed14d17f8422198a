"""The sections of the report. Each takes a run's files and returns HTML in which every text from outside is
escaped; what is missing is said to be ``not measured``."""

import re
from html import escape
from typing import Any

from calibrated_rl.report import markup
from calibrated_rl.report.arms import in_order, pair_label, style
from calibrated_rl.report.plots import results as plots_results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import (
    NOT_MEASURED,
    Interval,
    count,
    duration,
    finite,
    interval,
    look_up,
    mapping,
    number,
    over_what,
)

LEARNING = ("reward", "success", "turns")
"""Metrics of the learning curves; every other one is about optimisation."""
OPTIMISATION_FIRST = (
    "loss", "kl_update_k3", "kl_sampler_k3", "effective_sample_share", "entropy", "grad_norm", "groups_with_signal",
    "clip_high_share", "clip_low_share", "masked_share", "mismatch_max", "calibration_effective_share",
    "simulator_monitor_nll",
)  # fmt: skip
SIMULATOR_FINDINGS = {
    "classifier_accuracy": "A classifier tells simulator from human with accuracy {} before calibration and {} after "
    "(chance is 0.50).",
    "exact_tv": "The exact total variation between simulator and human replies is {} before calibration and {} after.",
    "human_turn_nll": "A held-out human turn costs the simulator {} nats before calibration and {} after.",
}
OPTIONAL_COLUMNS = {
    "reward, greedy": "Greedy: at temperature 0, else at the temperature of training. ",
    "reward, shifted": "Shifted: people with other traits than those that were logged. ",
    "gap closed": "Gap closed is the share of the way from static to oracle. ",
}
"""Columns of the arms' table that are left out where no arm has the figure, and what they mean."""
MOST_PANELS = 16
PER_TURN = re.compile(r"_turn_\d+$")
MOST_SAMPLES = 3
PAGE_WIDTH = 880
"""Pixels within a section in a window of 1000."""


def head(run: RunFiles) -> str:
    """Title, the warning label, and the findings in words."""
    summary = run.summary
    seeds = summary.get("seeds") or []
    facts = [f"task {summary['task']}"] if summary.get("task") else []
    if seeds:
        facts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(str(seed) for seed in seeds)}")
    label = f'<div class="label">{escape(str(summary["label"]))}</div>' if summary.get("label") else ""
    findings = "".join(f"<li>{escape(text)}</li>" for text in _findings(summary))
    ways = (
        "Dialogue policies that are trained in different ways (on logged histories, against a simulated user, and "
        "against a simulated user that is calibrated on human turns)"
    )
    words = (
        f"{ways} meet the same {_judge(summary)}. Nothing in training has seen them, so a policy that only learned "
        "to exploit its simulator shows here."
        if run.met_someone() or not run.arms()
        else f"{ways}. No held-out human and no stand-in for one met them: the rewards below are those of training, "
        "each from the arm's own user, and do not say which policy is better with people."
    )
    return (
        f'<h1>{escape(run.name)}</h1><p class="facts">{escape(" · ".join(facts))}</p>{label}<p>{escape(words)}</p>'
        + (f'<ul class="findings">{findings}</ul>' if findings else "")
    )


def _judge(summary: dict[str, Any]) -> str:
    """Who the policies are judged on; a run without people names its stand-in under ``held_out_user``."""
    return str(summary.get("held_out_user") or "held-out people")


def _findings(summary: dict[str, Any]) -> list[str]:
    found = []
    for pair, raw in mapping(summary, "paired").items():
        value = interval(raw)
        first, separator, second = pair.partition("-")
        if value is None or value.bounds is None or not separator:
            continue
        first, second = style(first).label, style(second).label
        size = f"{number(value.mean, sign=True)} [{number(value.bounds[0])}, {number(value.bounds[1])}]"
        if value.excludes_zero:
            verb = "earns more than" if value.mean > 0 else "earns less than"
            found.append(f"{first} {verb} {second} on {_judge(summary)}: {size}.")
        else:
            found.append(f"No difference shown between {first} and {second}: {size} contains 0.")
    for key, words in SIMULATOR_FINDINGS.items():
        before, after = (interval(look_up(summary, "simulator", when, key)) for when in ("before", "after"))
        if before is not None and after is not None:
            found.append(words.format(number(before.mean), number(after.mean)))
    return found


def arms_table(run: RunFiles) -> str:
    arms = run.arms()
    if not arms:
        return markup.section("Arms", markup.missing())
    results = []
    for arm in in_order(arms):
        values = arms[arm]
        held_out, train = mapping(values, "held_out"), interval(values.get("train_reward_last"))
        reward = interval(held_out.get("reward"))
        gap = None if train is None or reward is None else Interval(train.mean - reward.mean)
        results.append(
            [
                f"{_name(arm)}<small>{escape(style(arm).meaning)}</small>",
                markup.cell(reward), markup.cell(train), markup.cell(gap, sign=True),
                markup.cell(interval(held_out.get("success"))),
                markup.cell(interval(held_out.get("turns")), 1),
                markup.cell(interval(look_up(values, "held_out_greedy", "reward"))),
                markup.cell(interval(look_up(values, "held_out_shifted", "reward"))),
                markup.cell(interval(look_up(run.summary, "gap_closed", arm))),
            ]
        )  # fmt: skip
    # With a hyphen and a space that do not break the line, the header stays two lines high.
    header = ["arm", "held-out reward", "training reward", "training −\u00a0held\u2011out", "success", "turns",
              *OPTIONAL_COLUMNS]  # fmt: skip
    empty = [column for column, title in enumerate(header)
             if title in OPTIONAL_COLUMNS and all(row[column] == "–" for row in results)]  # fmt: skip
    header, *results = ([cell for column, cell in enumerate(row) if column not in empty] for row in (header, *results))
    words = f"Means with 95 % confidence intervals {over_what(run.summary)}".rstrip() + (
        ". Training reward is that of the last updates and comes from the arm's own user (for static: from logged "
        "histories); where it lies far above the held-out reward, the policy exploits what it was trained on. "
    )
    words += "".join(meaning for title, meaning in OPTIONAL_COLUMNS.items() if title in header)
    return markup.section("Arms", markup.note(words + "A dash: not measured."), markup.table(header, results))


def spent(run: RunFiles) -> str:
    """What each arm cost, mean over its seeds."""
    arms = run.arms()
    rows = []
    for arm in in_order(arms):
        budget = [count(arms[arm].get(key)) for key in ("updates", "policy_tokens", "user_tokens", "human_turns")]
        budget.append(duration(arms[arm].get("seconds")))
        rows.append([_name(arm), *(markup.plain(text) for text in budget)])
    header = ["arm", "updates", "policy tokens", "user tokens", "human turns", "time"]
    note = markup.note(
        "Policy tokens carry the loss; user tokens are those that the arm's simulator sampled; human turns are those "
        "that people were asked for in training, or extra logged ones. Means over seeds."
    )
    return markup.section("What each arm spent", *([note, markup.table(header, rows)] if rows else [markup.missing()]))


def _name(arm: str) -> str:
    return f'<span class="dot" style="background:{style(arm).color}"></span>{escape(style(arm).label)}'


def held_out(run: RunFiles) -> str:
    rows = {}
    for arm, values in run.arms().items():
        pair = tuple(interval(look_up(values, key, "reward")) for key in ("held_out", "held_out_shifted"))
        if any(value is not None for value in pair):
            rows[arm] = (pair[0], pair[1])
    return markup.plot_section("Held-out reward", "", rows, lambda: plots_results.forest(rows))


def paired(run: RunFiles) -> str:
    raw = mapping(run.summary, "paired")
    found = {pair: value for pair in raw if (value := interval(raw[pair])) is not None}
    unknown = [pair_label(pair) for pair in raw if pair not in found]
    over = f" Intervals {over}." if (over := over_what(run.summary)) else ""
    note = f"Over the same scenarios and people.{over} Filled: the interval excludes 0; hollow: no difference shown."
    if unknown:
        note += f" Not measured: {', '.join(unknown)}."
    return markup.plot_section("Paired differences", note, found, lambda: plots_results.paired(found))


def learning(run: RunFiles) -> str:
    panels = _panels(run, LEARNING)
    note = (
        "During training, mean over seeds (band: all seeds; long curves are smoothed, the faint line is "
        "not). Every arm is rewarded by its own user here: heights compare within an arm, not between arms."
    )
    columns = min(max(len(panels), 1), 3)
    return markup.plot_section("Learning curves", note, panels, lambda: plots_results.curves(panels, columns))


def optimisation(run: RunFiles) -> str:
    names = [name for by_name in run.metrics.values() for name in by_name if name not in LEARNING]
    # One curve for each turn of the dialogue would leave no panel for anything else.
    whole = [name for name in names if not PER_TURN.search(name)]
    order = plots_results.order_metrics(whole, OPTIMISATION_FIRST)
    panels = _panels(run, order[:MOST_PANELS])
    rest = [*order[MOST_PANELS:], *dict.fromkeys(PER_TURN.sub("_turn_1, 2, ...", n) for n in names if n not in whole)]
    note = f"Only in metrics.parquet: {', '.join(rest)}." if rest else ""
    return markup.plot_section("Optimisation", note, panels, lambda: plots_results.curves(panels, 4))


def _panels(run: RunFiles, names: Any) -> dict[str, Any]:
    by_name = {name: {arm: run.metrics[arm][name] for arm in run.metrics if name in run.metrics[arm]}
               for name in names}  # fmt: skip
    return {name: by_arm for name, by_arm in by_name.items() if by_arm}


def endings(run: RunFiles) -> str:
    shares = {}
    for arm, values in run.arms().items():
        raw = mapping(values, "endings")
        found = {name: share for name in raw if (share := finite(raw[name])) is not None}
        if found:
            shares[arm] = found
    return markup.plot_section("How dialogues end", "", shares, lambda: plots_results.endings(shares))


def dialogues(run: RunFiles) -> str:
    parts = []
    for sample in run.samples[:MOST_SAMPLES]:
        scenario, arms = mapping(sample, "scenario"), mapping(sample, "arms")
        goal = scenario.get("goal")
        words = _in_words(goal) if goal else NOT_MEASURED
        parts.append(
            f"<h3>{escape(str(scenario.get('id', 'scenario')))}</h3>"
            f'<p class="note">Goal: {escape(words)}</p>'
            f'<div class="dialogues" style="--least:{_column_width(arms)}px">'
            f"{''.join(_dialogue(arm, mapping(arms, arm)) for arm in in_order(arms))}</div>"
        )
    met = "The same person meets the policy of each arm." if run.met_someone() else "Each arm with its own user."
    return markup.section("Dialogues side by side", markup.note(met) if parts else markup.missing(), *parts)


def _column_width(arms: dict[str, Any]) -> int:
    """Least width of a dialogue in pixels: long turns need wide columns, and dialogues that do not fit beside the
    others go below them, as many in each row."""
    lengths = [len(str(text)) for arm in arms for _, text in look_up(arms, arm, "turns") or [("", "")]]
    mean = sum(lengths) / max(len(lengths), 1)
    fit = PAGE_WIDTH // (165 if mean < 35 else 230 if mean < 80 else 300)
    rows = -(-len(arms) // fit) or 1
    return PAGE_WIDTH // (-(-len(arms) // rows) or 1) - 10


def _in_words(goal: Any) -> str:
    """A goal as people write it: ``final (day: tuesday, people: three)``; what is empty is left out."""
    if isinstance(goal, list):
        return ", ".join(map(_in_words, goal))
    if not isinstance(goal, dict):
        return str(goal)
    parts: list[str] = []
    seen: list[Any] = []
    for key, part in goal.items():
        name = str(key).replace("_", " ")
        if isinstance(part, dict) and part:
            parts.append(f"{name} ({'the same' if part in seen else _in_words(part)})")
            seen.append(part)
        elif part not in (None, "", {}, []):
            parts.append(f"{name}: {_in_words(part)}")
    return ", ".join(parts)


def _dialogue(arm: str, dialogue: dict[str, Any]) -> str:
    look, reward = style(arm), interval(dialogue.get("reward"))
    ending = escape(str(dialogue.get("ending") or NOT_MEASURED).replace("_", " "))
    turns = "".join(
        f'<div class="turn {"policy" if side == "policy" else "user"}"><b>{escape(str(side))}</b>'
        f"{escape(str(text))}</div>"
        for side, text in dialogue.get("turns") or []
    )
    worth = NOT_MEASURED if reward is None else number(reward.mean)
    return (
        f'<div class="dialogue" style="border-color:{look.color}"><header>{escape(look.label)}'
        f"<small>reward {worth} · ending: {ending}</small></header>"
        f"{turns}</div>"
    )


def versions(run: RunFiles) -> str:
    found = mapping(run.summary, "versions")
    rows = [[escape(str(name)), escape(str(found[name]))] for name in sorted(found)]
    body = f'<div class="pairs">{markup.table(["part", "version"], rows)}</div>' if rows else markup.missing()
    return markup.section("Versions", body)
