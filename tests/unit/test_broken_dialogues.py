"""What anybody but the policy breaks is dropped, counted by party and run again, never scored (contract 5)."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.chat.tokens import view_of
from calibrated_rl.config.sections import EvaluationConfig
from calibrated_rl.data.dialogue import Dialogue, Finish, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import Party, RolloutFailure, UserError
from calibrated_rl.evaluation.held_out import evaluate_policy
from calibrated_rl.evaluation.replies import answers
from calibrated_rl.examples.casino.task import Casino
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.turns import GenerateRequest
from calibrated_rl.rollout.collector import Collector, draw_seed
from calibrated_rl.rollout.context import check_context_for_first_turn
from calibrated_rl.rollout.conversation import find_flaw, finished, stable_seed
from calibrated_rl.rollout.failures import MostlyBroken, is_scored, party_of, refuse_mostly_broken
from calibrated_rl.rollout.statistics import cut_shares
from calibrated_rl.study.compare import meet_simulator
from calibrated_rl.tasks.base import UserCheckingTask
from calibrated_rl.training.turn_reward import reward_turns
from tests.support.made_up_pools import Chat, MadeUpPool, Say, by_seed, collector_of, control_token, tokens

SCENARIOS = Chat().scenarios(Split.CALIBRATION, 12)
BROKEN: dict[str, str | list[int]] = {
    "user_degenerate": [control_token()],
    "user_empty": "  ",
    "user_role_confusion": "assistant: which day ?",
}


def now_and_then(said: str | list[int], share: float) -> Say:
    """``said`` instead of what would have been said, by the draw."""
    return lambda r: said if np.random.default_rng(r.seed + 1).random() < share else by_seed(r)


def collect(collector: Collector, user: MadeUpPool, groups: int = 12, **named: Any) -> list[list[Dialogue]]:
    return collector.collect(SCENARIOS[:groups], user, **{"group_size": 4, "arm": "a", "update": 0, "seed": 0, **named})


# --- whose fault


@pytest.mark.parametrize("ending", list(BROKEN))
def test_a_dialogue_that_the_simulator_broke_is_run_again_and_never_scored(ending: str) -> None:
    """Scored, a control token ended it with the reward of a failure, an innocent policy's."""
    collector = collector_of(MadeUpPool("policy"))
    groups = collect(collector, MadeUpPool("simulator", now_and_then(BROKEN[ending], 0.05)))
    dialogues = [dialogue for group in groups for dialogue in group]
    assert len(dialogues) > 40 and all(len(group) == 4 for group in groups)
    assert {d.ending for d in dialogues} == {"max_turns"}
    assert {d.outcome.reward for d in dialogues if d.outcome} == {3.0}
    statistics = collector.statistics
    assert statistics.dropped[ending] == statistics.tries["rollout/user"] > 3
    assert statistics.tries_of("rollout")["whole"] >= len(dialogues) and not statistics.tries_of("evaluation")
    assert set(statistics.flaws) <= {"user/repeat", "policy/repeat"}, "flaws are those of what was kept"


def test_what_is_not_broken_is_drawn_as_if_nothing_else_were() -> None:
    """Attempt 0 has the member's own seed; an attempt after a broken one a seed of its own, and nobody else another."""
    clean, broken = MadeUpPool("simulator"), MadeUpPool("simulator", now_and_then([control_token()], 0.05))
    pools = MadeUpPool("policy"), MadeUpPool("policy")
    plain = collect(collector_of(pools[0]), clean)
    repaired = {d.id: d for group in collect(collector_of(pools[1]), broken) for d in group}
    assert [r.seed for r in pools[0].asked[:1]] == [stable_seed(stable_seed("a-0-0-0", 0), Side.POLICY, 1)]
    same, other = 0, 0
    for dialogue in [d for group in plain for d in group]:
        member = int(dialogue.id.rpartition("-")[2])
        assert dialogue.sampling_seed == stable_seed(dialogue.group_id, member)
        now = repaired.get(dialogue.id)
        if now is not None and now.turns[1] == dialogue.turns[1]:
            if now.sampling_seed == dialogue.sampling_seed:
                assert now.turns == dialogue.turns
                same += 1
            else:
                seeds = [draw_seed(dialogue.group_id, member, attempt) for attempt in (1, 2)]
                assert now.sampling_seed in seeds and now.turns[2:] != dialogue.turns[2:]
                other += 1
    assert same > 30 and other > 3


