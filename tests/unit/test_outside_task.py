"""A task from outside the repository: one file and one YAML, and nothing else knows of it."""

from pathlib import Path

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.inference.engine import GenerateRequest
from calibrated_rl.tasks.base import Task
from calibrated_rl.tasks.checked import build_task
from tests.support.made_up_pools import MadeUpPool, collector_of
from tests.support.outside_parts import part_outside

GUESSING = '''
from dataclasses import dataclass

from calibrated_rl import Outcome, Positive, Scenario, Split

class Guessing:
    """The user thinks of a word, and the policy is to say it."""

    name = "guessing"
    max_policy_turns = 2

    @dataclass(frozen=True)
    class Config:
        words: Positive = 3

    def __init__(self, config):
        self.words = config.words

    def scenarios(self, split, count, population="same"):
        offset = 1000 * list(Split).index(split)
        return [
            Scenario(
                id=f"{split}-{offset + number}", split=split, goal={"word": f"w{number % self.words}"},
                greeting="which word ?", user_instructions="keep your word", policy_instructions="guess the word",
            )
            for number in range(count)
        ]

    def ending(self, scenario, turns):
        said = [turn.text for turn in turns[1:] if turn.side == "policy"]
        return "guessed" if scenario.goal["word"] in said else None

    def outcome(self, scenario, turns, ending):
        return Outcome(reward=float(ending == "guessed"), success=ending == "guessed")

    def acts(self, scenario, turns, index):
        return ()

    def profile(self, scenario, turns):
        return {}
'''
SETTINGS = """
task: mine.py:Guessing
task_config: {words: 2}
arms: [start, interactive]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return part_outside(tmp_path, monkeypatch, code=GUESSING, settings=SETTINGS)


def task_of(settings: Path) -> Task:
    config = load_config(settings)
    return build_task(config.task, config.task_config, "task_config")


def test_its_dialogues_are_run_and_scored(settings: Path) -> None:
    task = task_of(settings)
    scenarios = task.scenarios(Split.TUNING, 4)

    def guess(request: GenerateRequest) -> str:
        return "w1"

    groups = collector_of(MadeUpPool("policy", guess), task).groups(
        scenarios, MadeUpPool("simulator", lambda request: "no"), group_size=2, arm="a", update=0, seed=0
    )
    dialogues = [dialogue for group in groups if group is not None for dialogue in group]
    assert [d.scenario.goal["word"] for d in dialogues] == ["w0", "w0", "w1", "w1"] * 2, "two words, as the YAML says"
    assert [d.ending for d in dialogues] == ["max_turns", "max_turns", "guessed", "guessed"] * 2
    assert [d.outcome.reward for d in dialogues if d.outcome is not None] == [0.0, 0.0, 1.0, 1.0] * 2
    assert all(d.turns[0].text == "which word ?" and d.turns[1].side is Side.USER for d in dialogues)


def test_its_settings_are_checked_when_the_config_is_read(settings: Path) -> None:
    settings.write_text(SETTINGS.replace("words: 2", "wrods: 2"))
    with pytest.raises(UserError, match="wrods'; did you mean 'task_config.words'"):
        task_of(settings)
    settings.write_text(SETTINGS.replace("words: 2", "words: 0"))
    with pytest.raises(UserError, match="words"):
        task_of(settings)
