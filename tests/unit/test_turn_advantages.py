"""Credit by turn: hand-computed, and without the bias of the natural form where the policy decides when to stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Dialogue, Outcome, TokenSequence
from calibrated_rl.errors import UserError
from calibrated_rl.learner.advantages.base import CriticConfig, Floats, rewards_to_go
from calibrated_rl.learner.advantages.checked import build_advantage, turn_advantages
from calibrated_rl.learner.advantages.gae import GAE
from calibrated_rl.learner.advantages.reward_to_go import RewardToGo
from calibrated_rl.learner.advantages.turn_group import TurnGroup
from calibrated_rl.training.critic import value_sample
from calibrated_rl.training.policy_update import PolicyUpdate
from calibrated_rl.training.timers import UpdateTimers
from calibrated_rl.training.turn_credit import credit_of_tokens, rewards_of_turns
from tests.support.made_up_logs import dialogue, policy, user
from tests.support.paths import MICRO

GROUP = [np.array([1.0, 2.0, 3.0]), np.array([4.0]), np.array([0.0, 5.0])]
"""Returns 6, 4, 5; rewards to go 6 5 3, 4, 5 5."""
Credit = Callable[[Sequence[Floats]], Sequence[Floats]]


def test_reward_to_go_by_hand() -> None:
    """Less the mean return of the others: 4.5, 5.5, 5."""
    found = RewardToGo(RewardToGo.Config())(GROUP)
    assert [credit.tolist() for credit in found] == [[1.5, 0.5, -1.5], [-1.5], [0.0, 0.0]]


def test_turn_group_by_hand() -> None:
    """Less what the others earn from the same turn on; nobody but the first has a third turn: then from their last."""
    found = TurnGroup(TurnGroup.Config())(GROUP)
    assert [credit.tolist() for credit in found] == [[1.5, 0.0, -1.5], [-1.5], [0.0, 0.0]]


def test_with_a_terminal_reward_alone_reward_to_go_is_leave_one_out() -> None:
    group = [np.array([0.0, 0.0, 1.0]), np.array([0.5]), np.array([0.0, -1.0])]
    expected = build_advantage("rloo", {})(np.array([1.0, 0.5, -1.0]))
    for credit, whole in zip(RewardToGo(RewardToGo.Config())(group), expected, strict=True):
        np.testing.assert_allclose(credit, whole)


# ---- a policy that decides when to stop ---------------------------------------------------------------------


@dataclass(frozen=True)
class TwoTurns:
    """The policy goes on with probability ``p``, else it stops; if it goes on, it says the better second turn with
    probability ``q``. Both are sigmoids of a parameter, so that ``d log p / d parameter = 1 − p``."""

    p: float
    q: float
    stopped: float
    """Reward of stopping at the first turn."""
    went_on: float
    """Reward of the first turn, if it goes on."""
    better: float
    worse: float
    """Rewards of the second turn."""

    def dialogues(self) -> list[tuple[float, Floats, list[tuple[float, float]]]]:
        """Probability, rewards by turn, and for each turn the derivative of its log-probability by either parameter."""
        first = (1 - self.p, 0.0)
        return [
            (1 - self.p, np.array([self.stopped]), [(-self.p, 0.0)]),
            (self.p * self.q, np.array([self.went_on, self.better]), [first, (0.0, 1 - self.q)]),
            (self.p * (1 - self.q), np.array([self.went_on, self.worse]), [first, (0.0, -self.q)]),
        ]

    def gradient(self) -> list[float]:
        """Of the expected return, by differentiating it."""
        second = self.q * self.better + (1 - self.q) * self.worse
        by_first = self.p * (1 - self.p) * (self.went_on + second - self.stopped)
        return [by_first, self.p * self.q * (1 - self.q) * (self.better - self.worse)]

    def expected(self, credit: Credit, size: int) -> Floats:
        """What ``credit`` makes of it on average: over all groups of ``size`` dialogues."""
        total = np.zeros(2)
        for group in product(self.dialogues(), repeat=size):
            probability = float(np.prod([each[0] for each in group]))
            advantages = credit([each[1] for each in group])
            for (_, _, scores), credits in zip(group, advantages, strict=True):
                total += probability * sum(c * np.array(s) for c, s in zip(credits, scores, strict=True)) / size
        return total


def natural(rewards: Sequence[Floats]) -> Sequence[Floats]:
    """Each turn's reward less the mean of that turn's rewards in the group; added up from the turn on."""
    means = [np.mean([r[t] for r in rewards if len(r) > t]) for t in range(max(map(len, rewards)))]
    return [rewards_to_go(r - np.array(means[: len(r)])) for r in rewards]


def own_included(rewards: Sequence[Floats]) -> Sequence[Floats]:
    """Rewards to go less their mean by turn, the dialogue's own among them."""
    to_go = [rewards_to_go(r) for r in rewards]
    means = [np.mean([g[t] for g in to_go if len(g) > t]) for t in range(max(map(len, to_go)))]
    return [g - np.array(means[: len(g)]) for g in to_go]