def test_an_opening_that_breaks_is_drawn_again_for_the_whole_group() -> None:
    first = {stable_seed(stable_seed(f"a-0-0-{n}", -1), Side.USER, 1) for n in range(12)}
    user = MadeUpPool("simulator", lambda r: "" if r.seed in first else by_seed(r))
    collector = collector_of(MadeUpPool("policy"))
    groups = collect(collector, user)
    assert len(groups) == 12 and collector.statistics.dropped == {"user_empty": 12}
    assert all(len({d.turns[1] for d in group}) == 1 for group in groups)


def test_an_engine_that_fails_gives_the_same_draws_again() -> None:
    failed: set[int] = set()

    def once(request: GenerateRequest) -> str:
        if request.seed % 17 == 0 and request.seed not in failed:
            failed.add(request.seed)
            raise RolloutFailure("policy: EngineDeadError")
        return by_seed(request)

    plain = collect(collector_of(MadeUpPool("policy")), MadeUpPool("simulator"))
    collector = collector_of(MadeUpPool("policy", once))
    again = collect(collector, MadeUpPool("simulator"))
    assert failed and collector.statistics.tries["rollout/engine"] == len(failed)
    assert [[d.turns for d in g] for g in plain] == [[d.turns for d in g] for g in again]


@pytest.mark.parametrize(
    ("say", "context", "ending"),
    [(lambda r: [control_token()], 512, "policy_degenerate"), (by_seed, 100, "policy_context")],
)
def test_what_the_policy_breaks_is_its_own(say: Say, context: int, ending: str) -> None:
    collector = collector_of(MadeUpPool("policy", say, context=context))
    groups = collect(collector, MadeUpPool("simulator"))
    assert {d.ending for g in groups for d in g} == {ending} and party_of(ending) is Party.POLICY
    assert {d.outcome.reward for g in groups for d in g if d.outcome} == {-1.0}
    assert not collector.statistics.dropped


def test_endings_of_old_stores_and_of_tasks_are_nobodys_fault() -> None:
    for ending in ("context", "degenerate", "max_turns", "left", "user_left"):
        assert party_of(ending) is None and is_scored(ending)
    assert not any(map(is_scored, [*BROKEN, "user_context", "user_against_goal"]))
    named = {"id": "x", "kind": "rollout"}
    assert finished(Chat(), SCENARIOS[0], [], "user_empty", **named).outcome is None
    turns = [Turn(side=Side.POLICY, text="hello", source=Source.GREETING)]
    assert finished(Chat(), SCENARIOS[0], turns, "degenerate", **named).outcome is not None


def test_benchmarks_keep_what_a_simulator_breaks_without_a_score() -> None:
    collector = collector_of(MadeUpPool("policy"))
    collector.keep_broken = True
    groups = collect(collector, MadeUpPool("simulator", now_and_then([control_token()], 0.3)))
    assert len(groups) == 12 and not collector.statistics.dropped
    assert {(d.ending, d.outcome is None) for g in groups for d in g} == {
        ("max_turns", False), ("user_degenerate", True)
    }  # fmt: skip


def test_a_turn_that_the_engine_gave_up_is_no_turn() -> None:
    """It ends with no control token and short of the limit: scored, it was taken for one that was cut at the limit."""
    given_up: set[int] = set()

    def cut_off(request: GenerateRequest) -> str | list[int]:
        if request.seed % 17 or request.seed in given_up:
            return by_seed(request)
        given_up.add(request.seed)
        return tokens().encode_text(by_seed(request))[:2]

    collector = collector_of(MadeUpPool("policy", cut_off))
    groups = collect(collector, MadeUpPool("simulator"))
    assert given_up and collector.statistics.dropped == {"policy: unfinished turn": len(given_up)}
    assert [[d.turns for d in g] for g in groups] == [
        [d.turns for d in g] for g in collect(collector_of(MadeUpPool("policy")), MadeUpPool("simulator"))
    ]


def test_a_simulator_without_room_breaks_the_dialogue() -> None:
    collector = collector_of(MadeUpPool("policy"))
    with pytest.raises(UserError, match=r"the user model broke \d+ of \d+ tries .*user_context.*max_model_len"):
        collect(collector, MadeUpPool("simulator", context=130))
    assert set(collector.statistics.groups_dropped.values()) == {"with a dialogue that could not be run (user_context)"}


