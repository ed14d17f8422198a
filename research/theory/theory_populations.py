"""Experiments in the exact world for estimators that compare whole dialogues, and for what is scored turn by turn.

As ``theory_coverage.py``, which has the estimators of ``eps_t`` and ``delta_t``: sampled dialogues go in, the interval
must contain the exact value. Here the user leaves by saying symbol 0, so that dialogues differ in length; symbol ``x``
is the dialogue act ``x`` and is spelled with ``x + 1`` words. Exact are then, by dynamic programming over the dialogues
that still continue,

- the shares of acts and of lengths in words, ``E[turns with x] / E[turns]``, and the distribution of the number of
  turns, for Jensen-Shannon and Wasserstein distances;
- the error, the bias and F1 of the simulator's decision to end, on the human's dialogues;
- the negative log-likelihood of a human turn under the simulator;
- exploitation, the value with the simulator minus that with the human (whole dialogues, a terminal reward);
- the distance of whole histories, ``history_shift``, by enumeration of all of them.

What has no exact counterpart here is not checked: similarity and coverage are made of English words, transfer of a
ranking of policies; the tests check their order.
"""

from itertools import product
from typing import Any

import numpy as np

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.shift.base import Estimate, ratio_estimate
from calibrated_rl.shift.estimators.act_divergence import ActDivergence, jensen_shannon
from calibrated_rl.shift.estimators.history import HistoryShift
from calibrated_rl.shift.estimators.lengths import Lengths, wasserstein
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.probabilities.ending import EndingDecision, Endings
from calibrated_rl.statistics.intervals import paired_difference
from research.theory.symbolic import Dialogues, Floats, World, sample, value
from research.theory.symbolic_worlds import Construction, random_construction
from research.theory.theory_coverage import NULL, SHIFTS, Estimates, Tally, summaries, tally

LEAVE = 0
"""The user symbol that ends a dialogue."""
THRESHOLD = 1 / 3
"""Of the decision to end: with three symbols few probabilities exceed a half."""
TURNS, HISTORY_TURNS = 4, 3
"""Of a dialogue; for histories, of which there are (A X) ** turns."""
DIALOGUES, HISTORY_DIALOGUES = 200, 80


def turns_reached(world: World, policy: Floats, user: Floats) -> Floats:
    """[H, S, A, X]: probability that the dialogue reaches turn ``t`` in state ``s``, and ``a`` and ``x`` are said."""
    joint_HSAX = np.empty((len(policy), *world.successor_SAX.shape))
    continuing_S = world.start_S
    for t in range(len(policy)):
        joint_HSAX[t] = continuing_S[:, None, None] * policy[t][:, :, None] * user[t]
        stays = joint_HSAX[t].copy()
        stays[..., LEAVE] = 0.0
        continuing_S = np.bincount(world.successor_SAX.ravel(), stays.ravel(), world.states).astype(np.float64)
    return joint_HSAX


def shares_of_symbols(joint_HSAX: Floats) -> Floats:
    """[X]: share of each user symbol among all user turns."""
    counts = joint_HSAX.sum(axis=(0, 1, 2))
    return np.asarray(counts / counts.sum())


def numbers_of_turns(joint_HSAX: Floats) -> Floats:
    """[H]: probability that a dialogue has 1, 2, ..., H turns."""
    reached = joint_HSAX.sum(axis=(1, 2, 3))
    return -np.diff(np.append(reached, 0.0))


def histories(world: World, policy: Floats, user: Floats, turns: int) -> Floats:
    """[(A X) ** turns]: probability of each history of ``turns`` turns; in which state it began is not seen."""
    symbols = product(range(world.policy_symbols), range(world.user_symbols))
    state_NS = world.start_S[None, :]
    pairs = list(symbols)
    for t in range(turns):
        moved = []
        for a, x in pairs:
            weight_NS = state_NS * policy[t, :, a] * user[t, :, a, x]
            to = np.eye(world.states)[world.successor_SAX[:, a, x]]
            moved.append(weight_NS @ to)
        state_NS = np.concatenate(moved)
    return np.asarray(state_NS.sum(axis=1))


def history_distance(construction: Construction) -> float:
    """Total variation of the histories of logs and of training, at a turn drawn at random."""
    world = construction.world
    distances = [
        0.5 * np.abs(
            histories(world, construction.logged, construction.human, t)
            - histories(world, construction.policy, construction.simulator, t)
        ).sum()
        for t in range(1, len(construction.policy) + 1)
    ]  # fmt: skip
    return float(np.mean(distances))


