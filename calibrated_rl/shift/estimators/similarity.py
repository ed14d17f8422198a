"""Similarity profile: how similar a simulator's behaviour is to that of human users, 0 to 100, by dimension and in
total.

In the manner of the user-simulation index (Zhou et al., "Mind the Sim2Real Gap in User Simulation for Agentic Tasks",
arXiv 2603.11245), whose dimensions of behaviour it takes over: style, disclosure, clarification, reaction to errors.
The formula is this project's, needs no judge model, and its values cannot be compared with those of that paper.

For each trait of ``traits.py`` let ``D`` be the Kolmogorov-Smirnov distance, ``max_x |F(x) - G(x)|``, between its
distributions over dialogues of human users and of the simulator, and ``D0`` the same between two halves of the human
dialogues:

    score = 100 (1 - (D - D0) / (1 - D0))

so that 100 is "as similar as other human users are" and 0 "no value in common". Both are means over random halvings
in which each side has as many users, so that what chance adds to ``D`` it adds to ``D0`` too. A dimension's score is
the mean over its traits, the total the mean over dimensions, each counting once; both are cut to 0 .. 100 where
reported.
A trait that hardly ever has its occasion on one side (fewer than ``LEAST`` dialogues) is left out and named.

Distributions are compared, not means: a simulator that says eight words in every turn differs from human users who
say four or twelve.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Positive, Seed, check_settings
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import Band, DialogueEstimator, DialogueSets, Floats, bootstrap, users_of
from calibrated_rl.shift.traits import DIMENSIONS, TRAITS, trait_tables

LEAST = 8
"""Dialogues of a side that must have a trait's occasion."""


