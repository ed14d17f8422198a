"""The same scenario with the policy of each arm, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import ArmStyle, in_order, style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, interval, mapping

MOST_SAMPLES = 3
PAGE_WIDTH = 880
"""Pixels within a section in a window of 1000."""


@dataclass(frozen=True, slots=True)
class Turn:
    side: str
    text: str


@dataclass(frozen=True, slots=True)
class SampleDialogue:
    style: ArmStyle
    turns: list[Turn]
    reward: Interval | None
    ending: str
    """Empty where that is not known."""


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    goal: str
    """In words; empty where that is not known."""
    dialogues: list[SampleDialogue]
    column_width: int
    """Least width of a dialogue in pixels."""


@dataclass(frozen=True, slots=True)
class Dialogues:
    template: ClassVar[str] = "dialogues.jinja"
    same_user: bool
    """Whether the policy of each arm met the same one."""
    scenarios: list[Scenario]


def view(run: RunFiles) -> Dialogues:
    return Dialogues(run.has_eval_user(), [_scenario(sample) for sample in run.samples[:MOST_SAMPLES]])


def _scenario(sample: dict[str, Any]) -> Scenario:
    scenario, arms = mapping(sample, "scenario"), mapping(sample, "arms")
    dialogues = [_dialogue(arm, mapping(arms, arm)) for arm in in_order(arms)]
    goal = scenario.get("goal")
    return Scenario(
        name=str(scenario.get("id", "scenario")),
        goal=in_words(goal) if goal else "",
        dialogues=dialogues,
        column_width=_column_width(dialogues),
    )


def _dialogue(arm: str, dialogue: dict[str, Any]) -> SampleDialogue:
    return SampleDialogue(
        style=style(arm),
        turns=[Turn(str(side), str(text)) for side, text in dialogue.get("turns") or []],
        reward=interval(dialogue.get("reward")),
        ending=str(dialogue.get("ending") or "").replace("_", " "),
    )


def _column_width(dialogues: Sequence[SampleDialogue]) -> int:
    """Long turns need wide columns, and dialogues that do not fit beside the others go below them, as many in each
    row."""
    lengths = [len(turn.text) for dialogue in dialogues for turn in dialogue.turns]
    lengths += [0 for dialogue in dialogues if not dialogue.turns]
    mean = sum(lengths) / max(len(lengths), 1)
    fitting = PAGE_WIDTH // (165 if mean < 35 else 230 if mean < 80 else 300)
    rows = -(-len(dialogues) // fitting) or 1
    return PAGE_WIDTH // (-(-len(dialogues) // rows) or 1) - 10


def in_words(goal: Any) -> str:
    """A goal in words: ``final (day: tuesday, people: three)``; empty values are left out."""
    if isinstance(goal, list):
        return ", ".join(map(in_words, goal))
    if not isinstance(goal, dict):
        return str(goal)
    phrases: list[str] = []
    earlier_values: list[Any] = []
    for key, value in goal.items():
        name = str(key).replace("_", " ")
        if isinstance(value, dict) and value:
            phrases.append(f"{name} ({'the same' if value in earlier_values else in_words(value)})")
            earlier_values.append(value)
        elif value not in (None, "", {}, []):
            phrases.append(f"{name}: {in_words(value)}")
    return ", ".join(phrases)
