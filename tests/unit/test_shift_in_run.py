"""Shift while training: figures of one measurement by hand, what is refused, the summary over seeds, the report."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.data.dialogue import Dialogue, Outcome
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.shift_summary import latest, records_of, transfer_of
from calibrated_rl.report.html import write_report
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.in_run import Collected, ExactReplies, bound_of, shift_record
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.probabilities.policy_shift import PolicyLogProbs
from calibrated_rl.shift.stakes import Stakes, stakes_of
from tests.support.made_up_logs import paired, population, terse, wordy

EXACT = ExactReplies(
    human=[0.0, 0.0, 0.0],
    simulator=[math.log(0.5), 0.0, -math.inf],
    turn=[1, 2, 1],
    dialogue=["a", "a", "b"],
)
"""Total variations 0.5 and 0 in one dialogue, 1 in another that has a single turn."""


def nothing(**given: Any) -> Collected:
    empty = dict.fromkeys(("policy", "replies", "exact", "histories", "with_simulator", "with_humans", "stakes"))
    return Collected(**({"update": 0} | empty | given))


def replies(count: int = 12) -> MatchedReplies:
    """Terse people and a wordy simulator on the same histories."""
    return paired(terse, wordy, count)


def test_the_bound_sums_over_the_turns_that_dialogues_have() -> None:
    """(0.5 + 0 + 1) / 2 dialogues, times the range; only turn 1 is early, and turn 2 adds nothing."""
    bound = bound_of(EXACT, Stakes(terminal=2.0))
    assert bound["mean"] == pytest.approx(1.5)
    assert bound["early"] == pytest.approx(1.5) and bound["late"] == pytest.approx(0.0)
    assert bound["low"] <= 1.5 <= bound["high"]


def test_a_bound_says_which_rewards_it_is_of() -> None:
    """Turn 1 of at most 3 comes before three rewards, turn 2 before two."""
    both = bound_of(EXACT, Stakes(terminal=2.0, per_turn=0.5, horizon=3))
    assert both["mean"] == pytest.approx((0.5 + 1.0) / 2 * (2.0 + 3 * 0.5))
    assert both["rewards"] == "terminal and per turn"
    second = ExactReplies(human=[0.0] * 2, simulator=[0.0, math.log(0.25)], turn=[1, 2], dialogue=["a", "a"])
    alone = bound_of(second, Stakes(terminal=0.0, per_turn=0.5, horizon=3))
    assert alone["mean"] == pytest.approx(0.75 * 2 * 0.5) and alone["rewards"] == "per turn"
    record = shift_record(nothing(replies=replies(), stakes=Stakes(terminal=0.0, per_turn=0.5, horizon=3)))
    turns = record["simulator_estimated"]["by_turn"]
    expected = sum(0.5 * max(0, 4 - row["turn"]) * row["mean"] * row["count"] for row in turns) / 12
    assert record["shift_index"]["mean"] == pytest.approx(expected)
    assert record["shift_index"]["rewards"] == "per turn"


class Rewarding:
    """As much of a task as its stakes need."""

    name, max_policy_turns = "rewarding", 3
    terminal, per_turn = (0.0, 1.0), (-0.5, -0.1)

    def scenarios(self, *_: Any) -> Any: ...

    ending = outcome = acts = profile = scenarios

    def reward_range(self) -> tuple[float, float]:
        return self.terminal


class RewardingTurns(Rewarding):
    def turn_reward_range(self) -> tuple[float, float]:
        return self.per_turn


def worth(reward: float, *turns: float) -> list[Dialogue]:
    return [replace(population(terse, 1, 1)[0], outcome=Outcome(reward=reward, success=True, turn_rewards=turns))]


def test_stakes_are_those_that_the_task_tells_and_keeps_to() -> None:
    task = RewardingTurns()
    assert stakes_of(task, worth(0.5, -0.5, -0.1)) == Stakes(terminal=1.0, per_turn=0.5, horizon=3)
    assert stakes_of(Rewarding(), worth(1.0)) == Stakes(terminal=1.0, horizon=3)
    assert "rewards turns and has no turn_reward_range()" in str(stakes_of(Rewarding(), worth(1.0, 0.2)))
    assert re.search(r"gave 1.5 in .* reward_range\(\) says 0 to 1", str(stakes_of(task, worth(1.5))))
    assert "turn_reward_range() says -0.5 to -0.1" in str(stakes_of(task, worth(1.0, 0.2)))
    record = shift_record(nothing(exact=EXACT, stakes=stakes_of(task, worth(1.5))))
    assert record["bound"] is None and "gave 1.5" in record["refused"]["bound"]
    task.terminal = (1.0, 0.0)
    with pytest.raises(UserError, match="the least first"):
        stakes_of(task, [])


def test_exact_figures_replace_the_classifiers_and_stand_beside_them() -> None:
    record = shift_record(nothing(exact=EXACT, replies=replies(), stakes=Stakes(terminal=1.0)), null_halvings=1)
    assert [row["mean"] for row in record["simulator"]["by_turn"]] == pytest.approx([0.75, 0.0])
    assert record["simulator_estimated"]["mean"] > 0.8
    assert record["bound"]["mean"] == pytest.approx(0.75) and record["shift_index"] is None
    assert record["null_band"][0] <= record["null_band"][1] < 0.8


def test_without_a_program_there_is_an_index_and_no_bound() -> None:
    data = replies()
    record = shift_record(nothing(replies=data, stakes=Stakes(terminal=2.0)))
    assert record["bound"] is None and record["exploitation"] is None and record["null_band"] is None
    turns = record["simulator"]["by_turn"]
    expected = 2.0 * sum(row["mean"] * row["count"] for row in turns) / len(set(data.dialogue))
    assert record["shift_index"]["mean"] == pytest.approx(expected)
    assert record["shift_index"]["early"] + record["shift_index"]["late"] == pytest.approx(expected)
    assert "null_band" not in record["shift_index"]
    banded = shift_record(nothing(replies=data, stakes=Stakes(terminal=2.0)), null_halvings=1)
    per_dialogue = len(data) / len(set(data.dialogue))
    low, high = banded["shift_index"]["null_band"]
    assert high == pytest.approx(2.0 * per_dialogue * banded["null_band"][1])
    assert low < 0 == banded["null_band"][0]  # the index is not cut off at 0: chance alone must not make it positive


def test_policy_history_and_exploitation() -> None:
    policy = PolicyLogProbs(logged=[-1.0, -1.0], policy=[-1.0, -1.0 + math.log(0.25)], turn=[1, 1], dialogue=["a", "b"])
    logs = population(terse, 12, 1)
    other = DialogueSets(human=logs, simulator=population(wordy, 12, 2))
    scores = {"a": 0.9, "b": 0.7}, {"a": 0.4, "b": 0.4}
    record = shift_record(nothing(policy=policy, histories=other, with_simulator=scores[0], with_humans=scores[1]))
    assert record["policy"]["mean"] == pytest.approx(0.375)  # (0 + 0.75) / 2
    assert record["history_shift"]["mean"] > 0.8
    assert record["exploitation"]["mean"] == pytest.approx(0.4)


def test_what_is_refused_does_not_cost_the_rest() -> None:
    few = DialogueSets(human=population(terse, 2, 1), simulator=population(terse, 2, 2))
    record = shift_record(nothing(exact=EXACT, replies=replies(2), histories=few, stakes=Stakes(terminal=1.0)))
    assert set(record["refused"]) == {"words_tv", "history_shift_tv"} and "12" not in record["refused"]["words_tv"]
    assert record["bound"]["mean"] == pytest.approx(0.75) and record["simulator_estimated"] is None


def test_nothing_that_people_or_engines_do_costs_the_arm() -> None:
    """Nobody says anything, a score is no number, no scenario in common: each is noted, and the rest is measured."""
    silent = ExactReplies(human=[], simulator=[], turn=[], dialogue=[])
    scores: dict[str, Any] = {"with_simulator": {"a": 1.0}, "with_humans": {"b": 1.0}}
    record = shift_record(nothing(exact=silent, stakes=Stakes(terminal=1.0), **scores))
    assert set(record["refused"]) == {"exact_tv", "exploitation"}
    assert record["simulator"] is record["bound"] is record["exploitation"] is None
    policy = PolicyLogProbs(logged=[math.nan], policy=[-1.0], turn=[1], dialogue=["a"], drawn_from="policy")
    broken = ExactReplies(human=[-1.0], simulator=[math.nan], turn=[1], dialogue=["a"])
    record = shift_record(nothing(exact=broken, policy=policy, replies=replies(), stakes=Stakes(terminal=1.0)))
    assert set(record["refused"]) == {"exact_tv", "policy_tv"} and record["policy"] is None
    # The classifier's figure stands beside the exact one, never in its place.
    assert record["simulator"] is None and record["simulator_estimated"]["mean"] > 0.8
    json.dumps(record, allow_nan=False)


def results() -> list[dict[str, Any]]:
    """One arm with two seeds, measured twice."""
    made = []
    for seed, low in ((0, 0.0), (1, math.log(0.25))):
        exact = ExactReplies(human=[0.0, 0.0], simulator=[low, low], turn=[1, 1], dialogue=["a", "b"])
        records = [
            shift_record(
                nothing(
                    update=update, exact=exact, replies=replies(), stakes=Stakes(terminal=1.0),
                    with_simulator={"a": 1.0, "b": 0.5}, with_humans={"a": 0.5, "b": 0.5},
                ),
                null_halvings=int(update == 0),
            )
            for update in (0, 10)
        ]  # fmt: skip
        made.append({"arm": "calibrated", "seed": seed, "shift": records})
    return made


def test_outcomes_of_all_checkpoints_say_whether_the_simulator_ranks_them_rightly() -> None:
    """Policy 0 looks better than policy 1 with the simulator, and is worse with people."""
    made = []
    for seed, (simulator, human) in enumerate(((0.9, 0.1), (0.5, 0.4))):
        outcomes = {
            "simulator_reward": {"a": simulator, "b": simulator}, "human_reward": {"a": human, "b": human},
            "simulator_success": {"a": 1.0, "b": 0.0}, "human_success": {"a": 1.0, "b": 1.0},
        }  # fmt: skip
        made.append({"arm": "interactive", "seed": seed, "shift": [{"update": 0, "outcomes": outcomes}]})
    made += [{"arm": "static", "seed": 0, "shift": [{"update": 0, "outcomes": None}]}, {"arm": "start", "seed": 0}]
    found = transfer_of(made)
    assert set(found) == {"all", "interactive"} and found["all"] == found["interactive"]
    assert found["all"]["policies"] == 2 and found["all"]["rank_spearman"]["mean"] == pytest.approx(-1)
    assert found["all"]["exploitation"]["mean"] == pytest.approx((0.8 + 0.1) / 2)
    assert found["all"]["success_ece"]["mean"] == pytest.approx(0.5)  # 0 said, 1 came true, in half of the cases
    json.dumps(found, allow_nan=False)
    assert transfer_of(results()) == {}  # no successes were noted


def test_seeds_are_averaged_update_by_update() -> None:
    first, second = records_of(results())
    assert (first["update"], second["update"]) == (0, 10)
    assert first["simulator"]["by_turn"][0]["mean"] == pytest.approx(0.375)  # 0 and 0.75
    assert first["null_band"] is not None and second["null_band"] is None
    assert records_of([{"arm": "start", "seed": 0}]) == []


@pytest.mark.slow
def test_an_interval_over_seeds_knows_that_seeds_differ() -> None:
    """Seeds of 0 and 0.75 with narrow intervals of their own do not make a narrow one of their mean."""
    first, _ = records_of(results())
    simulator = first["simulator"]
    assert simulator["mean"] == pytest.approx(0.375)
    half = 12.7062047 * abs(0.75 - 0.0) / 2
    assert simulator["high"] - simulator["mean"] >= half and simulator["mean"] - simulator["low"] >= half
    own = results()[0]["shift"][0]["simulator"]
    assert records_of(results()[:1])[0]["simulator"]["high"] == own["high"]
    # What both users paid is the same with both seeds: only the scenarios' difference of 0.5 and 0 is uncertain.
    exploitation = first["exploitation"]
    assert exploitation["mean"] == pytest.approx(0.25)
    assert exploitation["high"] - 0.25 == pytest.approx(12.7062047 * math.sqrt(2) * 0.25 / math.sqrt(2))


def test_the_summary_shows_the_last_measurement_and_exploitation_over_time() -> None:
    shown = latest({"static": {"shift": []}, "calibrated": {"shift": records_of(results())}})
    assert shown is not None and shown["arm"] == "calibrated" and shown["update"] == 10
    assert shown["simulator"][0]["turn"] == 1 and shown["policy"] == []
    assert [point["update"] for point in shown["exploitation"]] == [0, 10]
    assert latest({"static": {"shift": []}}) is None


def test_the_report_draws_it(tmp_path: Path) -> None:
    records = records_of(results())
    arms = {"calibrated": {"shift": records}, "interactive": {"shift": records[:1]}, "static": {"shift": []}}
    (tmp_path / "summary.json").write_text(json.dumps({"arms": arms}))
    page = write_report(tmp_path).read_text()
    assert "Shift while training" in page and page.count("data:image/svg+xml") >= 3
    (tmp_path / "summary.json").write_text(json.dumps({"arms": {"static": {"shift": []}}}))
    assert "Shift while training" not in write_report(tmp_path).read_text()
