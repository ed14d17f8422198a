"""Experiments in the exact world: do the estimators of ``eps_t`` and ``delta_t`` keep what they promise?

Each repetition draws a new construction of the forgetting family with a known shift, samples dialogues in it, and asks
every estimator. A two-sided one promises that its 95 % interval contains the truth; a lower bound that its ``low`` lies
below. Truth and estimate are averages over turns; intervals come from dialogues as they would in a run.

Which histories: ``delta_*`` and ``epsilon_*_counts`` are measured on those of the current policy with the human. The
estimator ``PolicyShift`` (``epsilon_*_probabilities``) works on *logged* histories, and is compared with the exact
value there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrated_rl.data.dialogue import Side, Source, Turn
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.probabilities.exact import exact_shift
from calibrated_rl.shift.probabilities.policy_shift import PolicyLogProbs, PolicyShift
from calibrated_rl.shift.two_sample.classifier import TwoSampleTest
from research.theory.symbol_counts import Pairs, from_counts, table_classifier
from research.theory.symbolic import Dialogues, Floats, policy_shift, sample, simulator_shift
from research.theory.symbolic_worlds import Construction, random_construction

SHIFTS = (0.05, 0.15, 0.3)
"""Two-sided estimators are run at these sizes in turn."""
NULL = 0.0
"""Lower bounds are run at this one as well: there, anything above 0 is wrong."""
TURNS = 3
DIALOGUES = 300
GOAL_TWO_SIDED, GOAL_LOWER = 0.90, 0.95
Estimates = dict[str, tuple[Estimate, float]]
"""Estimator to its estimate and the exact value."""


@dataclass
class Tally:
    """Results of the repetitions of one estimator."""

    inside: list[bool] = field(default_factory=list)
    """Whether the interval contained the truth; for lower bounds, whether ``low`` was below it."""
    error: list[float] = field(default_factory=list)
    width: list[float] = field(default_factory=list)

    def add(self, estimate: Estimate, truth: float, *, lower_bound: bool) -> None:
        reaches = estimate.low <= truth
        self.inside.append(reaches if lower_bound else reaches and truth <= estimate.high)
        self.error.append((estimate.low if lower_bound else estimate.value) - truth)
        self.width.append(estimate.high - estimate.low)

    def summary(self) -> dict[str, float]:
        """``share`` inside; ``bias`` and its standard error; mean interval ``width``; over ``repetitions``."""
        error = np.asarray(self.error)
        return {
            "share": float(np.mean(self.inside)),
            "bias": float(error.mean()),
            "bias_error": float(error.std() / np.sqrt(len(error))),
            "width": float(np.mean(self.width)),
            "repetitions": len(error),
        }


def _case(shift: float, seed: tuple[int, ...], dialogues: int) -> tuple[Construction, Dialogues, np.random.Generator]:
    rng = np.random.default_rng(seed)
    construction = random_construction("forgetting", rng, horizon=TURNS, epsilon=shift, delta=shift)
    sampled = sample(
        construction.world,
        construction.policy,
        construction.human,
        construction.logged,
        construction.simulator,
        dialogues,
        rng,
    )
    return construction, sampled, rng


def _truths(construction: Construction) -> dict[str, float]:
    return {
        f"{kind}_{measure}": float(by_turn.mean())
        for measure in ("tv", "kl")
        for kind, by_turn in (
            (
                "delta",
                simulator_shift(
                    construction.world, construction.policy, construction.human, construction.simulator, measure
                ),
            ),
            (
                "epsilon",
                policy_shift(construction.world, construction.policy, construction.logged, construction.human, measure),
            ),
            (
                "epsilon_on_logs",
                policy_shift(construction.world, construction.logged, construction.policy, construction.human, measure),
            ),
        )
    }


def count_estimates(construction: Construction, sampled: Dialogues, seed: int, *, plug_in: bool = False) -> Estimates:
    """The two-sided estimators that know samples only; with ``plug_in`` the plug-ins as well."""
    truths = _truths(construction)
    sides = {
        "delta": Pairs.of_users(construction.world, sampled),
        "epsilon": Pairs.of_policies(construction.world, sampled),
    }
    return {
        f"{kind}_{name}": (estimate, truths[f"{kind}_{name[:2]}"])
        for kind, pairs in sides.items()
        for corrected in ((True, False) if plug_in else (True,))
        for name, estimate in from_counts(pairs, corrected=corrected, seed=seed).items()
    }


def probability_estimates(
    construction: Construction, sampled: Dialogues, seed: int, rng: np.random.Generator
) -> Estimates:
    """The estimators that know both probabilities of what was said: ``exact_shift`` and ``PolicyShift``."""
    truths = _truths(construction)
    count = len(sampled.state)
    dialogue = [str(i) for i in np.repeat(np.arange(count), TURNS)]
    one_turn = np.ones(count * TURNS, np.int64)  # one metric over all turns: each by itself would cost as much again
    reply_index = (np.arange(TURNS), sampled.state, sampled.said, sampled.reply)
    shifts = exact_shift(
        *(_log(u, reply_index) for u in (construction.human, construction.simulator)),
        turn=one_turn,
        dialogue=dialogue,
        seed=seed,
    )
    estimates = {f"delta_{name}_probabilities": (shifts[name], truths[f"delta_{name}"]) for name in ("tv", "kl")}
    logs = sample(
        construction.world,
        construction.logged,
        construction.human,
        construction.policy,
        construction.simulator,
        count,
        rng,
    )
    logged_index = (np.arange(TURNS), logs.state, logs.said)
    data = PolicyLogProbs(
        logged=_log(construction.logged, logged_index).tolist(),
        policy=_log(construction.policy, logged_index).tolist(),
        turn=one_turn.tolist(),
        dialogue=dialogue,
    )
    of_policy = PolicyShift(PolicyShift.Config(seed=seed)).measure(data)
    for name in ("tv", "kl"):
        estimates[f"epsilon_{name}_probabilities"] = (of_policy[f"policy_{name}"], truths[f"epsilon_on_logs_{name}"])
    return estimates


def _log(table: Floats, index: tuple[Any, ...]) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(table[index]).ravel())


def lower_estimates(construction: Construction, sampled: Dialogues, seed: int) -> Estimates:
    """Lower bounds of total variation that know the symbols: the table classifier on both sides."""
    truths = _truths(construction)
    sides = {
        "delta": Pairs.of_users(construction.world, sampled),
        "epsilon": Pairs.of_policies(construction.world, sampled),
    }
    return {
        f"{kind}_table_classifier": (table_classifier(pairs, seed=seed), truths[f"{kind}_tv"])
        for kind, pairs in sides.items()
    }


def text_estimates(construction: Construction, sampled: Dialogues, seed: int) -> Estimates:
    """The lower bound that runs use, the test of ``classifier.py``, on the dialogues spelled out as words."""
    test = TwoSampleTest(TwoSampleTest.Config(null_halvings=0, seed=seed))
    return {"delta_two_sample_test": (test.measure(as_words(sampled)).tv, _truths(construction)["delta_tv"])}


def as_words(sampled: Dialogues) -> MatchedReplies:
    """The dialogues as text: each symbol is a word, the state before each policy turn is the user's last one."""
    count, turns = sampled.state.shape
    rows = [(n, t) for n in range(count) for t in range(turns)]

    def history(n: int, t: int) -> tuple[Turn, ...]:
        state, said = f"state{sampled.state[n, t]}", f"said{sampled.said[n, t]}"
        return (
            Turn(side=Side.USER, text=state, source=Source.HUMAN),
            Turn(side=Side.POLICY, text=said, source=Source.POLICY),
        )

    return MatchedReplies(
        histories=[history(n, t) for n, t in rows],
        human=[f"reply{sampled.reply[n, t]}" for n, t in rows],
        simulator=[f"reply{sampled.simulated[n, t]}" for n, t in rows],
        turn=[t + 1 for _, t in rows],
        dialogue=[str(n) for n, _ in rows],
    )