def test_a_policy_that_never_had_room_to_speak_has_broken_nothing() -> None:
    policy = MadeUpPool("policy", context=46)  # just what its own instructions need
    with pytest.raises(UserError, match="user_overlong 36"):
        collect(collector_of(policy), MadeUpPool("simulator"), groups=3)
    assert not policy.asked


def test_a_context_that_the_policys_own_instructions_fill_is_no_users_fault() -> None:
    long = [replace(s, policy_instructions="friday seven " * 60) for s in SCENARIOS[:3]]
    for scenarios, context in ((long, 130), (SCENARIOS[:3], 45)):
        policy = MadeUpPool("policy", context=context)
        with pytest.raises(UserError, match=rf"policy\.engine\.max_model_len is {context} .* scenario 0 alone"):
            collector_of(policy).collect(scenarios, MadeUpPool("simulator"), group_size=4, arm="a", update=0, seed=0)
        assert not policy.asked


def test_room_to_begin_is_exact() -> None:
    view = view_of(tokens(), SCENARIOS[0], Side.POLICY, [
        Turn(side=Side.POLICY, text="hello", source=Source.GREETING), Turn(side=Side.USER, text="", source=Source.LOG)
    ])  # fmt: skip
    enough = len(view) + 32 + 1
    check_context_for_first_turn(tokens(), SCENARIOS[0], 32, enough)
    with pytest.raises(UserError, match=f"they take {enough}, before"):
        check_context_for_first_turn(tokens(), SCENARIOS[0], 32, enough - 1)


def test_a_simulator_that_always_breaks_ends_the_run_in_words() -> None:
    for always in (list(BROKEN.values())[0], ""):
        user, collector = MadeUpPool("simulator", lambda r, always=always: always), collector_of(MadeUpPool("policy"))
        with pytest.raises(UserError, match="the user model broke 36 of 36 tries to run a dialogue"):
            collect(collector, user)
        assert len(user.asked) == 36, "three tries for the opening of each group, and no more"
        with pytest.raises(UserError, match="broke 3 of 3 tries"):
            collect(collector_of(MadeUpPool("policy")), user, groups=1)


def test_a_few_broken_tries_or_a_dead_engine_are_no_broken_user() -> None:
    refuse_mostly_broken({"whole": 10, "user": 10, "engine": 90}, {})
    refuse_mostly_broken({"whole": 0, "user": 19}, {})
    for party in ("user", "judge", "tool"):
        refuse_mostly_broken({"whole": 10, party: 30}, {"why": 30})
        with pytest.raises(UserError, match="broke 31 of 41"):
            refuse_mostly_broken({"whole": 10, party: 31}, {"why": 31})
    with pytest.raises(RolloutFailure, match="no group of 12"):

        def dead(request: GenerateRequest) -> str:
            raise RolloutFailure("policy: EngineDeadError")

        collect(collector_of(MadeUpPool("policy", dead)), MadeUpPool("simulator"))


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 0.35), st.integers(0, 5), st.sampled_from(sorted(BROKEN)), st.integers(1, 4))
def test_whatever_breaks_groups_come_whole_or_with_a_reason(share: float, seed: int, ending: str, size: int) -> None:
    collector = collector_of(MadeUpPool("policy", now_and_then([control_token()], share / 4)))
    user = MadeUpPool("simulator", now_and_then(BROKEN[ending], share))
    groups = collector.groups(SCENARIOS, user, group_size=size, arm="a", update=0, seed=seed)
    for number, group in enumerate(groups):
        if group is None:
            assert ending in collector.statistics.groups_dropped[f"a-{seed}-0-{number}"]
        else:
            assert [d.id for d in group] == [f"a-{seed}-0-{number}-{m}" for m in range(size)]
            assert all(is_scored(d.ending) and d.outcome is not None for d in group)
            assert not any(t.side is Side.USER and t.flaw not in (None, "repeat") for d in group for t in d.turns)


def test_waves_with_broken_dialogues_are_the_same_again() -> None:
    def run() -> tuple[list[list[Dialogue]], list[int]]:
        lockstep = LockstepScheduler()
        policy = MadeUpPool("policy", lockstep=lockstep)
        groups = collect(
            collector_of(policy), MadeUpPool("simulator", now_and_then([control_token()], 0.05), lockstep=lockstep)
        )
        assert lockstep.running == 0 and not lockstep.waiting
        return groups, [request.seed for request in policy.asked]

    first, second = run(), run()
    assert first[1] == second[1] and len(first[0]) > 6
    assert [[d.turns for d in g] for g in first[0]] == [[d.turns for d in g] for g in second[0]]