def spelled(sampled: Dialogues, prefix: str, *, until_leave: bool) -> list[Dialogue]:
    """The dialogues as text with acts, ended by the user's ``LEAVE`` or with all turns."""
    dialogues = []
    for number, (policy_symbols, reply) in enumerate(zip(sampled.said, sampled.reply, strict=True)):
        leaves_at = np.flatnonzero(reply == LEAVE)
        count = int(leaves_at[0]) + 1 if until_leave and len(leaves_at) else len(reply)
        turns = [Turn(side=Side.POLICY, text="hello", source=Source.GREETING)]
        acts: list[list[str]] = [[]]
        for a, x in zip(policy_symbols[:count], reply[:count], strict=True):
            turns.append(Turn(side=Side.POLICY, text=f"said{a}", source=Source.POLICY))
            turns.append(Turn(side=Side.USER, text=" ".join([f"reply{x}"] * (x + 1)), source=Source.HUMAN))
            acts += [[], [f"act{x}"]]
        name = f"{prefix}{number}"
        scenario = Scenario(
            id=name, split=Split.HELD_OUT, policy_instructions="", user_instructions="", greeting="hello"
        )
        dialogues.append(
            Dialogue(
                id=name,
                task="symbols",
                scenario=scenario,
                turns=tuple(turns),
                ending="left",
                outcome=None,
                kind="log",
                annotations={"acts": acts},
            )  # fmt: skip
        )
    return dialogues


def _of_training(construction: Construction, count: int, rng: np.random.Generator) -> Dialogues:
    """Dialogues of policy and simulator."""
    return sample(
        construction.world,
        construction.policy,
        construction.simulator,
        construction.logged,
        construction.human,
        count,
        rng,
    )


def population_estimates(
    construction: Construction, sampled: Dialogues, seed: int, rng: np.random.Generator
) -> Estimates:
    """The two-sided estimators; ``sampled`` are dialogues of the policy with the human."""
    world, training = construction.world, _of_training(construction, len(sampled.state), rng)
    with_human, with_simulator = (
        turns_reached(world, construction.policy, user) for user in (construction.human, construction.simulator)
    )
    acts_human, acts_simulator = (shares_of_symbols(joint)[None] for joint in (with_human, with_simulator))
    turns_human, turns_simulator = (numbers_of_turns(joint)[None] for joint in (with_human, with_simulator))
    words, numbers = np.arange(1, world.user_symbols + 1), np.arange(1, len(construction.policy) + 1)
    truths = {
        "acts_jensen_shannon": jensen_shannon(acts_human, acts_simulator)[0],
        "wasserstein_turn_words": wasserstein(acts_human, acts_simulator, words)[0],
        "wasserstein_user_turns": wasserstein(turns_human, turns_simulator, numbers)[0],
    }
    sets = DialogueSets(
        human=spelled(sampled, "human", until_leave=True), simulator=spelled(training, "simulator", until_leave=True)
    )
    estimates = ActDivergence(ActDivergence.Config(null_halvings=0, seed=seed)).measure(sets)
    estimates |= Lengths(Lengths.Config(null_halvings=0, seed=seed)).measure(sets)
    return (
        {name: (estimates[name], float(truth)) for name, truth in truths.items()}
        | _turn_estimates(construction, sampled, with_human, seed)
        | _exploitation(construction, sampled, training)
    )


