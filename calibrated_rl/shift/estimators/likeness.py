"""Human-likeness profile: how like people a simulator behaves, 0 to 100, by dimension and in total.

In the manner of the user-simulation index (Zhou et al., "Mind the Sim2Real Gap in User Simulation for Agentic Tasks",
arXiv 2603.11245), whose dimensions of behaviour it takes over: style, disclosure, clarification, reaction to errors.
The formula is this project's own, needs no judge model, and its figures cannot be set beside those of that paper.

For each trait of ``traits.py`` let ``D`` be the Kolmogorov-Smirnov distance, ``max_x |F(x) - G(x)|``, between its
distributions over dialogues of people and of the simulator, and ``D0`` the same between two halves of the people:

    score = 100 (1 - (D - D0) / (1 - D0))

so that 100 is "as like people as other people are" and 0 "no value in common". Both are means over random halvings
in which each side has as many people, so that what chance adds to ``D`` it adds to ``D0`` too. A dimension's score is
the mean over its traits, the total the mean over dimensions, each counting once; both are cut to 0 .. 100 where
reported.
A trait that hardly ever has its occasion on one side (fewer than ``LEAST`` dialogues) is left out and named.

Distributions are compared, not means: a simulator that says eight words in every turn is not like people who say
four or twelve.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Positive, Seed, check_settings
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import Band, DialogueEstimator, DialogueSets, Floats, bootstrap, people_of
from calibrated_rl.shift.traits import DIMENSIONS, TRAITS, trait_tables

LEAST = 8
"""Dialogues of a side that must have a trait's occasion."""


