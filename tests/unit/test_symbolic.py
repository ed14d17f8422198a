"""The exact world: hand-computed values, enumeration of all histories, bounds, constructions, estimators, the env."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.errors import UserError
from research.theory import symbol_counts, theory, theory_coverage
from research.theory.symbol_counts import Pairs, from_counts, table_classifier
from research.theory.symbolic import (
    World,
    distance,
    greedy,
    optimal_policy,
    policy_shift,
    prefix_values,
    sample,
    simulator_shift,
    state_distribution,
    stationary,
    turn_values,
    value,
)
from research.theory.symbolic_worlds import (
    LARGEST_SHIFT,
    Construction,
    echo,
    random_construction,
    shifted,
    synonyms,
    tight,
)

REWARDS = theory.REWARDS


def made(family="forgetting", seed=0, horizon=3, epsilon=0.2, delta=0.3, **sizes) -> Construction:
    rng = np.random.default_rng(seed)
    return random_construction(family, rng, horizon=horizon, epsilon=epsilon, delta=delta, **sizes)


def histories(world, policy, user):
    """Every history of the whole dialogue: probability, states before each turn and at the end, symbols."""
    horizon = len(policy)
    turns = list(itertools.product(range(world.policy_symbols), range(world.user_symbols)))
    for start in range(world.states):
        for said in itertools.product(turns, repeat=horizon):
            probability, states = world.start_S[start], [start]
            for t, (a, x) in enumerate(said):
                probability *= policy[t, states[-1], a] * user[t, states[-1], a, x]
                states.append(int(world.successor_SAX[states[-1], a, x]))
            yield probability, states, said


def reward_of(world, states, said, reward):
    if reward == "terminal":
        return world.terminal_S[states[-1]]
    return sum(world.reward_SAX[s, a, x] for s, (a, x) in zip(states, said, strict=False))


# --- hand-computed -----------------------------------------------------------------------------------------------


@pytest.fixture
def coin() -> World:
    """State 0 is good, 1 bad. User symbol 0 leads to good, 1 to bad, whatever was said; rewards are the state after."""
    good = np.array([1.0, 0.0])
    successor = np.broadcast_to(np.array([0, 1]), (2, 2, 2)).copy()
    return World(start_S=good, successor_SAX=successor, reward_SAX=good[successor], terminal_S=good)


def test_one_turn_by_hand(coin: World) -> None:
    policy = stationary([[0.25, 0.75], [0.5, 0.5]], 1)
    human = stationary([[[0.9, 0.1], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]], 1)
    simulator = stationary([[[0.7, 0.3], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]], 1)
    # value: 1/4 * 0.9 + 3/4 * 0.5; delta: 1/4 * 0.2 + 3/4 * 0.5. State 1 is never met.
    for reward in REWARDS:
        assert value(coin, policy, human, reward) == pytest.approx(0.6)
        assert value(coin, policy, simulator, reward) == pytest.approx(0.175 + 0.75)
    assert simulator_shift(coin, policy, human, simulator) == pytest.approx([0.425])
    assert np.isinf(simulator_shift(coin, policy, human, simulator, "kl")[0])  # symbol 1 is never simulated
    assert simulator_shift(coin, policy, simulator, human, "kl") == pytest.approx(
        [0.25 * (0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.3 / 0.1)) + 0.75 * math.log(1 / 0.5)]
    )
    logged = stationary([[0.5, 0.5], [0.5, 0.5]], 1)
    assert policy_shift(coin, policy, logged, human) == pytest.approx([0.25])
    assert optimal_policy(coin, human, "per_turn")[0, 0].tolist() == [1.0, 0.0]


def test_two_turns_by_hand(coin: World) -> None:
    policy = stationary([[1.0, 0.0], [0.0, 1.0]], 2)
    human = stationary([[[0.8, 0.2], [0.5, 0.5]], [[0.5, 0.5], [0.25, 0.75]]], 2)
    # good after turn 1: 0.8; after turn 2: 0.8 * 0.8 + 0.2 * 0.25 = 0.69
    assert state_distribution(coin, policy, human)[:, 0] == pytest.approx([1.0, 0.8, 0.69])
    assert prefix_values(coin, policy, human, "per_turn") == pytest.approx([0.8, 1.49])
    assert prefix_values(coin, policy, human, "terminal") == pytest.approx([0.8, 0.69])
    # In the bad state symbol 0 is better (0.5 against 0.25): 0.8 * 0.8 + 0.2 * 0.5 = 0.74
    best = optimal_policy(coin, human, "terminal")
    assert value(coin, best, human, "terminal") == pytest.approx(0.74)
    # eps in turn 2 on the policy's own histories: only in the bad state (0.2) does the logged policy differ
    logged = stationary([[1.0, 0.0], [0.6, 0.4]], 2)
    assert policy_shift(coin, policy, logged, human) == pytest.approx([0.0, 0.2 * 0.6])
    # static: turn 2 on logged histories, which at turn 2 are the same here, so that nothing is lost
    assert value(coin, policy, human, "terminal", histories_of=logged) == pytest.approx(0.69)


# --- dynamic programming against enumeration ---------------------------------------------------------------------


@pytest.mark.parametrize("family", theory.FAMILIES)
def test_agrees_with_enumeration_of_all_histories(family) -> None:
    one = made(family, seed=5, states=2, policy_symbols=2, user_symbols=2)
    world = one.world
    everything = list(histories(world, one.policy, one.human))
    assert sum(p for p, _, _ in everything) == pytest.approx(1.0)
    for reward in REWARDS:
        by_hand = sum(p * reward_of(world, s, said, reward) for p, s, said in everything)
        assert value(world, one.policy, one.human, reward) == pytest.approx(by_hand)
    for t in range(one.horizon):
        tv = kl = eps = 0.0
        for probability, states, said in everything:
            s, (a, _) = states[t], said[t]
            p, q = one.human[t, s, a], one.simulator[t, s, a]
            tv += probability * 0.5 * np.abs(p - q).sum()
            kl += probability * float(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0))
            eps += probability * 0.5 * np.abs(one.policy[t, s] - one.logged[t, s]).sum()
        assert simulator_shift(world, one.policy, one.human, one.simulator)[t] == pytest.approx(tv)
        assert simulator_shift(world, one.policy, one.human, one.simulator, "kl")[t] == pytest.approx(kl)
        assert policy_shift(world, one.policy, one.logged, one.human)[t] == pytest.approx(eps)


def test_history_shift_is_another_thing_and_accumulates() -> None:
    """The distance of whole histories is at most the sum of the shifts so far, and above a single one."""
    one = made(seed=3, states=2, policy_symbols=2, user_symbols=2, epsilon=0.0, delta=0.1)
    real, trained = (list(histories(one.world, one.policy, user)) for user in (one.human, one.simulator))
    apart = 0.5 * sum(abs(p - q) for (p, _, _), (q, _, _) in zip(real, trained, strict=True))
    delta = simulator_shift(one.world, one.policy, one.human, one.simulator)
    assert delta.max() + 0.01 < apart <= delta.sum()


@pytest.mark.parametrize("reward", REWARDS)
def test_optimum_is_the_best_of_all_deterministic_policies(reward) -> None:
    one = made(seed=7, horizon=2, states=2, policy_symbols=2, user_symbols=2)
    choices = itertools.product(np.eye(2), repeat=4)
    values = [value(one.world, np.array(rows).reshape(2, 2, 2), one.human, reward) for rows in choices]
    best = optimal_policy(one.world, one.human, reward)
    assert value(one.world, best, one.human, reward) == pytest.approx(max(values))


@pytest.mark.parametrize("reward", REWARDS)
def test_turn_values_average_to_the_value_and_a_greedy_turn_improves(reward) -> None:
    one = made("persistent", seed=2, horizon=4)
    values = turn_values(one.world, one.policy, one.human, reward)
    first = (one.policy[0] * values[0]).sum(axis=-1) @ one.world.start_S
    whole = value(one.world, one.policy, one.human, reward)
    assert first == pytest.approx(whole)
    assert value(one.world, greedy(values), one.human, reward) >= whole


def test_prefixes_are_shorter_dialogues() -> None:
    one = made("persistent", horizon=6)
    for reward in REWARDS:
        whole = prefix_values(one.world, one.policy, one.human, reward)
        short = [value(one.world, one.policy[:h], one.human[:h], reward) for h in range(1, 7)]
        assert whole == pytest.approx(short)


def test_sampled_dialogues_follow_the_distributions() -> None:
    one = made("persistent", horizon=4)
    drawn = sample(one.world, one.policy, one.human, one.logged, one.simulator, 40_000, np.random.default_rng(0))
    seen = np.bincount(drawn.state[:, 3], minlength=one.world.states) / 40_000
    assert np.abs(seen - state_distribution(one.world, one.policy, one.human)[3]).max() < 0.01
    gains = one.world.reward_SAX[drawn.state, drawn.said, drawn.reply].sum(axis=1)
    assert abs(gains.mean() - value(one.world, one.policy, one.human, "per_turn")) < 5 * gains.std() / 200
    again = sample(one.world, one.policy, one.human, one.logged, one.simulator, 40_000, np.random.default_rng(0))
    assert np.array_equal(again.simulated, drawn.simulated)


# --- constructions and bounds ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(theory.FAMILIES),
    seed=st.integers(0, 10_000),
    horizon=st.integers(1, 12),
    epsilon=st.floats(0.0, LARGEST_SHIFT),
    delta=st.floats(0.0, LARGEST_SHIFT),
)
def test_shifts_are_as_ordered_and_no_gap_exceeds_its_bound(family, seed, horizon, epsilon, delta) -> None:
    one = made(family, seed, horizon, epsilon, delta)
    assert policy_shift(one.world, one.policy, one.logged, one.human) == pytest.approx([epsilon] * horizon)
    assert simulator_shift(one.world, one.policy, one.human, one.simulator) == pytest.approx([delta] * horizon)
    for training in theory.TRAININGS:
        for reward in REWARDS:
            p = theory.point(one, training, reward)
            assert (p.gap <= p.bound + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), horizon=st.integers(1, 8))
def test_bound_holds_for_distributions_without_any_order(seed, horizon) -> None:
    """Shifts that differ by state and turn, and rewards up to 3."""
    rng = np.random.default_rng(seed)
    one = made("forgetting", seed, horizon)
    world = replace(
        one.world, reward_SAX=3 * one.world.reward_SAX, terminal_S=3 * one.world.terminal_S, reward_range=3.0
    )
    policies = [rng.dirichlet(np.full(3, 0.5), (horizon, 3)) for _ in range(2)]
    users = [rng.dirichlet(np.full(3, 0.5), (horizon, 3, 3)) for _ in range(2)]
    wild = Construction(world=world, policy=policies[0], logged=policies[1], human=users[0], simulator=users[1])
    for training in theory.TRAININGS:
        for reward in REWARDS:
            p = theory.point(wild, training, reward)
            assert (p.gap <= p.bound + 1e-12).all()


def test_tight_construction_nearly_reaches_the_bound_and_others_do_not_compound() -> None:
    horizon, delta = 30, 0.001
    turn = theory.point(tight(horizon, delta=delta), "interactive", "per_turn")
    expected = np.cumsum(1 - (1 - delta) ** np.arange(1, horizon + 1))
    assert turn.gap == pytest.approx(expected) and 0.98 < turn.gap[-1] / turn.bound[-1] < 1
    end = theory.point(tight(horizon, delta=delta), "interactive", "terminal")
    assert end.gap[-1] == pytest.approx(1 - (1 - delta) ** horizon) and end.gap[-1] / end.bound[-1] > 0.98
    static = theory.point(tight(horizon, epsilon=delta), "static", "per_turn")
    assert static.gap == pytest.approx(np.cumsum(1 - (1 - delta) ** np.arange(horizon)))
    for size in (0.01, 0.4):
        flat = theory.point(echo(horizon, delta=size), "interactive", "per_turn")
        assert flat.gap == pytest.approx(size * np.arange(1, horizon + 1))
        assert theory.point(echo(horizon, delta=size), "interactive", "terminal").gap == pytest.approx([size] * horizon)
        free = theory.point(synonyms(horizon, delta=size), "interactive", "per_turn")
        assert np.abs(free.gap).max() == 0 and free.bound[-1] == pytest.approx(size * 30 * 31 / 2)


def test_calibration_and_interaction_take_away_their_share() -> None:
    one = made("persistent", epsilon=0.2, delta=0.4)
    half = one.calibrated(0.5).interactive(0.25)
    assert simulator_shift(half.world, half.policy, half.human, half.simulator) == pytest.approx([0.2] * 3)
    assert policy_shift(half.world, half.policy, half.logged, half.human) == pytest.approx([0.05] * 3)
    gone = theory.point(one.calibrated(0).interactive(0), "both", "per_turn")
    assert np.abs(gone.gap).max() < 1e-12 and gone.bound.max() < 1e-9


def test_growth_finds_the_coefficients_that_are_there() -> None:
    horizon = np.arange(1, 31)
    exact = np.stack([0.01 * horizon**2 + 0.02 * horizon, 0.03 * horizon**2])
    found = theory.growth(exact, seed=0)
    assert found["a"] == pytest.approx(0.02) and found["b"] == pytest.approx(0.01)
    assert theory.growth(exact[1:], seed=0)["slope"] == pytest.approx(2.0)
    assert theory.growth(np.stack([0.2 * horizon] * 3), seed=0)["slope"] == pytest.approx(1.0)
    flat = theory.growth(np.zeros((3, 30)), seed=0)
    assert flat["slope"] is None and flat["without_gap"] == 3


def test_experiments_are_whole_and_without_violation() -> None:
    found = theory.all_points(2, seed=1)
    checked = theory.bound_check(found)
    assert checked["violations"] == 0 and checked["points"] == 6 * 6 * 30 * (2 + 2 + 2 + 1 + 1)
    assert checked["tightest_at_longest"]["synonyms"]["per_turn"] == 0.0
    regrets = theory.regrets(2, seed=1, shifts=(0.1,))
    assert regrets["violations"] == 0 and regrets["points"] == 2 * 2 * 2 * len(theory.REGRET_HORIZONS)
    remedies = theory.remedies(2, seed=1, horizon=5)
    assert remedies["terminal"]["gap"][-1][-1] < 1e-12
    json.dumps([checked, regrets, remedies, theory.saturation(found["persistent"])], allow_nan=False)


# --- estimators --------------------------------------------------------------------------------------------------


def pairs(seed=0, dialogues=2000, **changes) -> tuple[Construction, Pairs, Pairs]:
    one = made(seed=seed, **changes)
    drawn = sample(
        one.world, one.policy, one.human, one.logged, one.simulator, dialogues, np.random.default_rng((seed, 9))
    )
    return one, Pairs.of_users(one.world, drawn), Pairs.of_policies(one.world, drawn)


def test_estimates_from_counts_are_near_the_truth_by_turn() -> None:
    one, users, policies = pairs()
    for data, truth in (
        (users, lambda m: simulator_shift(one.world, one.policy, one.human, one.simulator, m)),
        (policies, lambda m: policy_shift(one.world, one.policy, one.logged, one.human, m)),
    ):
        found = from_counts(data)
        for measure in ("tv", "kl"):
            estimate = found[f"{measure}_counts"]
            assert estimate.low < truth(measure).mean() < estimate.high
            assert [t.value for t in estimate.by_turn] == pytest.approx(truth(measure), abs=0.06)
            assert [t.turn for t in estimate.by_turn] == [1, 2, 3] and estimate.by_turn[0].count == 2000


def test_plug_ins_are_biased_upwards_and_corrections_are_not() -> None:
    errors = {"tv_counts": [], "tv_plug_in": [], "kl_counts": [], "kl_plug_in": []}
    for seed in range(25):
        one, users, _ = pairs(seed, dialogues=200, delta=0.1)
        for corrected in (True, False):
            for name, estimate in from_counts(users, corrected=corrected, seed=seed).items():
                truth = simulator_shift(one.world, one.policy, one.human, one.simulator, name[:2]).mean()
                errors[name].append(estimate.value - truth)
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["tv_plug_in"] > 0.04 and abs(mean["tv_counts"]) < 0.02
    assert mean["kl_plug_in"] > 0.04 and abs(mean["kl_counts"]) < 0.02


def test_debiased_absolute_has_the_bias_that_is_promised() -> None:
    noise = np.random.default_rng(0).normal(size=400_000)
    for z in (0.0, 0.5, 1.0, 2.0, 3.0, -1.0):
        bias = symbol_counts.debiased_absolute(noise + z).mean() - abs(z)
        assert -0.11 < bias < 0.31
    assert abs(np.abs(noise).mean()) > 0.79  # of the plug-in, at 0


def test_identical_and_disjoint_sides() -> None:
    rng = np.random.default_rng(0)
    context, real = rng.integers(2, size=(100, 2)), rng.integers(2, size=(100, 2))
    apart = Pairs(context=context, real=real, other=real + 2, contexts=2, symbols=4)
    found = from_counts(apart)
    assert found["tv_counts"].value == pytest.approx(1.0, abs=1e-3) and found["tv_counts"].high <= 1.0
    assert found["kl_counts"].value > 2.0 and math.isfinite(found["kl_counts"].high)
    assert table_classifier(apart).low > 0.85
    same = from_counts(replace(apart, other=real))
    assert same["tv_counts"].low == 0.0 and same["tv_counts"].value < 0.05
    assert table_classifier(replace(apart, other=real)).low == 0.0


def test_lower_bound_lies_below_and_says_so() -> None:
    one, users, _ = pairs(delta=0.3)
    found = table_classifier(users)
    assert found.name == "tv_lower" and "bounds nothing" in found.notes[0]
    assert 0.15 < found.low <= simulator_shift(one.world, one.policy, one.human, one.simulator).mean()
    assert len(found.by_turn) == 3


def test_coverage_experiments_count_rightly() -> None:
    found = theory_coverage.coverage(3, seed=0, dialogues=60)
    assert set(found) >= {"delta_tv_counts", "epsilon_kl_counts", "delta_tv_probabilities", "epsilon_tv_probabilities"}
    assert all(row["repetitions"] == 3 and set(row["by_shift"]) == {"0.05", "0.15", "0.3"} for row in found.values())
    below = theory_coverage.lower_bounds(4, seed=0, dialogues=60)
    assert set(below) == {"delta_table_classifier", "epsilon_table_classifier"}
    text = theory_coverage.lower_bounds(4, seed=0, dialogues=60, estimates=theory_coverage.text_estimates)
    assert set(text) == {"delta_two_sample_test"}
    curve = theory_coverage.by_dialogues((40, 80), 2, seed=0)
    assert len(curve["estimators"]["delta_tv_counts"]) == 2
    json.dumps([found, below, curve], allow_nan=False)


def test_a_share_must_reach_the_goal_together_and_at_each_size() -> None:
    row = {"share": 0.96, "repetitions": 400, "by_shift": {"0": 0.94, "0.05": 0.97, "0.15": 0.96, "0.3": 0.97}}
    assert theory_coverage.reaches(row, 0.95)  # 0.94 of 100 is not significantly less than 0.95
    assert not theory_coverage.reaches(row | {"by_shift": {**row["by_shift"], "0": 0.88}}, 0.95)
    assert not theory_coverage.reaches(row | {"share": 0.94}, 0.95)


def test_tally_tells_inside_from_outside() -> None:
    from calibrated_rl.shift.base import Estimate

    tally = theory_coverage.Tally()
    estimate = Estimate(name="x", value=0.3, low=0.2, high=0.4)
    for truth in (0.1, 0.3, 0.5):
        tally.add(estimate, truth, lower_bound=False)
    assert tally.inside == [False, True, False] and tally.summary()["bias"] == pytest.approx(0.0)
    bound = theory_coverage.Tally()
    for truth in (0.1, 0.5):
        bound.add(estimate, truth, lower_bound=True)
    assert bound.inside == [False, True]


# --- errors ------------------------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong(coin: World) -> None:
    policy, user = stationary(np.full((2, 2), 0.5), 2), stationary(np.full((2, 2, 2), 0.5), 2)
    with pytest.raises(UserError, match="at least one turn"):
        stationary([1.0], 0)
    with pytest.raises(UserError, match="policy must have shape"):
        value(coin, policy[:, :1], user, "per_turn")
    with pytest.raises(UserError, match="no probability distribution"):
        value(coin, policy * 0.9, user, "per_turn")
    with pytest.raises(UserError, match="2 turns, the user 1"):
        value(coin, policy, user[:1], "per_turn")
    with pytest.raises(UserError, match="simulator must have shape"):
        simulator_shift(coin, policy, user, user[..., :1])
    with pytest.raises(UserError, match="outside 0..1"):
        replace(coin, successor_SAX=coin.successor_SAX + 1)
    with pytest.raises(UserError, match="reward_SAX leaves"):
        replace(coin, reward_SAX=coin.reward_SAX * 2)
    with pytest.raises(UserError, match="start_S must have shape"):
        replace(coin, start_S=np.ones(1))
    with pytest.raises(UserError, match="is not possible"):
        shifted(np.array([[0.5, 0.5]]), 0.4, np.array([[0.6, 0.4]]))
    with pytest.raises(UserError, match="at most"):
        made(delta=LARGEST_SHIFT + 0.1)
    with pytest.raises(UserError, match="share"):
        made().calibrated(1.5)
    with pytest.raises(UserError, match="at least one dialogue"):
        sample(coin, policy, user, policy, user, 0, np.random.default_rng(0))
    none = np.zeros((0, 2), np.int64)
    with pytest.raises(UserError, match="no matched symbols"):
        Pairs(context=none, real=none, other=none, contexts=1, symbols=1)
    zero = np.zeros((1, 1), np.int64)
    with pytest.raises(UserError, match="real leaves"):
        Pairs(context=zero, real=zero + 1, other=zero, contexts=1, symbols=1)
    one = np.zeros((3, 1), np.int64)
    with pytest.raises(UserError, match="2 dialogues in each half"):
        table_classifier(Pairs(context=one, real=one, other=one, contexts=1, symbols=1))


def test_one_dialogue_has_a_value_and_no_interval() -> None:
    one = np.zeros((1, 2), np.int64)
    found = from_counts(Pairs(context=one, real=one, other=one, contexts=1, symbols=2))
    assert found["tv_counts"].value == 0.0 and math.isnan(found["tv_counts"].low)


def test_distance_ignores_what_cannot_happen() -> None:
    p, q = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert distance(p, q, "kl") == pytest.approx(math.log(2)) and np.isinf(distance(q, p, "kl"))
    assert distance(p, q) == 0.5


# --- the env and RLlib -------------------------------------------------------------------------------------------


def play(env, one: Construction, rng, dialogues: int) -> np.ndarray:
    """Rewards of whole dialogues in ``env``, both sides drawn from the construction's tables by what they see."""
    policy_rows = one.policy.reshape(-1, one.world.policy_symbols)
    user_rows = one.simulator.reshape(-1, one.world.user_symbols)
    rewards = []
    for n in range(dialogues):
        seen, _ = env.reset(seed=n)
        total, over = 0.0, False
        while not over:
            (agent, row), rows = next(iter(seen.items())), policy_rows if "policy" in seen else user_rows
            assert len(seen) == 1 and row.sum() == 1
            action = rng.choice(rows.shape[1], p=rows[row.argmax()])
            seen, gained, ended, _, _ = env.step({agent: action})
            total, over = total + gained.get("policy", 0.0), ended["__all__"]
        assert all(row.sum() == 0 for row in seen.values())
        rewards.append(total)
    return np.array(rewards)


