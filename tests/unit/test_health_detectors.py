"""Detectors of simulator health on labelled turns, on the front desk, and where a task or a guardrail knows more."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.examples.casino.task import Casino
from calibrated_rl.examples.front_desk import FrontDesk, FrontDeskHuman
from calibrated_rl.health.base import Detector, LearningDetector, UserTurn
from calibrated_rl.health.checked import build_detectors
from calibrated_rl.health.config import BUILTIN
from calibrated_rl.health.detectors.goal_drift import GoalDrift
from calibrated_rl.health.detectors.role_inversion import RoleInversion
from calibrated_rl.logs.scripted import ScriptedLogs
from tests.support.labelled_health import Labelled, accuracy, labelled
from tests.support.paths import ROOT

SEEN = {
    "after_end": (1.0, 1.0), "copying": (1.0, 1.0), "early_stop": (0.96, 0.93), "empty_turn": (1.0, 1.0),
    "goal_drift": (0.96, 0.87), "language_change": (1.0, 0.96), "leaked_reasoning": (1.0, 0.87),
    "role_inversion": (1.0, 0.97),
}  # fmt: skip
"""Least precision and recall on the turns that were looked at: what docs/health.md says, rounded down."""
HELD_OUT = {
    "after_end": (1.0, 1.0), "copying": (1.0, 0.83), "early_stop": (0.83, 0.83), "empty_turn": (1.0, 1.0),
    "goal_drift": (1.0, 0.83), "language_change": (1.0, 1.0), "leaked_reasoning": (1.0, 0.5),
    "role_inversion": (1.0, 0.25),
}  # fmt: skip
"""The same on those that were not. Phrases find a quarter of the inverted roles; the logs find the rest (below)."""


def detector(name: str, turns: Sequence[Labelled] = ()) -> Detector:
    (part,) = build_detectors([name])
    if isinstance(part, GoalDrift):
        part.learn_goals([each.turn.scenario.goal for each in turns])
    return part


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize(("file", "floors"), [("labelled", SEEN), ("held_out", HELD_OUT)])
def test_precision_and_recall_on_labelled_turns(name: str, file: str, floors: dict[str, tuple[float, float]]) -> None:
    turns = labelled(file)
    found = accuracy(detector(name, turns), turns)
    precision, recall = floors[name]
    assert found.precision >= precision - 0.005, found.wrong
    assert found.recall >= recall - 0.005, found.missed


def test_the_documentation_has_the_measured_figures() -> None:
    text = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    for name in BUILTIN:
        found = []
        for file in ("labelled", "held_out"):
            measured = accuracy(detector(name, labelled(file)), labelled(file))
            found += [f"{measured.precision:.2f}", f"{measured.recall:.2f}"]
        assert f"| `{name}` | {' | '.join(found)} |" in text


def test_the_labelled_sets_are_what_they_say() -> None:
    texts: set[str] = set()
    for file, fewest in (("labelled", 15), ("held_out", 6)):
        turns = labelled(file)
        assert len({each.id for each in turns}) == len(turns)
        for name in BUILTIN:
            assert sum(name in each.labels for each in turns) >= fewest
            negatives = [each for each in turns if name not in each.labels | each.unclear]
            assert len(negatives) >= 15 and sum(each.about == name for each in negatives) >= 4, "hard ones among them"
        dialogues = {"|".join(turn.text for turn in each.turn.turns) for each in turns if each.about != "empty_turn"}
        assert not texts & dialogues, "no dialogue is in both"
        texts |= dialogues


def desk_logs(count: int) -> tuple[FrontDesk, list[Dialogue], list[Dialogue]]:
    """Dialogues of scripted people to learn from, and others."""
    task = FrontDesk()
    human = "calibrated_rl.examples.front_desk:FrontDeskHuman"
    config = ScriptedLogs.Config(calibration=count, monitor=count, tuning=1, held_out=12, human=human)
    logs = ScriptedLogs(config, task=task)
    return task, list(logs.read(Split.CALIBRATION)), list(logs.read(Split.MONITOR))


def test_logs_tell_an_inverted_role_in_a_world_without_english() -> None:
    """Positive: a turn of the logged policy in the user's place; negative: one of a person."""
    task, seen, unseen = desk_logs(150)
    own = RoleInversion()
    own.learn(seen)
    inverted, spoken = [], []
    for log in unseen:
        for index, turn in enumerate(log.turns[1:], start=1):
            as_user = (*log.turns[:index], dataclasses.replace(turn, side=Side.USER))
            judged = own.detect(UserTurn(scenario=log.scenario, turns=as_user, task=task))
            (spoken if turn.side is Side.USER else inverted).append(judged)
    assert len(inverted) > 300 and sum(map(bool, inverted)) / len(inverted) > 0.95
    assert len(spoken) > 300 and sum(map(bool, spoken)) / len(spoken) < 0.02
    assert not any(RoleInversion().detect(UserTurn(scenario=log.scenario, turns=log.turns[:2])) for log in unseen)


def test_sides_that_mostly_talk_alike_teach_no_roles() -> None:
    """Half of the policy's turns are words that only it says, half are the user's: of two turns, one of each side, the
    policy's looks more like the policy's with probability 3/4."""

    def log(number: int) -> Dialogue:
        asked = "which day ?" if number % 4 < 2 else "monday"
        judged = turn_of("monday", "hello", "monday", asked)
        return logged(str(number), judged)

    logs = [log(number) for number in range(80)]
    for least_auc, found in ((0.7, True), (0.8, False)):
        own = RoleInversion(RoleInversion.Config(least_auc=least_auc))
        own.learn(logs)
        assert own.detect(turn_of("which day ?")) is found
        assert not own.detect(turn_of("monday"))


