"""A dialogue is worth its return: the terminal reward and all rewards of turns."""

import ast
from dataclasses import replace
from pathlib import Path

import calibrated_rl
from calibrated_rl.data.dialogue import Dialogue, Outcome
from calibrated_rl.study.compare import sample_of
from calibrated_rl.training.shift_watch import returns
from calibrated_rl.turn_values.base import logged_turns
from tests.support.made_up_logs import population, terse

PACKAGE = Path(calibrated_rl.__file__).parent
MAY_READ = {"replay/schema.py", "shift/stakes.py"}
"""The store's columns, and the range that a task tells of its terminal reward."""


def dialogue() -> Dialogue:
    return replace(population(terse, 1, 1)[0], outcome=Outcome(reward=0.5, success=True, turn_rewards=(0.25, -1.0)))


def test_rewards_of_turns_count() -> None:
    made = dialogue()
    assert made.outcome is not None and made.outcome.episode_return == -0.25
    assert Outcome(reward=0.5, success=True).episode_return == 0.5
    assert returns([made]) == {made.scenario.id: -0.25}
    assert sample_of(made)["reward"] == -0.25
    assert set(logged_turns([made])[1].tolist()) == {-0.25}


def test_nobody_takes_the_terminal_reward_for_the_return() -> None:
    """``SOMETHING.outcome.reward`` or ``outcome.reward`` in the package and in jobs."""
    found = set()
    for file in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "reward" and "outcome" in ast.unparse(node.value):
                found.add(file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name)
    assert found == MAY_READ