def equal_halves(
    human: NDArray[np.int64], simulator: NDArray[np.int64], rounds: int, seed: int, name: str
) -> tuple[Floats, Floats, Floats]:
    """Weights (0 or 1) of random sets of equally many people: two disjoint ones of the human dialogues, [R, N]
    each, and one of the simulator's [R, M].

    Raises:
        UserError: fewer than 4 people on the human side.
    """
    people, others = int(human.max()) + 1, int(simulator.max()) + 1
    if people < 4:
        raise UserError(f"{name} needs dialogues of at least 4 people on the human side, not {people}")
    size = min(people // 2, others)
    first, second, third = np.zeros((rounds, people)), np.zeros((rounds, people)), np.zeros((rounds, others))
    for r in range(rounds):
        rng = np.random.default_rng((seed, 3, r))
        order = rng.permutation(people)
        first[r, order[:size]] = second[r, order[size : 2 * size]] = 1.0
        third[r, rng.permutation(others)[:size]] = 1.0
    return first[:, human], second[:, human], third[:, simulator]


def kolmogorov_smirnov(a_N: Floats, b_M: Floats, weights_a_BN: Floats, weights_b_BM: Floats) -> Floats:
    """Distance [B] between the weighted values ``a`` and ``b``; NaN are left out, without any the result is NaN."""
    known = np.isfinite(a_N), np.isfinite(b_M)
    weights = []
    for weight, own in zip((weights_a_BN, weights_b_BM), known, strict=True):
        kept = weight[:, own]
        total = kept.sum(axis=1, keepdims=True)
        weights.append(np.where(total > 0, kept / np.where(total > 0, total, 1.0), nan))
    values = np.concatenate([a_N[known[0]], b_M[known[1]]])
    if not len(values) or not all(own.any() for own in known):
        return np.full(len(weights_a_BN), nan)
    order = np.argsort(values, kind="stable")
    gap_BN = np.cumsum(np.concatenate([weights[0], -weights[1]], axis=1)[:, order], axis=1)
    last = np.append(np.diff(values[order]) > 0, True)
    return np.asarray(np.abs(gap_BN[:, last]).max(axis=1))


class Likeness(DialogueEstimator):
    """``likeness_DIMENSION`` and ``likeness_total``, 0 to 100, higher is more like people; with ``differences`` also
    ``mean_TRAIT``, the simulator's mean minus the people's, in the trait's unit."""

    @dataclass(frozen=True)
    class Config:
        rounds: Positive = 20
        """Random halvings that the human-versus-human distance is a mean over."""
        differences: bool = True
        """Also the difference in means of each trait, with its human-versus-human band."""
        null_halvings: NotNegative = 5
        """Random halvings of the human dialogues for the null band; 0 leaves it out."""
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "likeness")
        super().__init__(config.null_halvings, config.seed)
        self._kept: list[int] | None = None
        """Traits of the whole sets, while halves of them are compared: a band is of the same traits as its figure."""

    def null_bands(self, sets: DialogueSets) -> dict[str, Band]:
        human, simulator, _ = trait_tables(sets, "likeness")
        self._kept = [k for k in range(len(TRAITS)) if min(_known(human, k), _known(simulator, k)) >= LEAST]
        try:
            return super().null_bands(sets)
        finally:
            self._kept = None

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        human, simulator, by_goal = trait_tables(sets, "likeness")
        people = people_of(sets.human), people_of(sets.simulator)
        kept = self._kept
        if kept is None:
            kept = [k for k in range(len(TRAITS)) if min(_known(human, k), _known(simulator, k)) >= LEAST]
        if not kept:
            raise UserError(f"likeness needs at least {LEAST} dialogues with user turns on each side")

        def distances(a: Floats, b: Floats, right: Floats = simulator) -> Floats:
            return np.stack([kolmogorov_smirnov(human[:, k], right[:, k], a, b) for k in kept], axis=1)

        first, second, third = equal_halves(*people, self.config.rounds, self.seed, "likeness")
        chance = np.nanmean(distances(first, second, human), axis=0)
        found = np.nanmean(distances(first, third), axis=0)
        scale = np.maximum(1 - chance, 1e-9)
        groups = {
            name: [i for i, k in enumerate(kept) if TRAITS[k] in traits] for name, traits in DIMENSIONS.items()
        }
        groups = {name: own for name, own in groups.items() if own}

        def scores(distance_BK: Floats) -> Floats:
            trait_BK = 100 * (1 - (distance_BK - chance) / scale)
            parts = [trait_BK[:, own].mean(axis=1) for own in groups.values()]
            return np.stack([*parts, np.mean(parts, axis=0)], axis=1)

        measured = bootstrap(
            lambda a, b: scores(distances(a, b)), people, self.seed, value=scores(found[None])[0]
        )
        left_out = [trait for k, trait in enumerate(TRAITS) if k not in kept]
        notes = [f"disclosure by {'goals' if by_goal else 'words'}"]
        notes += [f"without {', '.join(left_out)}: too few occasions"] if left_out else []
        result = {
            f"likeness_{name}": measured.estimate(f"likeness_{name}", i, far="below", most=100.0, notes=tuple(notes))
            for i, name in enumerate([*groups, "total"])
        }
        if self.config.differences:
            result |= _differences(human[:, kept], simulator[:, kept], people, kept, self.seed)
        return result


def _known(table: Floats, column: int) -> int:
    return int(np.isfinite(table[:, column]).sum())


def _differences(
    human: Floats,
    simulator: Floats,
    people: tuple[NDArray[np.int64], NDArray[np.int64]],
    kept: list[int],
    seed: int,
) -> dict[str, Estimate]:
    def mean(weights: Floats, table: Floats) -> Floats:
        known = np.isfinite(table)
        total = weights @ known
        return np.where(total > 0, weights @ np.where(known, table, 0.0) / np.where(total > 0, total, 1.0), nan)

    measured = bootstrap(lambda a, b: mean(b, simulator) - mean(a, human), people, seed)
    names = [f"mean_{TRAITS[k]}" for k in kept]
    return {name: measured.estimate(name, i, far="either", least=-np.inf) for i, name in enumerate(names)}