WORLDS = [
    TwoTurns(p=0.5, q=0.5, stopped=0.5, went_on=0.0, better=1.0, worse=1.0),
    TwoTurns(p=0.3, q=0.6, stopped=0.2, went_on=0.4, better=1.0, worse=-0.5),
    TwoTurns(p=0.8, q=0.1, stopped=0.0, went_on=-0.2, better=2.0, worse=0.1),
]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("advantage", [RewardToGo(RewardToGo.Config()), TurnGroup(TurnGroup.Config())])
def test_the_expected_step_is_the_gradient_of_the_return(world: TwoTurns, size: int, advantage: Credit) -> None:
    np.testing.assert_allclose(world.expected(advantage, size), world.gradient(), atol=1e-12)


def test_the_natural_form_pushes_to_stop_where_going_on_is_better() -> None:
    """Going on earns 1, stopping 0.5. The second turn's reward is always the same, so that its mean takes all of it
    away: the natural form does not see it, whatever the size of the group."""
    world = WORLDS[0]
    assert world.gradient()[0] == pytest.approx(0.125)
    for size in (2, 3, 4, 5):
        # What it makes of a world in which the second turn earns nothing, but for the share of the own dialogue.
        unseen = replace(world, better=0.0, worse=0.0).gradient()[0]
        assert world.expected(natural, size)[0] == pytest.approx(unseen * (size - 1) / size) and unseen < 0


def test_a_mean_with_the_own_dialogue_takes_late_turns_for_less() -> None:
    """Turn by turn, by the expected share ``(n - 1) / n`` of the ``n`` dialogues that get there."""
    world, size = WORLDS[1], 3
    found, gradient = world.expected(own_included, size), world.gradient()
    assert found[0] == pytest.approx(gradient[0] * (size - 1) / size)
    p = world.p  # of the two others 0, 1 or 2 get to the second turn
    shares = [(1 - p) ** 2 * 0, 2 * p * (1 - p) / 2, p**2 * 2 / 3]
    assert found[1] == pytest.approx(gradient[1] * sum(shares)) and sum(shares) < (size - 1) / size


# ---- with a critic -----------------------------------------------------------------------------------------


def gae(**settings: float) -> GAE:
    return GAE(GAE.Config(**settings))  # type: ignore[arg-type]


def test_generalised_advantages_by_hand() -> None:
    """γ = 1/2, λ = 1/2: errors 1 + 1 - 4 = -2, 2 + 1/2 - 2 = 1/2, 3 - 1 = 2; a quarter of each is carried back."""
    (found,) = gae(discount=0.5, trace=0.5)([np.array([1.0, 2.0, 3.0])], [np.array([4.0, 2.0, 1.0])])
    assert found.tolist() == [-2 + (0.5 + 2 / 4) / 4, 0.5 + 2 / 4, 2.0]
    assert gae()([np.array([3.0])], [np.array([1.0])])[0].tolist() == [2.0]
    assert gae()([np.zeros(0)], [np.zeros(0)])[0].tolist() == []


def test_the_ends_of_the_trace() -> None:
    """1: the reward to go less the value. 0: the error of one step. Targets are then rewards to go, or one step's."""
    rewards, values = np.array([1.0, 2.0, 3.0]), np.array([4.0, 2.0, 1.0])
    (whole,) = gae(trace=1.0)([rewards], [values])
    np.testing.assert_allclose(whole + values, rewards_to_go(rewards))
    (step,) = gae(trace=0.0)([rewards], [values])
    np.testing.assert_allclose(step + values, rewards + [2.0, 1.0, 0.0])