def coverage(repetitions: int, seed: int, dialogues: int = DIALOGUES) -> dict[str, dict[str, Any]]:
    """Two-sided estimators, each run ``repetitions`` times, at the sizes of ``SHIFTS`` in turn; by estimator
    what ``Tally.summary`` says, and ``by_shift`` the share at each size. Plug-ins are there for contrast."""
    tallies: dict[str, dict[float, Tally]] = {}
    for i in range(repetitions):
        shift = SHIFTS[i % len(SHIFTS)]
        construction, sampled, rng = _case(shift, (seed, 1, i), dialogues)
        estimates = count_estimates(construction, sampled, i, plug_in=True) | probability_estimates(
            construction, sampled, i, rng
        )
        tally(tallies, shift, estimates, lower_bound=False)
    return summaries(tallies)


def lower_bounds(
    repetitions: int, seed: int, dialogues: int = DIALOGUES, estimates: Callable[..., Estimates] = lower_estimates
) -> dict[str, dict[str, Any]]:
    """The lower bounds of ``estimates``, each measured ``repetitions`` times, at no shift and at the sizes of
    ``SHIFTS`` in turn."""
    tallies: dict[str, dict[float, Tally]] = {}
    sizes = (NULL, *SHIFTS)
    for i in range(repetitions):
        shift = sizes[i % len(sizes)]
        construction, sampled, _ = _case(shift, (seed, 2, i), dialogues)
        tally(tallies, shift, estimates(construction, sampled, i), lower_bound=True)
    return summaries(tallies)