def turn_of(text: str, *before: str, goal: dict[str, Any] | None = None, task: Any = None, **changes: Any) -> UserTurn:
    """The user's ``text`` after ``before``, the policy's greeting first, in turn."""
    sides = (Side.POLICY, Side.USER)
    turns = [Turn(side=sides[n % 2], text=said, source=Source.LOG) for n, said in enumerate(before or ("hello",))]
    turns.append(Turn(**{"side": Side.USER, "text": text, "source": Source.SIMULATOR} | changes))
    scenario = Scenario(
        id="s", split=Split.MONITOR, policy_instructions="", user_instructions="", greeting="hello", goal=goal or {}
    )
    return UserTurn(scenario=scenario, turns=tuple(turns), task=task)


def logged(name: str, judged: UserTurn) -> Dialogue:
    """The turn with what was said before it, as a dialogue of the logs."""
    return Dialogue(
        id=name, task="t", scenario=judged.scenario, turns=tuple(judged.turns), ending="e", outcome=None, kind="log"
    )


def test_what_guardrails_marked_counts() -> None:
    assert detector("empty_turn").detect(turn_of("hm", flaw="empty"))
    assert detector("role_inversion").detect(turn_of("hm", flaw="role_confusion"))
    assert detector("leaked_reasoning").detect(turn_of("hm", flaw="unfinished_reasoning"))


def test_the_front_desk_knows_its_goals_and_who_leaves() -> None:
    task = FrontDesk()
    goal = {
        "first": {"day": "friday", "time": "seven"}, "change": {"turn": 2, "slot": "day", "value": "monday"},
        "final": {"day": "monday", "time": "seven"},
    }  # fmt: skip
    drift, stop = detector("goal_drift"), detector("early_stop")
    cases = {("friday seven", ()): False, ("tuesday", ()): True, ("monday", ()): True, ("hm", ()): None}
    for (text, before), expected in cases.items():
        assert drift.detect(turn_of(text, *before, goal=goal, task=task)) is expected, text
    later = ("hello", "table", "which day ?")
    assert drift.detect(turn_of("mon", *later, goal=goal, task=task)) is False, "the change is due, and spelt sloppily"
    assert stop.detect(turn_of("forget it bye", *later, goal=goal, task=task)) is True
    assert drift.detect(turn_of("forget it bye", goal=goal, task=task)) is True, "no simulator may leave at once"
    assert drift.detect(turn_of("forget it bye", goal=goal, task=task, source=Source.LOG)) is None
    assert stop.detect(turn_of("friday", *later, goal=goal, task=task)) is False


def test_a_task_with_checks_is_asked_as_well() -> None:
    from calibrated_rl.tasks.base import GoalCheckingTask, LeavingTask
    from calibrated_rl.tasks.checked import checked_task

    task = checked_task(FrontDesk())
    assert isinstance(task, GoalCheckingTask) and isinstance(task, LeavingTask)
    human = FrontDeskHuman(FrontDeskHuman.Config(), task=FrontDesk())
    scenario = task.scenarios(Split.MONITOR, 1)[0]
    hello = Turn(side=Side.POLICY, text="hello", source=Source.GREETING)
    reply = Turn(side=Side.USER, text=human.reply(scenario, [hello]), source=Source.SCRIPTED)
    assert task.contradicts_goal(scenario, [hello, reply]) in (False, None)


def test_campers_walk_away_and_say_what_they_need_most() -> None:
    task = Casino.__new__(Casino)
    goal = {"user": {"Food": 5, "Water": 4, "Firewood": 3}}
    scenario = turn_of("hm", goal=goal).scenario
    for text, drifted in {
        "Food is the most important item for me.": False, "Firewood is the most important item for me.": True,
        "I like trees.": None,
    }.items():  # fmt: skip
        assert task.contradicts_goal(scenario, turn_of(text, goal=goal).turns) is drifted, text
    assert task.leaves_early(scenario, turn_of("Walk-Away", goal=goal).turns) is True


class Sealed:
    """A task with sealed bids that is over when both sides have written ``bid``."""

    secret_after = "bid "

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return "both" if sum(turn.text.startswith("bid ") for turn in turns) == 2 else None


def test_formal_turns_are_neither_copies_nor_going_on() -> None:
    bids, before = "bid two books and one hat and no ball", ("hello", "ok bye")
    same, later = (*before, bids), (*before, "see you")
    assert detector("copying").detect(turn_of(bids, *same, task=Sealed())) is False
    assert detector("copying").detect(turn_of(bids, *same)) is True
    assert detector("after_end").detect(turn_of(bids, *later, task=Sealed())) is False
    assert detector("after_end").detect(turn_of("and the hat", *later, task=Sealed())) is True


def test_the_language_of_the_logs_stands_in_for_a_short_beginning() -> None:
    def log(text: str) -> Dialogue:
        judged = turn_of(text, "hi")
        return logged("l", judged)

    own = detector("language_change")
    german = "Ich habe eine Frage zu meiner Rechnung und möchte sie nicht bezahlen."
    assert own.detect(turn_of(german, "hi")) is None
    assert isinstance(own, LearningDetector)
    own.learn([log("I have a question about the bill that you sent me, and I would like to ask you.")])
    assert own.detect(turn_of(german, "hi")) is True
    own.learn([log(german)])
    assert own.detect(turn_of(german, "hi")) is False