# --- what the task can tell


class Strict(Chat):
    """Nobody says friday seven."""

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        assert turns[-1].source is Source.SIMULATOR
        return "friday seven" in turns[-1].text


def test_a_simulator_that_acts_against_its_goal_breaks_the_dialogue_before_the_task_ends_it() -> None:
    assert isinstance(Strict(), UserCheckingTask) and not isinstance(Chat(), UserCheckingTask)
    collector = collector_of(MadeUpPool("policy"), Strict())
    groups = collect(collector, MadeUpPool("simulator", now_and_then("friday seven bye", 0.05)))
    assert groups and {d.ending for g in groups for d in g} == {"max_turns"}
    assert collector.statistics.dropped["user_against_goal"] > 3


def test_leaving_at_once_is_against_any_goal() -> None:
    desk = FrontDesk(FrontDesk.Config())
    (scenario,) = desk.scenarios(Split.CALIBRATION, 1)

    def said(*texts: str) -> list[Turn]:
        sides = (Side.POLICY, Side.USER)
        return [Turn(side=sides[i % 2], text=text, source=Source.SIMULATOR) for i, text in enumerate(texts)]

    assert desk.against_goal(scenario, said("hello", "forget it bye"))
    assert not desk.against_goal(scenario, said("hello", "table friday"))
    assert not desk.against_goal(scenario, said("hello", "table", "which day ?", "forget it bye"))
    assert Casino.against_goal(None, scenario, said("Hi!", "Walk-Away"))  # type: ignore[arg-type]
    assert not Casino.against_goal(None, scenario, said("Hi!", "I need food", "No.", "Walk-Away"))  # type: ignore[arg-type]


class Word(Chat):
    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return "policy_context" if len(turns) > 2 else None


def test_a_task_may_not_call_its_endings_what_means_that_somebody_broke_it() -> None:
    with pytest.raises(UserError, match="task chat: 'ending' returned 'policy_context' \\(scenario 0\\)"):
        collect(collector_of(MadeUpPool("policy"), Word()), MadeUpPool("simulator"), groups=1)


class Judged(Chat):
    """Whose judge does not answer at times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: list[Sequence[Turn]] = []

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        self.asked.append(tuple(turns))
        if self.asked.count(tuple(turns)) <= self.failures:
            raise RolloutFailure("judge: no answer", Party.JUDGE)
        return super().outcome(scenario, turns, ending)


def test_a_judge_that_fails_is_asked_about_the_same_dialogue_again() -> None:
    task, policy = Judged(2), MadeUpPool("policy")
    collector = collector_of(policy, task)
    groups = collect(collector, MadeUpPool("simulator"))
    assert len(groups) == 12 and collector.statistics.dropped == {"judge: no answer": 2 * 48}
    assert len(policy.asked) == 3 * 48, "no turn was drawn twice"
    collector = collector_of(MadeUpPool("policy"), Judged(3))
    with pytest.raises(UserError, match=r"the judge broke 48 of 48 tries .* Repair the judge"):
        collect(collector, MadeUpPool("simulator"))
    assert +collector.statistics.tries_of("rollout") == {"judge": 48}, "no openings; no try counts twice"


def test_openings_that_are_said_hide_no_party_that_breaks_all_dialogues() -> None:
    """With groups of one, openings were half of the tries of a judge that never answers, and a quarter of those of a
    simulator that breaks each dialogue after its opening: neither share came above three quarters."""
    openings = {stable_seed(stable_seed(f"a-0-0-{n}", -1), Side.USER, 1) for n in range(12)}
    after = MadeUpPool("simulator", lambda r: by_seed(r) if r.seed in openings else "")
    for task, user, expected in (
        (Judged(3), MadeUpPool("simulator"), {"judge": 12}), (Chat(), after, {"user": 36})
    ):  # fmt: skip
        collector = collector_of(MadeUpPool("policy"), task)
        assert collector.groups(SCENARIOS, user, group_size=1, arm="a", update=0, seed=0) == [None] * 12
        tries = +collector.statistics.tries_of("rollout")
        assert tries == expected
        with pytest.raises(UserError, match=f"the {'judge' if 'judge' in tries else 'user model'} broke"):
            refuse_mostly_broken(Counter({party: 2 * count for party, count in tries.items()}), {})
    # An opening that breaks and is said at last is one broken dialogue, and no whole one.
    user = MadeUpPool("simulator", lambda r: "" if r.seed in openings else by_seed(r))
    collector = collector_of(MadeUpPool("policy"))
    collect(collector, user, group_size=1)
    assert collector.statistics.tries_of("rollout") == {"user": 12, "whole": 12}


def test_a_judge_that_fails_on_a_single_turn_drops_its_group() -> None:
    """In static context RL, where a turn that ends the dialogue gets the task's own reward."""

    class Closing(Judged):
        def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
            return "closed" if "friday" in turns[-1].text else None

    opening = (Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
               Turn(side=Side.USER, text="table", source=Source.LOG))  # fmt: skip
    for failures in (2, 3):
        collector = collector_of(MadeUpPool("policy"), Closing(failures))
        value: Any = SimpleNamespace(value=lambda cases: np.full(len(cases), 0.25))
        turns = collector.turn_groups(
            [(scenario, opening) for scenario in SCENARIOS], group_size=1, arm="a", update=0, seed=0
        )
        found = reward_turns(collector.task, value, turns, collector.statistics)
        assert {g[0].outcome.reward for g in found if g and g[0].ending == "one_turn" and g[0].outcome} == {0.25}
        closed = sum("friday" in g[0].turns[-1].text for g in turns if g)
        assert 0 < closed < 12 and found.count(None) == (0 if failures == 2 else closed)
        assert len(collector.statistics.groups_dropped) == found.count(None)
        assert collector.statistics.tries_of("rollout").total() == 12, "no try counts twice"


