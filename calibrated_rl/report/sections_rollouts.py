"""Notes on the rollouts: updates that taught nothing, turns that guardrails marked, what broke."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from calibrated_rl.report import markup
from calibrated_rl.report.arms import in_order, style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import count, finite, mapping

PARTIES = {
    "user": "broken by the user model",
    "judge": "broken by a judge",
    "tool": "broken by a tool",
    "engine": "lost with a replica",
}


def without_signal(run: RunFiles) -> str:
    """Updates in which no group's rewards differed, and for how long; empty where every update had one that did."""
    lines = []
    for arm in in_order(run.metrics):
        curve = run.metrics[arm].get("groups_with_signal", {})
        for seed in sorted({seed for by_seed in curve.values() for seed in by_seed}):
            shares = [curve[update][seed] for update in sorted(curve) if seed in curve[update]]
            if empty := sum(not share for share in shares):
                longest = _longest(shares)
                lines.append(
                    f"{style(arm).label}, seed {seed}: {count(empty)} of {count(len(shares))} updates, at most "
                    f"{count(longest)} in a row."
                )
        asked = _total(run, arm, "groups_discarded")
        if asked:
            tokens = finite(run.arms().get(arm, {}).get("policy_tokens_discarded"))
            beside = f" ({count(tokens)} tokens of the policy a seed, beside those that carry loss)" if tokens else ""
            lines.append(f"{style(arm).label}: {count(asked)} groups without signal gave way to others{beside}.")
    if not lines:
        return ""
    note = (
        "An update teaches nothing where the rewards within each of its groups are all equal: the task is too easy or "
        "too hard for the policy as it is, or its reward is constant. Whatever such an arm shows then, it did not "
        "learn. training.extra_groups asks for other groups in place of those."
    )
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return markup.section("Updates without signal", markup.note(note), f'<ul class="findings">{items}</ul>')


def _longest(shares: Sequence[float]) -> int:
    return max((len(list(run)) for empty, run in groupby(shares, key=lambda share: not share) if empty), default=0)


def _total(run: RunFiles, arm: str, metric: str) -> float:
    return sum(value for by_seed in run.metrics[arm].get(metric, {}).values() for value in by_seed.values())


def guardrails(run: RunFiles) -> str:
    """Turns that a guardrail marked or the token limit cut, and dialogues that were dropped: counted, never silent."""
    summary = run.summary
    rows: list[list[str]] = []
    for key, words in (("flaws", "turn marked by a guardrail"), ("dropped", "dropped and run again")):
        counts = mapping(summary, key)
        rows += [[words, escape(name.replace("_", " ").replace("/", ": ")), count(counts[name])] for name in counts]
    cut, sampled = mapping(summary, "cut"), mapping(summary, "sampled")
    rows += [["turn cut at the token limit", escape(side), _share(cut[side], sampled.get(side))] for side in cut]
    by_party: dict[str, float] = {}
    for name, number in mapping(summary, "tries").items():
        party = name.rpartition("/")[2]
        by_party[party] = by_party.get(party, 0.0) + (finite(number) or 0.0)
    total = sum(by_party.values())
    rows += [["tries to run a dialogue", words, _share(by_party[party], total)] for party, words in PARTIES.items()
             if by_party.get(party)]  # fmt: skip
    for arm, values in run.arms().items():
        if finite(values.get("not_scored")):
            label = f"held-out dialogue, {style(arm).label}"
            rows.append([escape(label), "broke in every try: not scored", count(values["not_scored"])])
    if rows:
        body = f'<div class="pairs">{markup.table(["what", "why", "times"], rows)}</div>'
    else:
        body = markup.note("None.") if "flaws" in summary else markup.missing()
    note = (
        "In all dialogues of training and evaluation. A turn is marked if it is empty, repeats the side's last one "
        "word for word, speaks for another role or holds a control token. Where a simulator does so (but for "
        "repeating), has no room left in its context or acts against its goal as far as the task can tell, and where a "
        "replica or a judge failed, the dialogue is dropped, run again and never scored; what the policy does wrong is "
        "scored."
    )
    return markup.section("Guardrails", markup.note(note) if rows else "", body)


def _share(part: Any, whole: Any) -> str:
    """``part`` of ``whole`` as a table cell."""
    number, total = finite(part), finite(whole)
    if number is None or not total:
        return count(part)
    return f"{count(number)} of {count(total)} ({100 * number / total:.2g} %)"