@pytest.mark.parametrize("world", WORLDS)
def test_with_true_values_every_trace_gives_the_gradient(world: TwoTurns) -> None:
    second = world.q * world.better + (1 - world.q) * world.worse
    first = (1 - world.p) * world.stopped + world.p * (world.went_on + second)
    for trace in (0.0, 0.5, 1.0):
        credit = partial(by_values, gae(trace=trace), [first, second])
        np.testing.assert_allclose(world.expected(credit, 2), world.gradient(), atol=1e-12)
    credit = partial(by_values, gae(trace=1.0), [7.0, -3.0])  # whatever the critic says
    np.testing.assert_allclose(world.expected(credit, 2), world.gradient(), atol=1e-12)


def by_values(advantage: GAE, values: list[float], rewards: Sequence[Floats]) -> Sequence[Floats]:
    return advantage(rewards, [np.array(values[: len(r)]) for r in rewards])


# ---- from dialogues to tokens ------------------------------------------------------------------------------


def talk(outcome: Outcome, *own: int, name: str = "a") -> Dialogue:
    """Greeting, and three turns of either side; two tokens a turn, those of the policy's turns ``own`` masked."""
    turns = (policy("hi"), user("a"), policy("b"), user("c"), policy("d"), user("e"), policy("f"))
    tokens = TokenSequence.unsampled(np.arange(14, dtype=np.int32))
    tokens = replace(tokens, turns=np.repeat(np.arange(7, dtype=np.int32), 2), mask=np.isin(np.arange(14) // 2, own))
    return replace(dialogue(name, *turns), outcome=outcome, policy_tokens=tokens)


def test_what_turns_earned() -> None:
    outcome = Outcome(reward=0.5, success=True, turn_rewards=(1.0, 2.0, 4.0))
    assert rewards_of_turns(talk(outcome, 2, 4, 6)).tolist() == [1.0, 2.0, 4.5]
    assert rewards_of_turns(talk(Outcome(reward=0.5, success=True), 2, 4, 6)).tolist() == [0.0, 0.0, 0.5]
    assert rewards_of_turns(talk(outcome, 6)).tolist() == [7.5], "the last turn on a logged history: the whole return"
    assert rewards_of_turns(talk(outcome, 2, 6)).tolist() == [3.0, 4.5]
    assert rewards_of_turns(talk(outcome)).tolist() == []


def test_each_token_gets_the_credit_of_its_turn() -> None:
    made = talk(Outcome(reward=0.0, success=True), 2, 6)
    found = credit_of_tokens(made, np.array([3.0, -1.0], np.float32))
    assert found.tolist() == [0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, -1, -1]


def updated(*changes: str) -> Any:
    return PolicyUpdate(load_config(MICRO, list(changes)), None, None, UpdateTimers())  # type: ignore[arg-type]


class MadeUpCritic:
    """Values histories at 1, and notes what it is to learn."""

    loaded = True

    def __init__(self, settings: CriticConfig) -> None:
        self.settings, self.learned = settings, list[list[float]]()

    def values(self, dialogues: Sequence[Dialogue]) -> list[Floats]:
        return [np.ones(len(rewards_of_turns(made))) for made in dialogues]

    def step(self, dialogues: Sequence[Dialogue], targets: Sequence[Floats]) -> dict[str, float]:
        self.learned += [values.tolist() for values in targets]
        return {"critic_value_error": 0.5}


class Steps:
    def __init__(self) -> None:
        self.losses: list[Any] = []

    def step(self, slot: str, samples: Any, loss: Any, **named: Any) -> dict[str, float]:
        self.losses.append(loss)
        return {"loss": 1.0}


def test_an_arm_has_its_own_settings_of_the_loss() -> None:
    config = load_config(
        MICRO,
        ["training.loss_config={clip_low: 0.1, clip_high: 0.3}", "training.loss_configs={static: {clip_low: 0.05}}"],
    )
    learner: Any = Steps()
    for arm in ("static", "oracle"):
        update = PolicyUpdate(config, learner, None, UpdateTimers(), arm=arm)  # type: ignore[arg-type]
        update.step(update.advantages([[talk(Outcome(reward=1.0, success=True), 2)]], 0))
    assert [settings for _, settings in learner.losses] == [
        {"clip_low": 0.05, "clip_high": 0.3}, {"clip_low": 0.1, "clip_high": 0.3},
    ]  # fmt: skip


def test_a_critic_gives_values_and_learns_what_came_of_them() -> None:
    changes = ["training.advantage=gae", "training.advantage_config={trace: 1.0, critic: {minibatches: 2}}"]
    made: list[MadeUpCritic] = []
    update: Any = PolicyUpdate(
        load_config(MICRO, changes), Steps(), None, UpdateTimers(),  # type: ignore[arg-type]
        make_critic=lambda settings: made.append(MadeUpCritic(settings)) or made[-1],  # type: ignore[arg-type, func-returns-value]
    )  # fmt: skip
    group = [talk(Outcome(reward=1.0, success=True, turn_rewards=(0.0, each, 0.0)), 2, 4, 6) for each in (2.0, 0.0)]
    credited = update.advantages([group, group[:1]], 0)
    by_turn = [sample.token_advantages[[4, 8, 12]].tolist() for sample in credited.samples]
    assert by_turn == [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [2.0, 2.0, 0.0]]
    assert update.step(credited) == {"loss": 1.0, "critic_value_error": 0.5}
    assert made[0].learned == [[3.0, 3.0, 1.0], [1.0, 1.0, 1.0], [3.0, 3.0, 1.0]]
    assert made[0].settings.minibatches == 2 and update.slots == ["policy", "critic"]
    assert updated("training.advantage=grpo").slots == ["policy"]


def test_a_critic_reads_before_each_turn() -> None:
    made = talk(Outcome(reward=1.0, success=True), 2, 6)
    sample = value_sample(made, np.array([0.5, -2.0], np.float32))
    assert np.flatnonzero(sample.tokens.mask).tolist() == [4, 12]
    assert sample.targets is not None and sample.targets[[4, 12]].tolist() == [0.5, -2.0]


def test_the_learner_gets_credit_by_turn() -> None:
    earned = [(1.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
    group = [talk(Outcome(reward=0.0, success=True, turn_rewards=each), 2, 4, 6) for each in earned]
    credited = updated("training.advantage=reward_to_go").advantages([group], 0)
    by_turn = [sample.token_advantages[[4, 8, 12]].tolist() for sample in credited.samples]
    assert by_turn == [[1.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]
    whole = updated("training.advantage=rloo").advantages([group], 0)
    assert [(sample.advantage, sample.token_advantages) for sample in whole.samples] == [(1.0, None), (-1.0, None)]


def test_equal_returns_that_were_earned_at_other_turns_teach_something() -> None:
    early, late = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    found = turn_advantages([early, late], build_advantage("turn_group", {}))
    assert [credit.tolist() for credit in found] == [[0.0, -1.0], [0.0, 1.0]]
    assert [c.tolist() for c in turn_advantages([early, early], build_advantage("turn_group", {}))] == [[0, 0], [0, 0]]


BY_TURN = """
from dataclasses import dataclass

class Mine:
    by_turn = {by_turn}

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config):
        pass

    def __call__(self, rewards):
        return {returned}
"""


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("rewards[:1]", "it is a list: it must be a list of 2 arrays, one a dialogue"),
        ("None", "it is None"), ("[r[:1] for r in rewards]", r"it has the shape \[1\]: it must be \[2\], a number for"),
        ("[r + float('nan') for r in rewards]", r"\[0\] is nan"), ("rewards.men()", "AttributeError"),
    ],
)  # fmt: skip
def test_what_it_returns_is_used_or_refused_by_its_line(returned: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BY_TURN.format(by_turn=True, returned=returned))
    made = build_advantage(f"{tmp_path / 'mine.py'}:Mine", {})
    with pytest.raises(UserError, match=rf"the advantage Mine: __call__ .*{reason}"):
        turn_advantages([np.array([0.0, 1.0]), np.array([1.0, 1.0])], made)


def test_a_loss_of_whole_sequences_is_refused(tmp_path: Path) -> None:
    gspo = "training.loss=calibrated_rl.learner.losses.gspo:GSPO"
    with pytest.raises(UserError, match="'turn_group', which gives credit to each turn, and GSPO weighs dialogues as"):
        load_config(MICRO, [gspo, "training.advantage=turn_group"])
    load_config(MICRO, [gspo, "training.advantage=grpo"])
    load_config(MICRO, ["training.advantage=turn_group"])
    (tmp_path / "mine.py").write_text(BY_TURN.format(by_turn="'yes'", returned="rewards"))
    with pytest.raises(UserError, match="by_turn is a str 'yes': it must be True or False"):
        load_config(MICRO, [f"training.advantage={tmp_path / 'mine.py'}:Mine"])
