"""A judge in rollouts, in single turns and on logs: its verdict counts, and a dialogue without one counts nowhere."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrated_rl.config.endpoint_checks import judges_of_their_own
from calibrated_rl.config.judging import load_judging
from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import TrainingConfig
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.registry import Endpoints
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.held_out import metrics_of
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.turns import GenerateRequest
from calibrated_rl.judges.checked import CheckedJudge, build_judge
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.failures import MostlyBroken
from calibrated_rl.run.inputs import read_inputs
from calibrated_rl.run.judged_logs import judged_logs, logs_to_judge
from calibrated_rl.run.saved_run import refuse_other_settings
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.tasks.checked import checked_task
from calibrated_rl.training.turn_reward import reward_turns
from tests.support.fault_server import Fault, FaultServer
from tests.support.made_up_judges import MadeUpJudge
from tests.support.made_up_pools import Chat, MadeUpPool, by_seed, collector_of
from tests.support.paths import MICRO, ROOT
from tests.unit.test_arm_accounts import MadeUpRun, audited, dialogues_of, train
from tests.unit.test_arm_accounts import metrics_of as logged
from tests.unit.test_endpoint_user import Batches
from tests.unit.test_judge import CONFIG, PATH, always, vote

SCENARIOS = Chat().scenarios(Split.CALIBRATION, 12)
RUN: dict[str, Any] = {"group_size": 2, "arm": "a", "update": 0, "seed": 0}
ROLLOUT_CALL = {k: v for k, v in RUN.items() if k != "group_size"}


def judged_collector(policy: MadeUpPool | None = None, **judge: Any) -> tuple[Collector, MadeUpJudge]:
    collector, part = collector_of(policy or MadeUpPool("policy")), MadeUpJudge(MadeUpJudge.Config(**judge))
    collector.judge = CheckedJudge(part)
    return collector, part


def collect(collector: Collector, **changes: Any) -> list[list[Dialogue] | None]:
    return collector.groups(SCENARIOS, MadeUpPool("simulator"), **RUN | changes)


def outcomes(groups: Sequence[list[Dialogue] | None]) -> list[Outcome]:
    return [d.outcome for group in groups if group for d in group if d.outcome is not None]


def test_the_judges_verdict_counts_and_the_tasks_own_is_kept() -> None:
    collector, judge = judged_collector()
    found = outcomes(collect(collector))
    assert len(found) == judge.asked == 24 and {outcome.reward for outcome in found} == {0.5}
    assert all(outcome.details == {"task_reward": 3.0, "task_success": True} for outcome in found)
    assert collector.statistics.tries_of("rollout") == {"whole": 24} and not collector.statistics.dropped
    unjudged = outcomes(collect(collector, judged=False))
    assert judge.asked == 24 and {outcome.reward for outcome in unjudged} == {3.0}


def odd(request: GenerateRequest) -> str:
    """Every fifth turn of the policy is one that the judge has no verdict on."""
    return "awful" if request.seed % 5 == 0 else by_seed(request)


@pytest.mark.parametrize(("final", "asked"), [(True, 1), (False, 3)])
def test_a_failed_verdict_drops_the_dialogue_and_its_group(final: bool, asked: int) -> None:
    unbroken = collect(judged_collector(MadeUpPool("policy", odd))[0])
    broken = [sum("awful" in [turn.text for turn in d.turns] for d in group or ()) for group in unbroken]
    collector, judge = judged_collector(MadeUpPool("policy", odd), breaks="awful", final=final)
    groups = collect(collector)
    assert [group is None for group in groups] == [count > 0 for count in broken] and 0 < groups.count(None) < 12
    assert {outcome.reward for outcome in outcomes(groups)} == {0.5}, "none is scored 0"
    statistics, failed = collector.statistics, sum(broken)
    assert statistics.tries_of("rollout") == {"whole": 24 - failed, "judge": failed}
    assert statistics.dropped == {"judge: made up": asked * failed, "group": groups.count(None)}
    assert judge.asked == 24 + (asked - 1) * failed, "one that has answered is not asked again"
    assert len(statistics.groups_dropped) == groups.count(None)
    assert all("judge: made up" in reason for reason in statistics.groups_dropped.values())


def test_a_judge_that_breaks_most_ends_the_run() -> None:
    collector, _ = judged_collector(breaks="hello")
    with pytest.raises(MostlyBroken, match=r"the judge broke 24 of 24 tries .*judge: made up 24.* Repair the judge"):
        collector.collect(SCENARIOS, MadeUpPool("simulator"), **RUN)


def test_in_lockstep_batches_do_not_depend_on_the_judge() -> None:
    batches = []
    for delays in ([], [0], [0, 5, 1, 40], [30, 2]):
        policy = Batches()
        collector, _ = judged_collector(policy, delays=delays)
        collector.groups(SCENARIOS, MadeUpPool("simulator", lockstep=policy.lockstep), **RUN)
        batches.append(policy.seeds)
    assert len(batches[0]) == 3 and all(each == batches[0] for each in batches)


def test_a_model_that_judges_costs_no_dialogue_its_reward(tmp_path: Path) -> None:
    """Faults of the server and nonsense of the model: nothing is scored 0, nothing is paid twice."""

    def some(number: int, body: Any) -> Fault | None:
        return Fault(("500", "malformed", "429")[number % 3]) if number % 5 == 0 else None

    def say(messages: Any, seed: int) -> str:
        return "nonsense" if "friday friday" in messages[-1]["content"] else vote(5, 5)

    with FaultServer(say=say, plan=some) as server:
        endpoints = Endpoints({"judge": EndpointConfig(base_url=server.url, model="m", retries=8)}, tmp_path)
        collector = collector_of(MadeUpPool("policy", lockstep=LockstepScheduler()))
        collector.judge = build_judge(PATH, CONFIG, "judge_config", endpoints)
        groups = collect(collector)
        asked = server.counts()["answered"]
        assert [outcome.reward for outcome in outcomes(groups)] == [1.0] * 2 * (12 - groups.count(None))
        assert set(collector.statistics.dropped) == {"judge: no JSON", "group"} and groups.count(None) < 12
        assert collect(collector) is not None and server.counts()["answered"] == asked
        assert set(server.answered().values()) == {1}
        endpoints.close()


@pytest.mark.parametrize("staleness", [0, 2])
def test_an_arm_learns_from_verdicts_and_accounts_for_what_has_none(staleness: int, tmp_path: Path) -> None:
    training = TrainingConfig(
        updates=3, tokens_per_update=70, group_size=3, checkpoint_every=100, max_staleness=staleness
    )
    run = MadeUpRun(tmp_path, training, by_seed, 0)
    run.policy.say = lambda request: "awful" if request.seed % 17 == 0 else f"quality {request.seed % 5 + 1}"
    run.cluster.collector.judge = CheckedJudge(MadeUpJudge(MadeUpJudge.Config(breaks="awful", delays=[0, 3, 9])))
    arm = train(run)
    account = audited(run, arm)
    learned = dialogues_of(run)
    assert {d.outcome.reward for d in learned if d.outcome} <= {0, 0.25, 0.5, 0.75, 1} and len(learned) >= 9
    assert not any("awful" in turn.text for d in learned for turn in d.turns)
    assert len(logged(arm, "reward")) == 3 and all(0 <= reward <= 1 for reward in logged(arm, "reward"))
    dropped = run.cluster.collector.statistics.dropped
    assert set(dropped) == {"judge: made up", "group"} and account.requested == account.delivered + sum(
        account.dropped.values()
    )


OPENING = (Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
           Turn(side=Side.USER, text="table", source=Source.LOG))  # fmt: skip


class Closing(Chat):
    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return "closed" if "friday" in turns[-1].text else None


def test_a_single_turn_that_ends_a_dialogue_is_judged() -> None:
    collector, judge = judged_collector(breaks="seven")
    collector.task = Closing()
    value: Any = SimpleNamespace(value=lambda cases: np.full(len(cases), 0.25))
    turns = collector.turn_groups([(scenario, OPENING) for scenario in SCENARIOS], **RUN | {"group_size": 1})
    found = reward_turns(collector.task, value, turns, collector.statistics, collector.judge)
    said = [group[0].turns[-1].text.split() if group else [] for group in turns]
    expected = [None if {"friday", "seven"} <= set(w) else 0.5 if "friday" in w else 0.25 for w in said]
    assert [group[0].outcome.reward if group and group[0].outcome else None for group in found] == expected
    assert {None, 0.5, 0.25} == set(expected) and judge.asked == sum("friday" in words for words in said)
    assert collector.statistics.tries_of("rollout")["judge"] == expected.count(None)


# --- logs --------------------------------------------------------------------------------------------------


def log(split: Split, number: int, word: str = "fine", source: Source = Source.LOG) -> Dialogue:
    scenario = replace(SCENARIOS[0], id=f"{split}-{number}", split=split)
    turns = (*OPENING, Turn(side=Side.POLICY, text=f"quality {number % 5 + 1} {word}", source=source))
    own = Outcome(reward=10.0, success=False) if number % 2 else None
    return Dialogue(id=f"log-{scenario.id}", task="chat", scenario=scenario, turns=turns, ending="left", outcome=own,
                    kind="log")  # fmt: skip


def logs_of(count: int = 8, words: Sequence[str] = ("fine",)) -> dict[Split, list[Dialogue]]:
    return {split: [log(split, n, words[n % len(words)]) for n in range(count)] for split in Split}


def judged(config: RunConfig, logs: dict[Split, list[Dialogue]], **judge: Any) -> dict[Split, list[Dialogue]]:
    part = CheckedJudge(MadeUpJudge(MadeUpJudge.Config(**judge)))
    return judged_logs(config, part, Chat(), logs, Progress())


def test_logs_are_judged_where_something_learns_from_them() -> None:
    found = judged(RunConfig(arms=["static"]), logs_of())
    for split in (Split.CALIBRATION, Split.MONITOR, Split.TUNING):
        assert [d.outcome.reward for d in found[split] if d.outcome] == [0, 0.25, 0.5, 0.75, 1, 0, 0.25, 0.5]
    assert [d.outcome is not None for d in found[Split.HELD_OUT]] == [True] * 3 + [False] * 5, "those that are shown"
    first, second = found[Split.TUNING][:2]
    assert first.outcome and second.outcome and second.outcome.details["task_reward"] == 10.0
    assert first.outcome.details["task_reward"] is None and not first.outcome.success


def test_which_logs_are_judged() -> None:
    def counts(**changes: Any) -> list[int]:
        return [*logs_to_judge(replace(RunConfig(arms=["start", "interactive"]), **changes), logs_of()).values()]

    nobody = RunConfig()
    assert list(Split) == [Split.CALIBRATION, Split.MONITOR, Split.TUNING, Split.HELD_OUT]
    assert counts() == [0, 0, 0, 3] and counts(arms=["cloned"]) == counts(control_arms=["static"]) == [8, 8, 8, 3]
    assert counts(training=replace(nobody.training, advantage="gae")) == [8, 8, 8, 3], "its critic is fitted to them"
    reserve = replace(nobody.calibration, reserve=3)
    assert counts(arms=["static"], calibration=reserve) == [5, 8, 8, 3]
    proxies = {"proxies": {"p": {"model": "endpoint:p"}}}
    assert counts(**proxies) == [0, 0, 0, 8], "proxies are compared with people"
    tuning = replace(nobody.evaluation, split="tuning", scenarios=6)
    assert counts(**proxies, evaluation=tuning) == [0, 0, 6, 3]


def test_logs_without_a_verdict_have_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        found = judged(RunConfig(arms=["static"]), logs_of(8, ("fine", "awful")), breaks="awful")
    assert [d.outcome is None for d in found[Split.CALIBRATION]] == [False, True] * 4
    assert [d.turns for d in found[Split.CALIBRATION]] == [
        d.turns for d in logs_of(8, ("fine", "awful"))[Split.CALIBRATION]
    ]
    assert "what 14 logs were worth; 13 without a verdict" in caplog.text and "judge: made up 13" in caplog.text
    with pytest.raises(MostlyBroken, match="no verdict on 27 of 27 logs .*jobs/judge.py check"):
        judged(RunConfig(arms=["static"]), logs_of(), breaks="fine")


def test_a_reply_that_was_asked_for_is_not_judged() -> None:
    logs = {split: [*logs_of(4)[split], log(split, 4, source=Source.SIMULATOR)] for split in Split}
    assert [d.outcome is None for d in judged(RunConfig(arms=["static"]), logs)[Split.TUNING]] == [False] * 4 + [True]


class Measuring(Chat):
    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        return replace(super().outcome(scenario, turns, ending), details={"own": 7.0})

    def metrics(self, scenario: Scenario, turns: Sequence[Turn], outcome: Outcome) -> dict[str, float]:
        return {"own": outcome.details["own"]}


def test_criteria_are_metrics_beside_the_tasks_own(tmp_path: Path) -> None:
    task = checked_task(Measuring())
    with FaultServer(say=always(vote(4, 3))) as server:
        endpoints = Endpoints({"judge": EndpointConfig(base_url=server.url, model="m")}, tmp_path)
        judge = build_judge(PATH, CONFIG, "judge_config", endpoints)
        talk = replace(log(Split.TUNING, 1), outcome=task.outcome(SCENARIOS[0], OPENING, "max_turns"))
        scored, alone = (
            replace(each, outcome=asyncio.run(judge.outcome(task, each)))
            for each in (talk, replace(talk, outcome=None))
        )
        endpoints.close()
    of_judge = {"reward": 0.6875, "success": 0.0, "turns": 1.0, "judge_help": 4.0, "judge_tone": 3.0}
    assert metrics_of(task, scored) == {**of_judge, "own": 7.0}
    assert metrics_of(task, alone) == of_judge, "a log of which the task says nothing"


# --- settings ------------------------------------------------------------------------------------------------

JUDGED = [
    "judge=calibrated_rl.judges.rubric:RubricJudge",
    "judge_config={model: 'endpoint:j', rubric: [{name: help, question: 'Did it help?'}]}",
    "endpoints={j: {base_url: 'http://h/v1', model: m}, twin: {base_url: 'http://h/v1/', model: m}}",
]


def test_a_config_with_a_judge() -> None:
    config = load_config(MICRO, JUDGED)
    assert not [line for line in settings_without_effect(config) if "endpoints.j " in line or "judge" in line]
    assert "judge_config has no effect: `judge` is empty" in settings_without_effect(load_config(MICRO, JUDGED[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("judge_config.model=endpoint:k", "judge_config.model is 'endpoint:k', and `endpoints` has no 'k'"),
        ("judge=calibrated_rl.learner.losses.grpo:GRPO", "is no judge: it has no outcome"), ("judge=three", "judge"),
        ("judge_config.votes=0", "judge_config.votes is 0"), ("judge_config.rubric=[]", "rubric is empty"),
        ("judge_config.rubrik=[]", "did you mean"), ("endpoints.j.parameters={response_format: {}}", "response_format"),
    ],
)  # fmt: skip
def test_what_is_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MICRO, [*JUDGED, change])


def test_a_judge_that_is_the_simulator_is_told() -> None:
    base = ["arms=[start, interactive]", "pretraining.human=''", "pretraining.logs={}", "pretraining.human_config={}"]
    for model, told in (("endpoint:j", 1), ("endpoint:twin", 1), ("tiny", 0)):
        lines = [*judges_of_their_own(load_config(MICRO, [*JUDGED, *base, f"simulator.model={model}"]))]
        assert len(lines) == told and all("simulator.model and the judge are the same model" in line for line in lines)


def test_a_run_resumes_with_another_deadline_and_not_with_another_rubric(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(MICRO, JUDGED)))
    refuse_other_settings(tmp_path, load_config(MICRO, [*JUDGED, "judge_config.deadline=9", "judge_config.at_once=2"]))
    for change in ("judge_config.votes=5", "judge_config.lowest=0", "judge=''"):
        with pytest.raises(UserError, match="was begun with other settings"):
            refuse_other_settings(tmp_path, load_config(MICRO, [*JUDGED, change]))


def test_the_inputs_of_a_run_have_judged_logs(tmp_path: Path) -> None:
    """A key that is missing is told before anything is asked; logs are judged once, and again from the answers."""
    with FaultServer(say=always(vote(5, 4))) as server:
        endpoints = f"endpoints={{judge: {{base_url: '{server.url}', model: m}}}}"
        rubric = "[{name: help, question: a, weight: 3}, {name: tone, question: b}]"
        judge = f"{{model: 'endpoint:judge', rubric: {rubric}, votes: 1, fewest_votes: 1}}"
        sizes = ["logs.calibration=40", "logs.monitor=6"]
        changes = ["arms=[static]", *sizes, f"judge={PATH}", f"judge_config={judge}", endpoints]
        keyed = [*changes[:-1], endpoints.replace("model: m", "model: m, api_key: '${oc.env:NOT_THERE_AT_ALL}'")]
        with pytest.raises(UserError, match="NOT_THERE_AT_ALL"):
            read_inputs(load_config(MICRO, keyed), tmp_path, Progress())
        assert not server.served
        found = []
        for _ in range(2):
            inputs = read_inputs(load_config(MICRO, changes), tmp_path, Progress())
            found.append({split: [d.outcome and d.outcome.reward for d in inputs.logs[split]] for split in Split})
            inputs.endpoints.close()
            assert inputs.judge is not None
        assert set(found[0][Split.CALIBRATION]) == {0.9375} and found[0] == found[1]
        assert set(server.answered().values()) == {1}
        assert inputs.endpoints.paid("judging logs")["judge"]["answers"] == len(server.answered())
        again = read_inputs(load_config(MICRO, changes), tmp_path, Progress(), training=False)
        assert {log.outcome for split in Split for log in again.logs[split]} == {None}, "nobody asks, nothing is mixed"
        again.endpoints.close()
    assert Counter(split for split in Split for _ in inputs.logs[split]).total() > 0


# --- the page "Judges" ---------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/judges.md").read_text()


def test_the_config_of_the_docs_is_one(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(PAGE.partition("```yaml\n")[2].partition("```")[0])
    config = load_config(tmp_path / "judge.yaml", ["arms=[start, interactive]"])
    assert config.judge == PATH and len(config.judge_config["rubric"]) == 3
    judging = load_judging(tmp_path / "judge.yaml")
    build_judge(judging.judge, judging.judge_config, "judge_config", Endpoints(judging.endpoints, tmp_path))


def test_the_judge_of_the_docs_is_one(tmp_path: Path) -> None:
    (tmp_path / "polite.py").write_text(PAGE.partition("```python\n")[2].partition("```")[0])
    judge = build_judge(f"{tmp_path}/polite.py:Polite", {"word": "fine"}, "judge_config", Endpoints({}, tmp_path))
    kind, rude = (asyncio.run(judge.outcome(Chat(), log(Split.TUNING, 0, word))) for word in ("fine", "no"))
    assert (kind.reward, kind.success, rude.reward) == (1.0, True, 0.0) and judge.scores and not judge.compares