@pytest.mark.parametrize("reward", REWARDS)
def test_env_rollouts_agree_with_dynamic_programming(reward) -> None:
    from research.theory.symbolic_env import SymbolicDialogue

    one = made("persistent", horizon=4, delta=0.3)
    env = SymbolicDialogue({"world": one.world, "horizon": 4, "reward": reward})
    earned = play(env, one, np.random.default_rng(1), 800)
    exact = value(one.world, one.policy, one.simulator, reward)
    assert abs(earned.mean() - exact) < 4 * earned.std() / math.sqrt(800)
    assert env.reset(seed=3)[0]["policy"].tolist() == env.reset(seed=3)[0]["policy"].tolist()
    with pytest.raises(UserError, match="at least one turn"):
        SymbolicDialogue({"world": one.world, "horizon": 0, "reward": reward})


def test_one_iteration_of_ppo_learns_and_leaves_the_simulator_alone(ray_session) -> None:
    from research.theory.symbolic_env import SIMULATOR, PPOSettings, ppo_config, train

    one = made("persistent", horizon=3, delta=0.2)
    tiny = PPOSettings(iterations=1, dialogues=30, rollouts=40, minibatch=60, epochs=2)
    with pytest.raises(UserError, match="at least one"):
        ppo_config(one.world, one.simulator, "per_turn", replace(tiny, epochs=0))
    algorithm = ppo_config(one.world, one.simulator, "per_turn", tiny).build_algo()
    try:
        algorithm.train()
        table = np.exp(algorithm.get_module(SIMULATOR).log_probabilities.numpy())
        first = [
            episode.agent_episodes["policy"].get_observations(0).argmax()
            for _ in range(4)
            for episode in algorithm.env_runner.sample(explore=True)
        ]
    finally:
        algorithm.stop()
    assert table == pytest.approx(one.simulator.reshape(table.shape), abs=1e-6)
    assert len(set(first[:10])) > 1 and first[:10] != first[10:20]  # batches do not begin in the same states
    trained = train(one.world, one.simulator, "per_turn", tiny)
    assert trained.policy.shape == (3, 6, 3) and len(trained.returns) >= 40
    assert one.world.require_policy(trained.policy) is trained.policy
    assert trained.policy != pytest.approx(np.full((3, 6, 3), 1 / 3))
