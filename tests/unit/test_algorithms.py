"""The parts of the arms that need no engine: density ratios, the value of a turn, what an arm is charged for."""

from dataclasses import replace

import numpy as np
import pytest

from calibrated_rl.config.load import load_config, variants_of
from calibrated_rl.config.log_settings import log_settings
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.evaluation.summary import summarise
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.logs.scripted import ScriptedLogs
from calibrated_rl.study.compare import side_by_side
from calibrated_rl.training.accounts import TokenBudget, tokens_of_users
from tests.support.paths import ROOT

CONFIGS = ROOT / "configs"


def view(turns: list[int], mask: list[bool]) -> TokenSequence:
    size = len(turns)
    return TokenSequence(
        ids=np.zeros(size, np.int32), mask=np.asarray(mask), logprobs=np.zeros(size, np.float32),
        versions=np.zeros(size, np.int32), turns=np.asarray(turns, np.int32),
    )  # fmt: skip


def test_an_opening_is_charged_once_a_group() -> None:
    def member(number: int) -> Dialogue:
        return Dialogue(
            id=str(number), task="t", turns=(Turn(side=Side.POLICY, text="hello", source=Source.GREETING),), ending="x",
            scenario=Scenario(
                id="s", split=Split.CALIBRATION, policy_instructions="", user_instructions="", greeting="hello"
            ),
            outcome=None, kind="rollout", user_tokens=view([0, 1, 1, 2, 3], [False, True, True, False, True]),
        )  # fmt: skip

    assert tokens_of_users([member(0), member(1), member(2)]) == 2 + 3 * 1


def test_token_budget_starts_from_the_logs_and_then_follows_what_it_sees() -> None:
    budget = TokenBudget(3000, 300.0)
    assert budget.groups() == 10
    budget.saw(1000, 10)
    assert budget.groups() == 30
    budget.saw(3000, 10)
    assert budget.groups() == 15


def test_logs_are_of_the_runs_own_people() -> None:
    config = load_config(CONFIGS / "dev.yaml", ["human_config.cooperativeness=0.5"])
    assert log_settings(config)["human_config"] == {"cooperativeness": 0.5}


def test_variants_change_one_thing_and_keep_to_their_folder() -> None:
    config = load_config(CONFIGS / "frontdesk_study.yaml")
    variants = variants_of(config, CONFIGS / "frontdesk_study.yaml", [])
    assert variants["placebo"].calibration.source == "pretraining"
    assert variants["placebo"].name == "frontdesk_study/variants/placebo"
    assert variants.pop("value_head").training == replace(config.training, turn_value="value_head")
    cells = variants_of(load_config(CONFIGS / "frontdesk_map.yaml"), CONFIGS / "frontdesk_map.yaml", [])
    assert cells["half-far"].pretraining.human_config["cooperativeness"] == 0.5
    assert cells["half-far"].task_config == {"logged_pair": 0.03, "logged_skip": 0.05}
    assert variants and all(variant.training == config.training for variant in variants.values())


def test_summary_of_arms_with_other_seeds_and_of_arms_without_a_judge() -> None:
    def result(arm: str, seed: int, reward: float | None) -> dict[str, object]:
        values = {str(i): 0.0 if reward is None else reward for i in range(4)}
        setting = {"reward": values, "success": values, "turns": values, "endings": {"closed": 1.0}}
        greedy = setting | {"reward": {i: 2 * value for i, value in values.items()}}
        judged = {} if reward is None else {"scores": {"held_out": setting, "held_out_greedy": greedy}}
        spent = dict.fromkeys(("policy_tokens", "user_tokens", "human_turns", "updates", "seconds"), 1)
        return {"arm": arm, "seed": seed, "train_reward_last": 0.5, **spent, **judged}

    rewards = {("static", 3): 0.1, ("oracle", 3): 0.9, ("cloned", 0): 0.2, ("calibrated", 3): 0.7}
    results = [result(arm, seed, reward) for (arm, seed), reward in rewards.items()]
    summary = summarise(results, [0, 3])
    assert summary["paired"]["calibrated-static"]["mean"] == pytest.approx(0.6)
    assert summary["paired_greedy"]["calibrated-static"]["mean"] == pytest.approx(1.2)
    assert "calibrated-cloned" not in summary["paired"] and summary["gap_closed"]["cloned"] is None
    unjudged = summarise([result("static", 0, None)], [0])
    assert unjudged["arms"]["static"]["updates"] == 1 and "held_out" not in unjudged["arms"]["static"]


def test_samples_stand_beside_the_log_of_the_same_person() -> None:
    task = FrontDesk(FrontDesk.Config())
    logs = ScriptedLogs(ScriptedLogs.Config(held_out=3), task=task).read(Split.HELD_OUT)
    person = {"id": logs[1].scenario.id, "goal": dict(logs[1].scenario.goal)}
    stranger = {"id": "nobody", "goal": {}}
    said = {"turns": [["policy", "hello"]], "ending": "left", "reward": -0.1}
    results = [
        {"arm": "start", "seed": 0, "samples": [said | {"scenario": person}, said | {"scenario": stranger}]},
        {"arm": "oracle", "seed": 0, "samples": [said | {"scenario": person}]},
        {"arm": "oracle", "seed": 1, "samples": [said | {"scenario": person}]},
    ]
    known, unknown = side_by_side(results, 0, logs)
    assert list(known["arms"]) == ["logged", "start", "oracle"] and list(unknown["arms"]) == ["start"]
    assert known["arms"]["logged"]["turns"][1] == ["user", logs[1].turns[1].text]
    assert known["arms"]["oracle"] == said