@pytest.mark.parametrize("size", [1, 4])
def test_a_judge_that_fails_on_all_single_turns_breaks_all_of_them(size: int) -> None:
    """The first failure of a group ended it, and the other members counted as whole."""

    class Closing(Judged):
        def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
            return "closed"

    opening = (Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
               Turn(side=Side.USER, text="table", source=Source.LOG))  # fmt: skip
    collector = collector_of(MadeUpPool("policy"), Closing(3 * size))
    value: Any = SimpleNamespace(value=lambda cases: np.full(len(cases), 0.25))
    turns = collector.turn_groups(
        [(scenario, opening) for scenario in SCENARIOS], group_size=size, arm="a", update=0, seed=0
    )
    assert reward_turns(collector.task, value, turns, collector.statistics) == [None] * 12
    assert +collector.statistics.tries_of("rollout") == {"judge": 12 * size}
    assert collector.statistics.dropped == {"judge: no answer": 3 * 12 * size}
    assert len(collector.statistics.groups_dropped) == 12


# --- measuring and judging


def test_replies_that_a_simulator_broke_are_no_replies() -> None:
    turns = (
        Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
        Turn(side=Side.USER, text="table", source=Source.LOG),
        Turn(side=Side.POLICY, text="which day ?", source=Source.LOG),
        Turn(side=Side.USER, text="friday", source=Source.LOG),
    )
    logs = [
        Dialogue(id=f"log-{s.id}", task="chat", scenario=s, turns=turns, ending="left", outcome=None, kind="log")
        for s in SCENARIOS
    ]
    collector = collector_of(MadeUpPool("policy"))
    found = answers(collector, MadeUpPool("simulator", now_and_then([control_token()], 0.2)), logs, "key", 3)
    assert 20 < len(found) <= 24 and all(turn.flaw is None for answer in found for turn in answer.replies)
    assert collector.statistics.tries["evaluation/user"] > 5
    assert answers(collector, MadeUpPool("simulator", lambda r: ""), logs, "key") == []
    # The policy's turns are what they are.
    policy = MadeUpPool("policy", lambda r: [control_token()])
    histories = [(log.scenario, log.turns[:2]) for log in logs]
    drawn = asyncio.run(collector.next_turns(policy, Side.POLICY, histories, 1, "key"))
    assert [turn.flaw for own in drawn for turn, _ in own] == ["control_token"] * 12


