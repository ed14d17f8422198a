"""The sections about the simulator: how it talks, how far it is from the human, and at which turn."""

from typing import Any

from calibrated_rl.report import markup
from calibrated_rl.report.plots import simulator as plots_simulator
from calibrated_rl.report.plots.simulator import Distance
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, by_turn, finite, interval, look_up, mapping

MEASURES = {
    "goal_kept": "keeps to its goal",
    "first_turn_disclosure": "told in its first turn",
    "turn_words": "words a turn",
    "short_turns": "turns of ≤ 3 words",
    "user_turns": "turns a dialogue",
    "leaving": "leaves",
    "change_uttered": "utters its change",
    "wrong_confirmed": "confirms wrong facts",
}
"""Words for the measures that we know, in the order in which they are shown; others follow by name."""
SAME_AS = {"left": "leaving", "words_per_turn": "turn_words"}
"""Measures of tasks that say what a measure of every task says already."""
CALIBRATION = ("before", "after")


def simulator(run: RunFiles) -> str:
    """Profile, likelihood, classifiers and exact distances before and after calibration."""
    found = mapping(run.summary, "simulator")
    profile, panels = _profile(found), _distances(found)
    banded = any(panel.band for panel in panels)
    words = (
        "NLL: how unlikely the simulator finds held-out human turns (lower is closer). Classifier: how often "
        "it tells simulator from human after the same history, by the words or by what they do; dashed is "
        "chance" + (", grey is what two halves of human data give. " if banded else ". ")
    )
    if "exact_tv" in mapping(found, "after") or "exact_tv" in mapping(found, "before"):
        words += (
            "Exact: from the probabilities that the human, a program here, and the simulator give to human "
            "replies; 0 is no difference, and total variation is at most 1."
        )
    return markup.section(
        "The simulator against the human",
        markup.note(
            "Simulator before and after calibration, and the human; error bars are 95 % CIs, the human's is drawn in "
            "grey across the panel. Shares lie between 0 and 1. The "
            "simulator talks with the policy that every arm starts from; so does the human where it is a program, "
            "otherwise its turns are those of the logs. A simulator that does not keep to its goal says things "
            "about it that its scenario does not hold."
        ),
        "<h3>How it talks</h3>",
        markup.image(plots_simulator.profile(profile), "profile of simulator and human")
        if profile
        else markup.missing(),
        "<h3>How far it is from the human</h3>",
        markup.note(words) if panels else "",
        markup.image(plots_simulator.distance(panels), "NLL, classifier accuracy and exact distances")
        if panels
        else markup.missing(),
        "" if banded else markup.note("Null band: not measured."),
        *(markup.note(text) for text in _remarks(found)),
    )


def _profile(found: dict[str, Any]) -> dict[str, dict[str, Interval]]:
    """Measures by their title, then by whom."""
    by_who = {who: mapping(found, who, "profile") for who in plots_simulator.WHO}
    names = list(dict.fromkeys(name for measures in by_who.values() for name in measures))
    names = [name for name in names if SAME_AS.get(name) not in names]
    profile: dict[str, dict[str, Interval]] = {}
    for name in sorted(names, key=lambda name: [*MEASURES, name].index(name)):
        values = {who: value for who in by_who if (value := interval(by_who[who].get(name))) is not None}
        if values:
            profile[MEASURES.get(name, name.replace("_", " "))] = values
    return profile


def _distances(found: dict[str, Any]) -> list[Distance]:
    """The panels for which there is a figure."""
    low, high = (finite(look_up(found, "null_band", bound)) for bound in ("low", "high"))
    band = None if low is None or high is None else (low, high)
    accuracy = "classifier_accuracy"
    on_acts = look_up(found, "before", f"{accuracy}_acts", "null_band")
    panels = [
        Distance("NLL of a human turn, nats", _before_after(found, "human_turn_nll"), none=None),
        Distance("NLL of a byte, nats", _before_after(found, "nll_per_byte"), none=None),
        Distance("classifier on words", _before_after(found, accuracy), none=0.5, top=1.0, band=band),
        Distance("classifier on acts", _before_after(found, f"{accuracy}_acts"), none=0.5, top=1.0,
                 band=tuple(on_acts) if isinstance(on_acts, list) else None),
        Distance("total variation, exact", _before_after(found, "exact_tv"), top=1.0),
        Distance("KL(human, simulator), exact, nats", _before_after(found, "exact_kl")),
    ]
    return [panel for panel in panels if panel.by_who]


def _before_after(found: dict[str, Any], key: str) -> dict[str, Interval]:
    values = {when: interval(look_up(found, when, key)) for when in CALIBRATION}
    return {when: value for when, value in values.items() if value is not None}


def _remarks(found: dict[str, Any]) -> list[str]:
    """What the estimators had to say about their figures."""
    remarks = []
    for when in CALIBRATION:
        figures = mapping(found, when)
        for name in figures:
            notes = look_up(figures, name, "notes")
            for text in notes if isinstance(notes, list) else []:
                remarks.append(f"{name.replace('_', ' ')}, {when} calibration: {text}.")
    return remarks


def shift(run: RunFiles) -> str:
    """The classifier's figure by turn and, where the human is a program, the exact one beside it."""
    found = mapping(run.summary, "simulator")
    exact = {when: by_turn(look_up(found, when, "exact_tv", "by_turn")) for when in CALIBRATION}
    measured = {when: by_turn(look_up(found, when, "tv_lower_bound_by_turn")) for when in CALIBRATION}
    # Only where the human is a program may the figure be called a bound.
    of_program = any(exact.values())
    name = "lower bound, from the classifier" if of_program else "shift index, from the classifier"
    panels = {}
    for title, by_who in ((name, measured), ("exact", exact)):
        shown = {who: values for who, values in by_who.items() if values}
        if shown:
            panels[title] = shown
    words = "How far apart simulator and human are at each user turn, given the same history (total variation). "
    words += (
        "The classifier gives a lower bound on the histories that it was measured on."
        if of_program
        else "It is an index, no bound: nothing but the classifier says how people would have replied."
    )
    counts = [f"{count} at turn {turn}" for turn, count in _counts(found)]
    words += f" Human replies: {', '.join(counts)}." if counts else ""
    return markup.plot_section("Shift by turn", words, panels, lambda: plots_simulator.shift_by_turn(panels))


def _counts(found: dict[str, Any]) -> list[tuple[int, int]]:
    """On how many replies the figures of each turn stand; empty where that is not known."""
    for key in ("exact_tv", "classifier_accuracy"):
        rows = look_up(found, "after", key, "by_turn")
        pairs = [(finite(look_up(row, "turn")), finite(look_up(row, "count"))) for row in rows or []]
        if pairs:
            return [(int(turn), int(count)) for turn, count in pairs if turn is not None and count is not None]
    return []
