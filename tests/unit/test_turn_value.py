"""The static arm's value of a turn by ridge regression: what it knows, and that it is not to be had for nothing."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.logs.scripted import ScriptedLogs
from calibrated_rl.turn_values.base import Case, logged_turns, refuse_unscored
from calibrated_rl.turn_values.ridge import RidgeValue


@cache
def front_desk() -> tuple[RidgeValue, dict[Split, list[Dialogue]]]:
    task = FrontDesk(FrontDesk.Config())
    reader = ScriptedLogs(ScriptedLogs.Config(calibration=1500, monitor=1, tuning=150), task=task)
    logs = {split: list(reader.read(split)) for split in (Split.CALIBRATION, Split.TUNING)}
    return RidgeValue(logs[Split.CALIBRATION], logs[Split.TUNING]), logs


def cases() -> list[Case]:
    return logged_turns(front_desk()[1][Split.TUNING])[0][:200]


def values(text: str | None = None) -> np.ndarray:
    return front_desk()[0].value([(s, h, said if text is None else text) for s, h, said in cases()])


@pytest.mark.slow
def test_it_knows_what_the_policy_was_told() -> None:
    """Asking for a slot that is needed and untold is worth more than asking for one that is not needed."""
    value, logs = front_desk()
    assert value.explained(logs[Split.CALIBRATION]) > 0.05
    right = total = 0
    for log in logs[Split.TUNING]:
        slots = log.scenario.policy_instructions.split()[2:]
        others = [slot for slot in ("day", "time", "people", "seat", "meal") if slot not in slots]
        untold = [slot for slot in slots if not any(slot in turn.text for turn in log.turns[1:])]
        if others and untold:
            cases = [(log.scenario, log.turns[:2], f"which {slot} ?") for slot in (untold[0], others[0])]
            needed, useless = value.value(cases)
            right, total = right + (needed > useless), total + 1
    assert total > 20 and right / total > 0.8


def test_repeating_and_reordering_change_nothing() -> None:
    value, as_said = front_desk()[0], values()
    for change in (lambda text: " ".join([text] * 12), lambda text: " ".join(text.split()[::-1]), str.upper):
        assert value.value([(s, h, change(text)) for s, h, text in cases()]) == pytest.approx(as_said)


@pytest.mark.parametrize("text", ["please " * 12, "zyx", " ".join(f"zyx{i}" for i in range(50)), ""])
def test_what_nobody_said_is_worth_no_more_than_what_was_said(text: str) -> None:
    value, least = front_desk()[0], min(logged_turns(front_desk()[1][Split.CALIBRATION])[1])
    assert values(text=text) == pytest.approx(least)
    padded = value.value([(s, h, f"{said} {text}") for s, h, said in cases()])
    assert (padded <= values() + 1e-9).all()


def test_length_does_not_pay() -> None:
    """Every word that logs have, in one turn; or twenty of them; or just the first word of a turn, again and again."""
    every = sorted({word for _, _, text in cases() for word in text.split()})
    assert values(text=" ".join(every)).max() < 0.2
    rng = np.random.default_rng(2)
    assert values(text=" ".join(rng.permutation(every)[:20])).mean() < values().mean()
    first = front_desk()[0].value([(s, h, f"{text.split()[0]} " * 12) for s, h, text in cases()])
    assert first.mean() < values().mean()


def scored(number: int, said: str, reward: float) -> Dialogue:
    scenario = Scenario(
        id=f"s{number}", split=Split.CALIBRATION, policy_instructions="", user_instructions="", greeting="hello"
    )
    turns = (
        Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
        Turn(side=Side.USER, text=f"i am number{number}", source=Source.LOG),
        Turn(side=Side.POLICY, text=said, source=Source.LOG),
    )
    return Dialogue(
        id=str(number), task="t", scenario=scenario, turns=turns, ending="done", kind="log",
        outcome=Outcome(reward=reward, success=reward > 0),
    )  # fmt: skip


def test_no_history_is_judged_by_a_model_that_has_seen_its_dialogue() -> None:
    """The user's name gives each return away, and nothing else does: on what it was fitted to, a model explains all."""
    rng = np.random.default_rng(0)
    logs = [scored(i, "which day ?", float(rng.integers(2))) for i in range(300)]
    value = RidgeValue(logs, [scored(1000 + i, "which day ?", float(i % 2)) for i in range(20)])
    assert value.explained(logs) < 0.1
    seen, returns = logged_turns(logs)
    assert np.corrcoef(value.value(seen), returns)[0, 1] < 0.2


def test_the_penalty_is_the_tuning_splits() -> None:
    """Logs from which words seem to matter; tuning logs in which they do, and in which they do not."""
    rng = np.random.default_rng(1)
    logs = [scored(i, ("good day", "bad day")[i % 2], float(i % 2 == 0) + rng.normal(0, 0.1)) for i in range(300)]
    alike = [scored(1000 + i, ("good day", "bad day")[i % 2], float(i % 2 == 0)) for i in range(60)]
    chance = [dataclasses.replace(log, outcome=Outcome(reward=0.5, success=True)) for log in alike]
    assert RidgeValue(logs, alike).penalty < RidgeValue(logs, chance).penalty


def test_logs_without_scores_are_refused() -> None:
    logs = [scored(0, "which day ?", 1.0)]
    for unscored in ([dataclasses.replace(logs[0], outcome=None)], []):
        with pytest.raises(UserError, match=r"'static' looks at the tuning logs, and none .*logs\.tuning"):
            refuse_unscored(unscored, "tuning", "looks at")
        with pytest.raises(UserError, match=r"logs\.calibration"):
            RidgeValue(unscored, logs)
        with pytest.raises(UserError, match=r"logs\.tuning"):
            RidgeValue(logs, unscored)
    refuse_unscored(logs, "tuning", "looks at")