def test_groups_of_single_turns_are_numbered_on() -> None:
    collector = collector_of(MadeUpPool("policy"))
    opening = (Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
               Turn(side=Side.USER, text="table", source=Source.LOG))  # fmt: skip
    histories = [(scenario, opening) for scenario in SCENARIOS]
    whole = collector.turn_groups(histories, group_size=2, arm="a", update=1, seed=0)
    parts = [collector.turn_groups(histories[a:b], group_size=2, arm="a", update=1, seed=0, first=a)
             for a, b in ((0, 5), (5, 12))]  # fmt: skip
    assert [g and [(d.id, d.turns) for d in g] for g in whole] == [
        g and [(d.id, d.turns) for d in g] for part in parts for g in part
    ]


def test_a_proxy_that_breaks_a_dialogue_costs_the_policy_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It stands for people when policies are judged."""
    bad = {draw_seed("arm/held_out-0-7-3", -1, attempt) for attempt in range(3)}
    seeds = {stable_seed(seed, Side.USER, 1) for seed in bad}
    proxy = MadeUpPool("proxy", lambda r: [control_token()] if r.seed in seeds else by_seed(r))
    inputs: Any = SimpleNamespace(
        config=SimpleNamespace(evaluation=EvaluationConfig(scenarios=12, shifted=0)), task=Chat(),
        progress=SimpleNamespace(ticks=lambda words, count: None),
    )  # fmt: skip
    results, dialogues = evaluate_policy(inputs, collector_of(MadeUpPool("policy")), {"": proxy}, "arm", 0, 7)
    assert results["held_out"]["not_scored"] == 1 and "not_scored" not in results["held_out_greedy"]
    assert len(dialogues) == 23 and "3" not in results["held_out"]["reward"]
    assert set(results["held_out"]["reward"].values()) == {3.0}
    assert caplog.messages == ["arm (seed 0), held_out: 1 of 12 dialogues broke and are not scored"]


# --- counted by side


def test_turns_cut_at_the_token_limit_are_counted_by_side_and_kept() -> None:
    long = "friday seven " * 20
    collector = collector_of(MadeUpPool("policy", now_and_then(long, 0.3)), max_turn_tokens=24)
    groups = collect(collector, MadeUpPool("simulator", now_and_then(long, 0.1)))
    assert len(groups) == 12 and not collector.statistics.dropped
    for side in Side:
        turns = [t for g in groups for m, d in enumerate(g) for t in d.turns[2 if m else 1 :] if t.side is side]
        cut = sum(turn.finish is Finish.LENGTH for turn in turns)
        assert 0 < collector.statistics.cut[side.value] == cut < len(turns) == collector.statistics.sampled[side.value]
    shares = cut_shares(groups)
    assert shares == {f"cut_share_{s}": pytest.approx(collector.statistics.cut[s] / collector.statistics.sampled[s])
                      for s in ("policy", "user")}  # fmt: skip
    assert cut_shares([[replace(d, turns=d.turns[:1])] for d in groups[0]]) == {}


def test_a_side_that_speaks_for_both_confuses_roles() -> None:
    for text in ("user: friday", "Assistant: which day ?", "friday\nAssistant: which day ?", "system: friday"):
        assert find_flaw(text, Finish.STOP, None) == "role_confusion"
        assert find_flaw(text, Finish.STOP, Turn(side=Side.USER, text=text, source=Source.LOG)) == "role_confusion"
    for text in ("the user: friday", "my set-up\nsystem: linux", "friday"):
        assert find_flaw(text, Finish.STOP, None) is None
    assert tokens().control_ids > {tokens().end_of_turn}


@pytest.mark.parametrize(
    ("error", "survived"),
    [(RolloutFailure("user_empty", Party.USER), True), (MostlyBroken("the user model broke 9 of 9"), True),
     (UserError("the task Mine: outcome (mine.py:3) failed"), False)],
)  # fmt: skip
def test_dialogues_to_look_at_may_be_missing_but_a_mistake_of_the_users_is_not_passed_over(
    caplog: pytest.LogCaptureFixture, error: Exception, survived: bool
) -> None:
    def collect(*given: Any, **named: Any) -> Any:
        raise error

    inputs: Any = SimpleNamespace(task=SimpleNamespace(scenarios=lambda split, count: []))
    cluster: Any = SimpleNamespace(collector=SimpleNamespace(collect=collect), simulator_user=None)
    if survived:
        assert meet_simulator(inputs, cluster, "static", 0) == [] and "no dialogue to look at" in caplog.text
        return
    with pytest.raises(UserError, match="mine.py:3"):
        meet_simulator(inputs, cluster, "static", 0)