def equal_halves(
    human: NDArray[np.int64], simulator: NDArray[np.int64], rounds: int, seed: int, name: str
) -> tuple[Floats, Floats, Floats]:
    """Weights (0 or 1) of random sets of equally many users: two disjoint ones of the human dialogues, [R, N]
    each, and one of the simulator's [R, M].

    Raises:
        UserError: fewer than 4 users on the human side.
    """
    users, simulator_users = int(human.max()) + 1, int(simulator.max()) + 1
    if users < 4:
        raise UserError(f"{name} needs dialogues of at least 4 users on the human side, not {users}")
    size = min(users // 2, simulator_users)
    first, second, third = np.zeros((rounds, users)), np.zeros((rounds, users)), np.zeros((rounds, simulator_users))
    for r in range(rounds):
        rng = np.random.default_rng((seed, 3, r))
        order = rng.permutation(users)
        first[r, order[:size]] = second[r, order[size : 2 * size]] = 1.0
        third[r, rng.permutation(simulator_users)[:size]] = 1.0
    return first[:, human], second[:, human], third[:, simulator]


def kolmogorov_smirnov(a_N: Floats, b_M: Floats, weights_a_BN: Floats, weights_b_BM: Floats) -> Floats:
    """Distance [B] between the weighted values ``a`` and ``b``; NaN are left out, without any the result is NaN."""
    is_defined = np.isfinite(a_N), np.isfinite(b_M)
    weights = []
    for weight, defined in zip((weights_a_BN, weights_b_BM), is_defined, strict=True):
        defined_weights = weight[:, defined]
        total = defined_weights.sum(axis=1, keepdims=True)
        weights.append(np.where(total > 0, defined_weights / np.where(total > 0, total, 1.0), nan))
    values = np.concatenate([a_N[is_defined[0]], b_M[is_defined[1]]])
    if not len(values) or not all(defined.any() for defined in is_defined):
        return np.full(len(weights_a_BN), nan)
    order = np.argsort(values, kind="stable")
    gap_BN = np.cumsum(np.concatenate([weights[0], -weights[1]], axis=1)[:, order], axis=1)
    last = np.append(np.diff(values[order]) > 0, True)
    return np.asarray(np.abs(gap_BN[:, last]).max(axis=1))


class Similarity(DialogueEstimator):
    """``similarity_DIMENSION`` and ``similarity_total``, 0 to 100, higher is more like human users; with
    ``differences`` also ``mean_TRAIT``, the simulator's mean minus the human users', in the trait's unit."""

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
        check_settings(config, "similarity")
        super().__init__(config.null_halvings, config.seed)
        self._kept: list[int] | None = None
        """Traits of the whole sets, while halves of them are compared: a band is of the same traits as its metric."""

    def null_bands(self, sets: DialogueSets) -> dict[str, Band]:
        human, simulator, _ = trait_tables(sets, "similarity")
        self._kept = [k for k in range(len(TRAITS)) if min(_n_defined(human, k), _n_defined(simulator, k)) >= LEAST]
        try:
            return super().null_bands(sets)
        finally:
            self._kept = None

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        human, simulator, by_goal = trait_tables(sets, "similarity")
        users = users_of(sets.human), users_of(sets.simulator)
        trait_indices = self._kept
        if trait_indices is None:
            trait_indices = [
                k for k in range(len(TRAITS)) if min(_n_defined(human, k), _n_defined(simulator, k)) >= LEAST
            ]
        if not trait_indices:
            raise UserError(f"similarity needs at least {LEAST} dialogues with user turns on each side")

        def distances(a: Floats, b: Floats, other_table: Floats = simulator) -> Floats:
            return np.stack([kolmogorov_smirnov(human[:, k], other_table[:, k], a, b) for k in trait_indices], axis=1)

        first, second, third = equal_halves(*users, self.config.rounds, self.seed, "similarity")
        chance = np.nanmean(distances(first, second, human), axis=0)
        distance = np.nanmean(distances(first, third), axis=0)
        scale = np.maximum(1 - chance, 1e-9)
        groups = {
            name: [i for i, k in enumerate(trait_indices) if TRAITS[k] in traits] for name, traits in DIMENSIONS.items()
        }
        groups = {name: members for name, members in groups.items() if members}

        def scores(distance_BK: Floats) -> Floats:
            trait_BK = 100 * (1 - (distance_BK - chance) / scale)
            dimension_scores = [trait_BK[:, members].mean(axis=1) for members in groups.values()]
            return np.stack([*dimension_scores, np.mean(dimension_scores, axis=0)], axis=1)

        resampled = bootstrap(lambda a, b: scores(distances(a, b)), users, self.seed, value=scores(distance[None])[0])
        left_out = [trait for k, trait in enumerate(TRAITS) if k not in trait_indices]
        notes = [f"disclosure by {'goals' if by_goal else 'words'}"]
        notes += [f"without {', '.join(left_out)}: too few occasions"] if left_out else []
        result = {
            f"similarity_{name}": resampled.estimate(
                f"similarity_{name}", i, far="below", maximum=100.0, notes=tuple(notes)
            )
            for i, name in enumerate([*groups, "total"])
        }
        if self.config.differences:
            result |= _differences(
                human[:, trait_indices], simulator[:, trait_indices], users, trait_indices, self.seed
            )
        return result


def _n_defined(table: Floats, column: int) -> int:
    return int(np.isfinite(table[:, column]).sum())


def _differences(
    human: Floats,
    simulator: Floats,
    users: tuple[NDArray[np.int64], NDArray[np.int64]],
    trait_indices: list[int],
    seed: int,
) -> dict[str, Estimate]:
    def mean(weights: Floats, table: Floats) -> Floats:
        is_defined = np.isfinite(table)
        total = weights @ is_defined
        return np.where(total > 0, weights @ np.where(is_defined, table, 0.0) / np.where(total > 0, total, 1.0), nan)

    resampled = bootstrap(lambda a, b: mean(b, simulator) - mean(a, human), users, seed)
    names = [f"mean_{TRAITS[k]}" for k in trait_indices]
    return {name: resampled.estimate(name, i, far="either", minimum=-np.inf) for i, name in enumerate(names)}
