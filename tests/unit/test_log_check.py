"""Logs that a later part cannot work with are refused as soon as they are read, and the part is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import CalibrationConfig, EvaluationConfig, ModelConfig, ProxyConfig
from calibrated_rl.data.dialogue import Dialogue, Outcome, Split
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.run.log_checks import REPORTED_SCENARIOS, check_logs
from tests.support.made_up_logs import dialogue, policy, user

HUMAN = "calibrated_rl.examples.front_desk:FrontDeskHuman"
RUN = RunConfig(arms=["start", "static"], human=HUMAN)
Logs = dict[Split, list[Dialogue]]


def logs(held_out: int = 12, success: bool = True) -> Logs:
    made = [
        replace(
            dialogue(f"d{number}", policy("hello"), user("a table"), policy("when ?"), user("friday"), policy("done")),
            outcome=Outcome(reward=float(success), success=success),
        )
        for number in range(held_out + 6)
    ]
    return {Split.CALIBRATION: made[:4], Split.MONITOR: [made[4]], Split.TUNING: [made[5]], Split.HELD_OUT: made[6:]}


def silent(given: Logs, split: Split, side: Callable[[str], object]) -> Logs:
    """The same, where one side of ``split`` says nothing but a greeting."""
    name = side("x").side  # type: ignore[attr-defined]
    spoken = [[turn for turn in log.turns[1:] if turn.side is not name] for log in given[split]]
    return given | {
        split: [replace(log, turns=(log.turns[0], *own)) for log, own in zip(given[split], spoken, strict=True)]
    }


def test_logs_that_do() -> None:
    check_logs(RUN, FrontDesk(), logs())
    check_logs(replace(RUN, arms=["cloned"]), FrontDesk(), logs())
    reserve = CalibrationConfig(reserve=2)
    check_logs(replace(RUN, arms=["calibrated_more_logs"], calibration=reserve), FrontDesk(), logs())
    unheard = silent(logs(), Split.CALIBRATION, policy)
    check_logs(replace(RUN, arms=["start"], policy=ModelConfig(warm_start=SFTConfig(epochs=0))), FrontDesk(), unheard)


def test_logs_that_a_later_part_cannot_work_with() -> None:
    first = EvaluationConfig(logs=12)
    for run, given, words in (
        (RUN, logs(11), "the held-out split has 11 dialogues in which a user speaks, .* takes at least 12"),
        (replace(RUN, evaluation=first), silent(logs(20), Split.HELD_OUT, user), "has 0 dialogues .* first 12"),
        (RUN, silent(logs(), Split.MONITOR, user), "no user speaks in the monitor split"),
        (RUN, silent(logs(), Split.CALIBRATION, user), "the user never speaks in the calibration logs"),
        (RUN, silent(logs(), Split.CALIBRATION, policy), "the policy never speaks in the calibration logs"),
        (replace(RUN, calibration=CalibrationConfig(reserve=4)), logs(), "reserve is 4, of 4 calibration logs"),
        (replace(RUN, arms=["cloned"]), logs(success=False), "'cloned' needs successful dialogues"),
        (replace(RUN, control_arms=["cloned"]), logs(success=False), "'cloned' needs successful dialogues"),
    ):
        with pytest.raises(UserError, match=words):
            check_logs(run, FrontDesk(), given)


def test_dialogues_to_look_at_take_scenarios() -> None:
    class Few(FrontDesk):
        def scenarios(self, split: Split, count: int, population: str = "same") -> list:  # type: ignore[type-arg]
            raise UserError(f"{count} scenarios asked of the {split} split")

    with pytest.raises(UserError, match=f"{REPORTED_SCENARIOS} scenarios asked of the held_out split"):
        check_logs(replace(RUN, human=""), Few(), logs())
    check_logs(RUN, Few(), logs())
    check_logs(replace(RUN, human="", proxy=ProxyConfig(model="another")), Few(), logs())
