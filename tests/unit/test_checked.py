"""Parts of users: what they return is used or refused by name, what they raise names their own line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from calibrated_rl.calibration.checked import CheckedMethod
from calibrated_rl.data.dialogue import Dialogue, Outcome, Split
from calibrated_rl.errors import UserError
from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput, Totals
from calibrated_rl.learner.losses.checked import output_of
from calibrated_rl.learner.out_of_memory import OutOfMemory
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.checked import checked_reader
from calibrated_rl.rollout.conversation import finished
from calibrated_rl.tasks.checked import checked_human, checked_task
from tests.support.made_up_shop import TURNS, BoundedShop, Shop, asked, scenario


def outcome(**changes: Any) -> Outcome:
    return Outcome(**{"reward": 0.5, "success": True, **changes})


REFUSED = [
    ("outcome", None, "is None: it must be an Outcome"),
    ("outcome", 0.5, "it must be an Outcome"),
    ("outcome", {"reward": 1.0, "success": True}, "it must be an Outcome"),
    ("outcome", outcome(reward=float("nan")), "reward is nan: it must be a finite number"),
    ("outcome", outcome(reward=float("-inf")), "reward is -inf"),
    ("outcome", outcome(reward=None), "reward is None: it must be a number"),
    ("outcome", outcome(reward="0.5"), "reward is a str '0.5': it must be a number"),
    ("outcome", outcome(reward=True), "reward is a bool True"),
    ("outcome", outcome(reward=10**400), "reward is beyond the range of a float"),
    ("outcome", outcome(reward=1j), "reward is a complex"),
    ("outcome", outcome(reward=np.array([0.5])), r"reward is an array of shape \(1,\)"),
    ("outcome", outcome(reward=torch.tensor(0.5)), "reward is a Tensor"),
    ("outcome", outcome(success=1), "success is an int 1: it must be True or False"),
    ("outcome", outcome(success=None), "success is None"),
    ("outcome", outcome(success="yes"), "success is a str 'yes'"),
    ("outcome", outcome(turn_rewards=(0.1, 0.2)), "turn_rewards has 2 numbers, and the policy spoke 1 times"),
    ("outcome", outcome(turn_rewards=0.1), "turn_rewards is a float 0.1"),
    ("outcome", outcome(turn_rewards=(float("nan"),)), r"turn_rewards\[0\] is nan"),
    ("outcome", outcome(turn_rewards=(None,)), r"turn_rewards\[0\] is None"),
    ("outcome", outcome(details={"a": {1, 2}}), r"details\['a'\] is a set; write sorted"),
    ("outcome", outcome(details={"a": [1, {"b": float("nan")}]}), r"details\['a'\]\[1\]\['b'\] is nan"),
    ("outcome", outcome(details={"a": np.array([1.0, np.inf])}), r"details\['a'\]\[1\] is inf"),
    ("outcome", outcome(details={1: 2}), "details has the key 1: keys must be strings"),
    ("outcome", outcome(details=[1]), "details is a list"),
    ("outcome", outcome(details={"a": b"x"}), r"details\['a'\] is a bytes"),
    ("outcome", outcome(details={"a": object()}), r"details\['a'\] is an object"),
    ("outcome", outcome(details={"a": "\ud800"}), r"details\['a'\] contains half a surrogate"),
    ("outcome", outcome(details={"a": 10**5000}), r"details\['a'\] is an integer of"),
    ("ending", "", "it is '': it must not be blank"),
    ("ending", "  ", "must not be blank"),
    ("ending", True, "it is a bool True: it must be a string"),
    ("ending", 3, "it is an int 3"),
    ("acts", None, "it is None: it must be a tuple of strings"),
    ("acts", "ask", "it is a str 'ask'"),
    ("acts", ("ask", None), r"\[1\] is None"),
    ("acts", {"ask"}, "it is a set"),
    ("profile", None, "it is None: it must be a mapping"),
    ("profile", {"kept": "1"}, r"\['kept'\] is a str '1'"),
    ("profile", {"kept": float("nan")}, r"\['kept'\] is nan"),
    ("profile", {3: 1.0}, "a name is an int 3"),
    ("scenarios", None, "it is None: it must be a list of scenarios"),
    ("scenarios", [], "has 0 scenarios, and 2 were requested"),
    ("scenarios", [scenario("a")], "has 1 scenarios, and 2 were requested"),
    ("scenarios", [scenario(name) for name in "abc"], "has 3 scenarios, and 2 were requested"),
    ("scenarios", [scenario("a"), scenario("a")], "scenario 'a' is number 0 and another: ids must be unique"),
    ("scenarios", [scenario("a"), {"id": "b"}], "scenario 1 is a dict: it must be a Scenario"),
    ("scenarios", [scenario("a"), scenario("")], "scenario 1: id is '': it must not be blank"),
    ("scenarios", [scenario("a"), scenario(3)], "scenario 1: id is an int 3"),
    ("scenarios", [scenario("a"), scenario("b", split=Split.HELD_OUT)], "scenario 'b': split is"),
    ("scenarios", [scenario("a"), scenario("b", population="shifted")], "scenario 'b': population is"),
    ("scenarios", [scenario("a"), scenario("b", goal={"x": {1}})], r"scenario 'b': goal\['x'\] is a set"),
    ("scenarios", [scenario("a"), scenario("b", goal=None)], "scenario 'b': goal is None"),
    ("scenarios", [scenario("a"), scenario("b", greeting=None)], "scenario 'b': greeting is None"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), REFUSED)
def test_what_a_task_returns_is_refused_by_its_field(name: str, value: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        asked(name, value)
    message = str(refused.value)
    assert message.startswith(f"the task Shop: {name} (") and "made_up_shop.py:" in message and "\n" not in message
    assert name == "scenarios" or "scenario 's1'" in message


def test_the_rewards_of_a_bounded_task_stay_in_its_range() -> None:
    with pytest.raises(UserError, match=r"reward is 1.5: reward_range\(\) says 0 to 1"):
        asked("outcome", outcome(reward=1.5), BoundedShop)
    assert asked("outcome", outcome(reward=1 + 1e-9), BoundedShop).reward == 1 + 1e-9, "sums are rounded"


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ((1.0, 0.0), "the least comes first"), ((0.0, float("inf")), r"\[1\] is inf"), ((0.0,), "a pair of numbers"),
        (None, "a pair of numbers"), (("0", 1.0), r"\[0\] is a str '0'"), ((float("nan"), 1.0), r"\[0\] is nan"),
    ],
)  # fmt: skip
def test_a_range_that_is_none_is_refused_when_the_task_is_made(bounds: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"task BoundedShop: reward_range .*{reason}"):
        checked_task(BoundedShop(reward_range=bounds))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"name": ""}, "name is ''"), ({"name": 3}, "name is an int 3"), ({"max_policy_turns": 0}, "max_policy_turns is"),
     ({"max_policy_turns": True}, "max_policy_turns is"), ({"acts": None}, "has no acts")],
)  # fmt: skip
def test_what_a_task_is_called_and_how_long_it_goes_is_looked_at_first(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"the task Odd.* {reason}"):
        checked_task(type("Odd", (Shop,), changes)())


def test_numbers_of_numpy_become_plain_ones() -> None:
    found = asked(
        "outcome",
        outcome(
            reward=np.float32(0.5), success=np.bool_(True), turn_rewards=np.array([0.25]),
            details={"n": np.int64(3), "m": np.eye(2), "s": np.str_("x"), "t": (np.float64(1.0), [None])},
        ),
    )  # fmt: skip
    assert found == Outcome(
        reward=0.5, success=True, turn_rewards=(0.25,),
        details={"n": 3, "m": [[1.0, 0.0], [0.0, 1.0]], "s": "x", "t": (1.0, [None])},
    )  # fmt: skip
    assert type(found.reward) is float and type(found.success) is bool and type(found.turn_rewards[0]) is float
    json.dumps(dict(found.details), allow_nan=False)
    assert asked("outcome", outcome(reward=np.array(1))).reward == 1.0
    assert asked("acts", np.array(["ask", "tell"])) == ("ask", "tell")
    assert checked_task(BoundedShop(reward_range=np.array([0.0, 2.0]))).reward_range() == (0.0, 2.0)  # type: ignore[attr-defined]
    assert checked_task(type("Whole", (Shop,), {"max_policy_turns": np.int64(3)})()).max_policy_turns == 3
    assert asked("scenarios", (scenario("a", goal={"n": np.int64(3)}), scenario("b")))[0].goal == {"n": 3}


def test_a_message_stays_short_whatever_it_quotes() -> None:
    with pytest.raises(UserError) as refused:
        asked("outcome", outcome(details={"x" * 10_000: {1}}))
    assert len(str(refused.value)) < 700


def test_a_task_gives_the_same_scenarios_again_and_no_split_shares_them() -> None:
    shop = Shop()
    task = checked_task(shop)
    assert len(task.scenarios(Split.CALIBRATION, 3)) == 3 and len(task.scenarios(Split.CALIBRATION, 1)) == 1
    shop.returned["scenarios"] = [scenario("other"), scenario("more")]
    with pytest.raises(UserError, match="scenario 0 is 'other', and was 'calibration0' in an earlier call"):
        task.scenarios(Split.CALIBRATION, 2)
    shop.returned["scenarios"] = [scenario("calibration1", split=Split.HELD_OUT)]
    with pytest.raises(UserError, match="scenario 'calibration1' is in two splits, calibration and held_out"):
        task.scenarios(Split.HELD_OUT, 1)


def test_every_outcome_of_a_rollout_passes() -> None:
    with pytest.raises(UserError, match="outcome .*scenario 's1': reward is nan"):
        finished(checked_task(Shop(outcome=outcome(reward=float("nan")))), scenario(), TURNS, "left", id="d", kind="x")


class Guest:
    def __init__(self, said: Any) -> None:
        self.said = said

    def reply(self, *_: Any) -> Any:
        return self.said

    sample = log_prob = reply


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [("reply", "", "must not be blank"), ("reply", None, "is None: it must be a string"), ("reply", 3, "is an int 3"),
     ("sample", "\n", "must not be blank"), ("sample", ["hi"], "is a list"),
     ("log_prob", 0.1, "it is 0.1: the log of a probability is at most 0"), ("log_prob", float("nan"), "it is nan"),
     ("log_prob", float("inf"), "it is inf"), ("log_prob", None, "is None: it must be a number"),
     ("log_prob", "-1", "is a str")],
)  # fmt: skip
def test_what_a_human_says_is_refused_where_it_is_nothing(name: str, said: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"the human Guest: .*scenario 's1': .*{reason}"):
        getattr(checked_human(Guest(said)), name)(scenario(), TURNS[:1], "hi")


def test_what_a_human_says_is_used() -> None:
    assert checked_human(Guest("hi")).reply(scenario(), TURNS[:1]) == "hi"
    assert checked_human(Guest(float("-inf"))).log_prob(scenario(), TURNS[:1], "hi") == float("-inf")
    assert type(checked_human(Guest(np.float32(-1))).log_prob(scenario(), TURNS[:1], "hi")) is float


def log(name: str = "a", **changes: Any) -> Dialogue:
    fields = {"task": "shop", "scenario": scenario(name), "turns": TURNS, "ending": "left", "outcome": outcome()}
    return Dialogue(**{"id": f"log-{name}", "kind": "log", **fields, **changes})


class Reader:
    def __init__(self, found: Any, problems: Any = ()) -> None:
        self.found, self.problems = found, list(problems) if isinstance(problems, tuple) else problems

    def read(self, split: Split) -> list[Dialogue]:
        return self.found


@pytest.mark.parametrize(
    ("found", "reason"),
    [(None, "is None: it must be a list of dialogues"), ([], "it is empty"), ([{"id": 1}], "dialogue 0 is a dict"),
     ([log(), log()], "dialogue 'log-a' is number 0 and another"), ([log(kind="rollout")], "kind is a str 'rollout'"),
     ([log(scenario=scenario("a", split=Split.TUNING))], "'log-a': scenario 'a': split is"),
     ([log(outcome=outcome(reward=float("nan")))], "'log-a': outcome.reward is nan"),
     ([log(outcome=outcome(reward=1e9))], r"'log-a': outcome.reward is 1e\+09: reward_range"),
     ([log(outcome=0.5)], "'log-a': outcome.it is a float 0.5"), ([log(turns=())], "turns is a tuple"),
     ([log(turns=TURNS[1:])], r"'log-a': turns\[0\].side is user"), ([log(turns=TURNS[::2])], r"turns\[1\].side"),
     ([log(ending=None)], "ending is None"), ([log(annotations={"acts": {1}})], r"annotations\['acts'\] is a set")],
)  # fmt: skip
def test_what_a_reader_reads_is_refused_by_dialogue(found: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"the log reader Reader: read .*, calibration: .*{reason}"):
        checked_reader(Reader(found), checked_task(BoundedShop())).read(Split.CALIBRATION)


def test_a_reader_whose_splits_leak_is_refused() -> None:
    inner = Reader([log("a"), log("b")], (LogProblem("f", 1, "no"),))
    reader = checked_reader(inner, checked_task(Shop()))
    assert [each.id for each in reader.read(Split.CALIBRATION)] == ["log-a", "log-b"] and len(reader.problems) == 1
    inner.found = [log("b", scenario=scenario("b", split=Split.HELD_OUT))]
    with pytest.raises(UserError, match="dialogue 'log-b' is in two splits, calibration and held_out"):
        reader.read(Split.HELD_OUT)
    with pytest.raises(UserError, match="problems is None: it must be a list of LogProblem"):
        checked_reader(Reader([], None), checked_task(Shop()))


class Method:
    def __init__(self, found: Any) -> None:
        self.found = found

    def align(self, inputs: Any) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "reason"),
    [(None, "is None: it must be a mapping"), ({}, "lacks 'simulator_monitor_nll'"), ({"x": "1"}, "is a str '1'"),
     ({"simulator_monitor_nll": float("nan")}, "is nan"), ({"simulator_monitor_nll": 1.0}, "contains no model")],
)  # fmt: skip
def test_what_a_calibration_method_leaves_is_refused_by_name(found: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"calibration method Method: align .*{reason}"):
        CheckedMethod(Method(found)).align(SimpleNamespace(folder=tmp_path))


def inputs() -> LossInputs:
    values = torch.full((4,), -0.5, requires_grad=True)
    ones = torch.ones(4)
    return LossInputs(
        logprobs=values, entropy=ones, old_logprobs=values.detach(), sampler_logprobs=values.detach(),
        reference_logprobs=None, advantages=ones, weights=ones, sequence=torch.zeros(4, dtype=torch.int64), count=1,
        totals=Totals(tokens=4, sequences=1, weight=4.0),
    )  # fmt: skip


class Given(Loss):
    def __init__(self, made: Any) -> None:
        self.made = made

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return self.made(inputs)


LOSSES = [
    (lambda i: i.logprobs.sum(), "it is a Tensor.*it must be a LossOutput"),
    (lambda i: LossOutput(loss=0.5), "loss is a float 0.5: it must be a scalar tensor"),
    (lambda i: LossOutput(loss=i.logprobs), r"loss has the shape \[4\]: it must be a scalar"),
    (lambda i: LossOutput(loss=i.logprobs.detach().sum()), "loss has no gradient"),
    (lambda i: LossOutput(loss=i.logprobs.sum().detach().long()), "loss is of torch.int64"),
    (lambda i: LossOutput(loss=i.logprobs.sum(), means=[1]), "means is a list"),
    (lambda i: LossOutput(loss=i.logprobs.sum(), means={"a": 1.0}), r"means\['a'\] is a float 1.0: it must be a pair"),
    (lambda i: LossOutput(loss=i.logprobs.sum(), maxima={"a": i.logprobs}), r"maxima\['a'\] is a tensor of shape"),
    (lambda i: i.logprobs @ torch.ones(5), r"failed: RuntimeError: .*test_checked.py:\d+: "),
    (lambda i: i.nothing, "failed: AttributeError"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "reason"), LOSSES)
def test_what_a_loss_returns_is_refused_by_shape_and_type(made: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"the loss Given: __call__ .*{reason}"):
        output_of(Given(made), inputs())


def test_memory_that_runs_out_in_a_loss_is_no_mistake_of_it() -> None:
    def run_out(_: LossInputs) -> LossOutput:
        raise torch.OutOfMemoryError("no room")

    with OutOfMemory() as memory:
        output_of(Given(run_out), inputs())
    assert memory.message == "no room"