def reaches(row: Mapping[str, Any], goal: float) -> bool:
    """Whether a share reaches ``goal``: over all sizes of shift together, and at none of them significantly less (95 %
    limit of a binomial share)."""
    per_shift = row["repetitions"] / len(row["by_shift"])
    slack = 1.96 * np.sqrt(goal * (1 - goal) / per_shift)
    return bool(row["share"] >= goal and min(row["by_shift"].values()) >= goal - slack)


def tally(tallies: dict[str, dict[float, Tally]], key: float, estimates: Estimates, *, lower_bound: bool) -> None:
    """Add the estimates of one repetition at the size of shift ``key``."""
    for name, (estimate, truth) in estimates.items():
        tallies.setdefault(name, {}).setdefault(key, Tally()).add(estimate, truth, lower_bound=lower_bound)


def summaries(tallies: Mapping[str, Mapping[float, Tally]]) -> dict[str, dict[str, Any]]:
    """By estimator what ``Tally.summary`` says, and ``by_shift`` the share at each size."""
    result = {}
    for name, by_shift in tallies.items():
        pooled = Tally()
        for shift_tally in by_shift.values():
            pooled.inside += shift_tally.inside
            pooled.error += shift_tally.error
            pooled.width += shift_tally.width
        shares = {f"{shift:g}": shift_tally.summary()["share"] for shift, shift_tally in sorted(by_shift.items())}
        result[name] = {**pooled.summary(), "by_shift": shares}
    return result


def by_dialogues(counts: tuple[int, ...], repetitions: int, seed: int, shift: float = 0.15) -> dict[str, Any]:
    """Bias (for lower bounds: how far below the truth) and interval width against the number of dialogues.

    Returns:
        ``dialogues``, ``shift``, and by estimator the summaries at each number.
    """
    result: dict[str, Any] = {"dialogues": list(counts), "shift": shift, "estimators": {}}
    for dialogues in counts:
        tallies: dict[str, dict[float, Tally]] = {}
        for i in range(repetitions):
            construction, sampled, rng = _case(shift, (seed, 3, i), dialogues)
            two_sided = count_estimates(construction, sampled, i, plug_in=True) | probability_estimates(
                construction, sampled, i, rng
            )
            tally(tallies, shift, two_sided, lower_bound=False)
            tally(tallies, shift, lower_estimates(construction, sampled, i), lower_bound=True)
        for name, tallies_by_shift in tallies.items():
            result["estimators"].setdefault(name, []).append(tallies_by_shift[shift].summary())
    return result