def _turn_estimates(construction: Construction, sampled: Dialogues, joint_HSAX: Floats, seed: int) -> Estimates:
    """The decision to end, and the likelihood of what the human says, on the human's dialogues."""
    turn_NH = np.broadcast_to(np.arange(sampled.state.shape[1]), sampled.state.shape)
    left_before_NH = np.cumsum(sampled.reply == LEAVE, axis=1) - (sampled.reply == LEAVE)
    is_reached = left_before_NH == 0
    reached_index = tuple(part[is_reached] for part in (turn_NH, sampled.state, sampled.said))
    names = [str(number) for number in np.nonzero(is_reached)[0]]
    leave, has_ended = construction.simulator[*reached_index, LEAVE], sampled.reply[is_reached] == LEAVE
    endings = Endings(
        probability=leave.tolist(), ended=has_ended.tolist(), turn=(reached_index[0] + 1).tolist(), dialogue=names
    )
    estimates = EndingDecision(EndingDecision.Config(threshold=THRESHOLD, seed=seed)).measure(endings)
    reached_HSA = joint_HSAX.sum(axis=-1)
    probability, outcome = construction.simulator[..., LEAVE], joint_HSAX[..., LEAVE]
    ends = probability > THRESHOLD
    gap, bins = outcome - reached_HSA * probability, np.minimum((probability * 10).astype(np.int64), 9)
    truths = {
        "ending_bias": -gap.sum() / reached_HSA.sum(),
        "ending_ece": np.abs(np.bincount(bins.ravel(), gap.ravel())).sum() / reached_HSA.sum(),
        "ending_f1": 2 * (ends * outcome).sum() / ((ends * reached_HSA).sum() + outcome.sum()),
    }
    with np.errstate(divide="ignore"):
        nll = -np.log(construction.simulator[*reached_index, sampled.reply[is_reached]])
        exact = -(joint_HSAX * np.log(construction.simulator)).sum() / joint_HSAX.sum()
    likelihood = ratio_estimate("nll_per_turn", nll, np.ones(len(nll)), reached_index[0] + 1, names, seed=seed)
    return {name: (estimates[name], float(truth)) for name, truth in truths.items()} | {
        "nll_per_turn": (likelihood, float(exact))
    }


def _exploitation(construction: Construction, sampled: Dialogues, training: Dialogues) -> Estimates:
    def returns(dialogues: Dialogues) -> dict[str, float]:
        last = construction.world.successor_SAX[dialogues.state[:, -1], dialogues.said[:, -1], dialogues.reply[:, -1]]
        return {str(i): float(reward) for i, reward in enumerate(construction.world.terminal_S[last])}

    difference = paired_difference(returns(training), returns(sampled))
    estimate = Estimate(name="exploitation", value=difference.mean, low=difference.low, high=difference.high)
    human, simulator = (
        value(construction.world, construction.policy, user, "terminal")
        for user in (construction.human, construction.simulator)
    )
    return {"exploitation": (estimate, simulator - human)}


def history_estimates(construction: Construction, sampled: Dialogues, seed: int) -> Estimates:
    """The lower bound of the distance of histories; each side has users of its own."""
    count, rng = len(sampled.state), np.random.default_rng((seed, 5))
    logs = sample(
        construction.world,
        construction.logged,
        construction.human,
        construction.policy,
        construction.simulator,
        count,
        rng,
    )
    sets = DialogueSets(
        human=spelled(logs, "human", until_leave=False),
        simulator=spelled(_of_training(construction, count, rng), "training", until_leave=False),
    )
    test = HistoryShift(HistoryShift.Config(null_halvings=0, seed=seed))
    return {"history_shift": (test.measure(sets)["history_shift_tv"], history_distance(construction))}


def _case(shift: float, seed: tuple[int, ...], turns: int, count: int) -> tuple[Construction, Dialogues, Any]:
    rng = np.random.default_rng(seed)
    construction = random_construction("forgetting", rng, horizon=turns, epsilon=shift, delta=shift)
    return (
        construction,
        sample(
            construction.world,
            construction.policy,
            construction.human,
            construction.logged,
            construction.simulator,
            count,
            rng,
        ),
        rng,
    )


def coverage(repetitions: int, seed: int) -> dict[str, dict[str, Any]]:
    """The two-sided estimators, each run ``repetitions`` times at the sizes of ``SHIFTS`` in turn; as
    ``theory_coverage.coverage``."""
    tallies: dict[str, dict[float, Tally]] = {}
    for i in range(repetitions):
        shift = SHIFTS[i % len(SHIFTS)]
        construction, sampled, rng = _case(shift, (seed, 6, i), TURNS, DIALOGUES)
        tally(tallies, shift, population_estimates(construction, sampled, i, rng), lower_bound=False)
    return summaries(tallies)


def lower_bounds(repetitions: int, seed: int) -> dict[str, dict[str, Any]]:
    """``history_shift``, run ``repetitions`` times at no shift and at the sizes of ``SHIFTS`` in turn."""
    tallies: dict[str, dict[float, Tally]] = {}
    sizes = (NULL, *SHIFTS)
    for i in range(repetitions):
        shift = sizes[i % len(sizes)]
        construction, sampled, _ = _case(shift, (seed, 7, i), HISTORY_TURNS, HISTORY_DIALOGUES)
        tally(tallies, shift, history_estimates(construction, sampled, i), lower_bound=True)
    return summaries(tallies)
