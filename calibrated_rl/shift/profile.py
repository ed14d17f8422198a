"""How human users (or simulators that stand in for them) behave, in metrics that a reader understands.

A summary for the report, not a distance: two sides can agree in all of it and still be told apart.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.statistics.intervals import Interval, ratio_interval
from calibrated_rl.tasks.base import Task

SHORT_WORDS = 3
"""A turn of at most so many words is short: a bare answer ("tuesday", "yes please", "around seven pm")."""


def behaviour_profile(
    dialogues: Sequence[Dialogue], task: Task, *, leaving: Collection[str] = ("left",), seed: int = 0
) -> dict[str, Interval]:
    """``turn_words`` (mean over user turns), ``short_turns`` (share of user turns), ``user_turns`` (mean over
    dialogues), ``leaving`` (share of dialogues whose ending is in ``leaving``), and the mean over dialogues of
    each metric in ``task.profile``, over those that have it (``first_turn_disclosure``, ``goal_kept``, ...).

    Dialogues are resampled. A metric that no dialogue has is left out; without dialogues the result is empty.
    """
    if not dialogues:
        return {}
    words: list[int] = []
    owner: list[str] = []
    turns: list[int] = []
    has_left: list[bool] = []
    task_values: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for dialogue in dialogues:
        spoken = [turn.text for turn in dialogue.turns if turn.side is Side.USER]
        words.extend(len(text.split()) for text in spoken)
        owner.extend([dialogue.id] * len(spoken))
        turns.append(len(spoken))
        has_left.append(dialogue.ending in leaving)
        for name, value in task.profile(dialogue.scenario, dialogue.turns).items():
            task_values[name].append((dialogue.id, float(value)))
    names = [dialogue.id for dialogue in dialogues]

    def mean(values: Sequence[float], clusters: Sequence[str]) -> Interval:
        return ratio_interval(values, np.ones(len(values)), clusters, seed)

    summary = {"user_turns": mean(turns, names), "leaving": mean(has_left, names)}
    if words:
        summary["turn_words"] = mean(words, owner)
        summary["short_turns"] = mean([count <= SHORT_WORDS for count in words], owner)
    for name, pairs in task_values.items():
        finite = [(key, value) for key, value in pairs if np.isfinite(value)]
        if finite:
            summary[name] = mean([value for _, value in finite], [key for key, _ in finite])
    return summary
