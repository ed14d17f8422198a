"""The sections of the report. Each takes a run's files and returns HTML in which every text from outside is
escaped; what is missing is said to be ``not measured``."""

from html import escape
from typing import Any

from calibrated_rl.report import markup, plots_results, plots_simulator
from calibrated_rl.report.arms import in_order, pair_label, style
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
)

LEARNING = ("reward", "success", "turns")
"""Metrics of the learning curves; every other one is about optimisation."""
OPTIMISATION_FIRST = (
    "loss", "kl", "kl_sampler_k3", "effective_sample_share", "entropy", "grad_norm", "clip_share",
    "mask_share",
)  # fmt: skip
MOST_PANELS = 12
MOST_SAMPLES = 3


def head(run: RunFiles) -> str:
    """Title, the warning label, and the findings in words."""
    summary = run.summary
    seeds = summary.get("seeds") or []
    facts = [f"task {summary['task']}"] if summary.get("task") else []
    if seeds:
        facts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(str(seed) for seed in seeds)}")
    label = f'<div class="label">{escape(str(summary["label"]))}</div>' if summary.get("label") else ""
    findings = "".join(f"<li>{escape(text)}</li>" for text in _findings(summary))
    return (
        f'<h1>{escape(run.name)}</h1><p class="facts">{escape(" · ".join(facts))}</p>{label}'
        "<p>Dialogue policies that were trained in different ways (on logged histories, against a simulated "
        "user, and against a simulated user that is calibrated on human turns) meet the same "
        f"{escape(_judge(summary))}. Nothing in training has seen them, so a policy that only learned to "
        "exploit its simulator shows here.</p>" + (f'<ul class="findings">{findings}</ul>' if findings else "")
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
    before, after = (
        interval(look_up(summary, "simulator", when, "classifier_accuracy")) for when in ("before", "after")
    )
    if before is not None and after is not None:
        found.append(
            "A classifier tells simulator from human with accuracy "
            f"{number(before.mean)} before calibration and {number(after.mean)} after (chance is 0.50)."
        )
    return found


def arms_table(run: RunFiles) -> str:
    arms = run.arms()
    if not arms:
        return markup.section("Arms", markup.missing())
    results, budgets = [], []
    for arm in in_order(arms):
        look, values = style(arm), arms[arm]
        held_out, train = mapping(values, "held_out"), interval(values.get("train_reward_last"))
        reward = interval(held_out.get("reward"))
        gap = None if train is None or reward is None else Interval(train.mean - reward.mean)
        name = (
            f'<span class="dot" style="background:{look.color}"></span>{escape(look.label)}'
            f"<small>{escape(look.meaning)}</small>"
        )
        results.append(
            [
                name, markup.cell(reward), markup.cell(train), markup.cell(gap, sign=True),
                markup.cell(interval(held_out.get("success"))),
                markup.cell(interval(held_out.get("turns")), 1),
                markup.cell(interval(look_up(values, "held_out_greedy", "reward"))),
                markup.cell(interval(look_up(values, "held_out_shifted", "reward"))),
                markup.cell(interval(look_up(run.summary, "gap_closed", arm))),
            ]
        )  # fmt: skip
        budget = [count(values.get(key)) for key in ("updates", "policy_tokens", "user_tokens", "human_turns")]
        budgets.append([name, *(markup.plain(text) for text in (*budget, duration(values.get("seconds"))))])
    header = ["arm", "held-out reward", "training reward", "training − held-out", "success", "turns",
              "reward, greedy", "reward, shifted", "gap closed"]  # fmt: skip
    spent = ["arm", "updates", "policy tokens", "user tokens", "human turns", "time"]
    return markup.section(
        "Arms",
        markup.note(
            "Means with 95 % confidence intervals. Training reward is the last one and comes from the arm's "
            "own user (for static: from logged histories); where it lies far above the held-out reward, the "
            "policy exploits what it was trained on. Gap closed is the share of the way from static to "
            "oracle. A dash: not measured."
        ),
        markup.table(header, results),
        "<h3>What each arm spent</h3>",
        markup.table(spent, budgets),
    )


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
    note = "Over the same scenarios and people. Filled: the interval excludes 0; hollow: no difference shown."
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
    order = plots_results.order_metrics(names, OPTIMISATION_FIRST)
    panels = _panels(run, order[:MOST_PANELS])
    note = f"Only in metrics.parquet: {', '.join(order[MOST_PANELS:])}." if order[MOST_PANELS:] else ""
    return markup.plot_section("Optimisation", note, panels, lambda: plots_results.curves(panels, 4))


def _panels(run: RunFiles, names: Any) -> dict[str, Any]:
    by_name = {name: {arm: run.metrics[arm][name] for arm in run.metrics if name in run.metrics[arm]}
               for name in names}  # fmt: skip
    return {name: by_arm for name, by_arm in by_name.items() if by_arm}


def simulator(run: RunFiles) -> str:
    """Profile, likelihood and classifiers before and after calibration."""
    found = mapping(run.summary, "simulator")
    profile: dict[str, dict[str, Interval]] = {}
    for who in plots_simulator.WHO:
        for name, raw in mapping(found, who, "profile").items():
            if (value := interval(raw)) is not None:
                profile.setdefault(name, {})[who] = value
    nll = _before_after(found, "human_turn_nll")
    accuracy = {
        name: values
        for name, key in (("words", "classifier_accuracy"), ("acts", "classifier_accuracy_acts"))
        if (values := _before_after(found, key))
    }
    low, high = (finite(look_up(found, "null_band", bound)) for bound in ("low", "high"))
    band = None if low is None or high is None else (low, high)
    distance_note = (
        "Left: how unlikely the simulator finds human turns (lower is closer). Others: accuracy of "
        "a classifier that tells simulator from human after the same history; 0.5 (dashed) is chance, grey "
        "is what two halves of human data give on words."
    )
    return markup.section(
        "The simulator against the human",
        markup.note("Simulator before and after calibration, and the human; bars are 95 % CIs."),
        "<h3>How it talks</h3>",
        markup.image(plots_simulator.profile(profile), "profile of simulator and human")
        if profile
        else markup.missing(),
        "<h3>How far it is from the human</h3>",
        markup.note(distance_note),
        markup.image(plots_simulator.distance(nll, accuracy, band), "NLL and classifier accuracy")
        if nll or accuracy
        else markup.missing(),
        "" if band else markup.note("Null band: not measured."),
    )


def _before_after(found: dict[str, Any], key: str) -> dict[str, Interval]:
    values = {when: interval(look_up(found, when, key)) for when in ("before", "after")}
    return {when: value for when, value in values.items() if value is not None}


def shift(run: RunFiles) -> str:
    bounds = {}
    for when in ("before", "after"):
        raw = look_up(run.summary, "simulator", when, "tv_lower_bound_by_turn")
        values = [interval(value) for value in raw] if isinstance(raw, list) else []
        if any(value is not None for value in values):
            bounds[when] = values
    note = (
        "Simulator-induced shift: at least this far are simulator and human apart at each user turn "
        "(total variation; 0: alike)."
    )
    return markup.plot_section("Shift by turn", note, bounds, lambda: plots_simulator.shift_by_turn(bounds))


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
        scenario = mapping(sample, "scenario")
        arms = mapping(sample, "arms")
        goal = scenario.get("goal")
        words = ", ".join(f"{key}: {value}" for key, value in goal.items()) if isinstance(goal, dict) else goal
        parts.append(
            f"<h3>{escape(str(scenario.get('id', 'scenario')))}</h3>"
            f'<p class="note">The person wants: {escape(str(words or NOT_MEASURED))}</p>'
            f'<div class="dialogues">{"".join(_dialogue(arm, arms[arm]) for arm in in_order(arms))}</div>'
        )
    note = markup.note("The same person meets the policy of each arm.") if parts else markup.missing()
    return markup.section("Dialogues side by side", note, *parts)


def _dialogue(arm: str, dialogue: dict[str, Any]) -> str:
    look, reward = style(arm), finite(dialogue.get("reward"))
    ending = escape(str(dialogue.get("ending") or NOT_MEASURED))
    turns = "".join(
        f'<div class="turn {"policy" if side == "policy" else "user"}"><b>{escape(str(side))}</b>'
        f"{escape(str(text))}</div>"
        for side, text in dialogue.get("turns") or []
    )
    worth = NOT_MEASURED if reward is None else number(reward)
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
