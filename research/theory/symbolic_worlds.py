"""Constructions of the exact world: random families, one that nearly reaches the bound, two that do not compound.

A construction is a world with its four conditional distributions, built so that ``TV(human, simulator)`` is the same
number for every state and turn, and likewise ``TV(policy, logged)``: then ``delta_t`` and ``eps_t`` are that number
in every turn, whatever the histories are, and what differs between families is only *what follows from a shift*.

- ``persistent``: the dialogue can be lost for good (patience ends, the user leaves in spirit). A single early
  deviation then costs all later turns, so that a constant shift compounds.
- ``forgetting``: random machines. States mix within a few turns, a deviation is soon forgotten.
- ``tight``: the persistent family's extreme, where every deviation costs everything that is left.
- ``echo``: a reply earns its reward and changes nothing else. ``synonyms``: the shift is between replies that mean the
  same. In both a *constant* shift does not compound, and in the second it costs nothing.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibrated_rl.errors import UserError
from research.theory.symbolic import Floats, World, distance, stationary

Family = Literal["persistent", "forgetting"]
LARGEST_SHIFT = 0.5
"""Up to here every family can place a shift of the wanted size in every state."""
LOSING_SHARE = (0.6, 1.0)
"""In the persistent family, how much of the moved probability goes to the symbol that loses the dialogue."""
HAZARD = 0.002
"""There, at most how often the unshifted side says that symbol in any case. Large hazards would end dialogues before a
shift can compound: ``H * HAZARD`` is to be small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Construction:
    """A world and all who speak in it: policies are [H, S, A], users [H, S, A, X]."""

    world: World
    policy: Floats
    logged: Floats
    human: Floats
    simulator: Floats

    @property
    def horizon(self) -> int:
        return len(self.policy)

    def calibrated(self, share: float) -> "Construction":
        """The simulator moved towards the human so that ``share`` of its shift is left (in each row)."""
        return replace(self, simulator=_mixed(self.human, self.simulator, share))

    def interactive(self, share: float) -> "Construction":
        """The logged policy moved towards the current one so that ``share`` of ``eps_t`` is left."""
        return replace(self, logged=_mixed(self.policy, self.logged, share))


def _mixed(base: Floats, other: Floats, share: float) -> Floats:
    if not 0 <= share <= 1:
        raise UserError(f"a share lies in [0, 1], not {share}")
    return np.asarray((1 - share) * base + share * other)


def shifted(base: Floats, size: float, toward: Floats) -> Floats:
    """``base`` with total variation ``size`` to it in every row (last axis), moved in the direction of ``toward``.

    Raises:
        UserError: ``toward`` is nearer than that in some row.
    """
    full_distance = distance(base, toward)
    if not 0 <= size <= full_distance.min() + 1e-12:
        raise UserError(
            f"a shift of {size} is not possible: the least distance to 'toward' is {full_distance.min():.3f}"
        )
    if size == 0:
        return base
    share = np.minimum(size / full_distance, 1.0)[..., None]
    return np.asarray((1 - share) * base + share * toward)


def random_construction(
    family: Family,
    rng: np.random.Generator,
    *,
    horizon: int,
    epsilon: float,
    delta: float,
    states: int = 3,
    policy_symbols: int = 3,
    user_symbols: int = 3,
) -> Construction:
    """A random construction with ``eps_t = epsilon`` and ``delta_t = delta`` in every turn; rewards in [0, 1].

    The same generator state gives the same world and the same directions of shift for all sizes and horizons.
    The persistent family has ``states`` states before the dialogue is lost and as many after.

    Raises:
        UserError: a size above ``LARGEST_SHIFT``, or fewer than two symbols a side.
    """
    if max(epsilon, delta) > LARGEST_SHIFT or min(policy_symbols, user_symbols) < 2:
        raise UserError(f"shifts must be at most {LARGEST_SHIFT}, and either side needs two symbols")
    build = _persistent if family == "persistent" else _forgetting
    world, policy_SA, logged_SA, human_SAX, simulator_SAX = build(rng, states, policy_symbols, user_symbols)
    policy_SA, logged_SA = _apart(policy_SA, logged_SA, epsilon, swap=rng.random() < 0.5)
    human_SAX, simulator_SAX = _apart(human_SAX, simulator_SAX, delta, swap=rng.random() < 0.5)
    return Construction(
        world=world,
        policy=stationary(policy_SA, horizon),
        logged=stationary(logged_SA, horizon),
        human=stationary(human_SAX, horizon),
        simulator=stationary(simulator_SAX, horizon),
    )


_Tables = tuple[World, Floats, Floats, Floats, Floats]
"""World; policy and a direction to shift it in [S, A]; human and a direction to shift it in [S, A, X]."""


def _apart(base: Floats, toward: Floats, size: float, *, swap: bool) -> tuple[Floats, Floats]:
    """The two sides, ``size`` apart. Swapped, the first is the one that was moved: training may be rosier than
    reality as well as grimmer."""
    moved = shifted(base, size, toward)
    return (moved, base) if swap else (base, moved)


def _persistent(rng: np.random.Generator, states: int, policy_symbols: int, user_symbols: int) -> _Tables:
    """States ``0..states - 1`` are alive, the others lost. The last symbol of either side loses the dialogue."""
    shape = (2 * states, policy_symbols, user_symbols)
    alive = np.arange(2 * states) < states
    successor = rng.integers(states, size=shape)
    successor[~alive] += states
    successor[:states, -1, :] += states
    successor[:states, :-1, -1] += states

    def reward(size: tuple[int, ...]) -> Floats:
        high, low = rng.uniform(0.7, 1.0, size), rng.uniform(0.0, 0.2, size)
        return np.where(alive.reshape(-1, *[1] * (len(size) - 1)), high, low)

    world = World(
        start_S=np.concatenate([rng.dirichlet(np.ones(states)), np.zeros(states)]),
        successor_SAX=successor,
        reward_SAX=reward(shape),
        terminal_S=reward((2 * states,)),
    )
    policy, logged = _with_losing_symbol(rng, shape[:2])
    return world, policy, logged, *_with_losing_symbol(rng, shape)


def _with_losing_symbol(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Rows that rarely say the last symbol, and rows that often do."""

    def rows(low: float, high: float) -> Floats:
        losing = rng.uniform(low, high, shape[:-1])[..., None]
        other_symbols = rng.dirichlet(np.ones(shape[-1] - 1), shape[:-1])
        return np.concatenate([(1 - losing) * other_symbols, losing], axis=-1)

    return rows(0.0, HAZARD), rows(*LOSING_SHARE)


def _forgetting(rng: np.random.Generator, states: int, policy_symbols: int, user_symbols: int) -> _Tables:
    shape = (states, policy_symbols, user_symbols)
    world = World(
        start_S=rng.dirichlet(np.ones(states)),
        successor_SAX=rng.integers(states, size=shape),
        reward_SAX=rng.random(shape),
        terminal_S=rng.random(states),
    )
    policy = rng.dirichlet(np.ones(policy_symbols), shape[:1])
    human = rng.dirichlet(np.ones(user_symbols), shape[:2])
    return world, policy, _rarer(rng, policy), human, _rarer(rng, human)


def _rarer(rng: np.random.Generator, rows: Floats) -> Floats:
    """In each row all probability on one random symbol that is not the most frequent: at least 1/2 away."""
    score = rng.random(rows.shape)
    np.put_along_axis(score, rows.argmax(axis=-1)[..., None], -1.0, axis=-1)
    return np.eye(rows.shape[-1])[score.argmax(axis=-1)]


def tight(horizon: int, *, epsilon: float = 0.0, delta: float = 0.0) -> Construction:
    """Nearly reaches the bound: who deviates once loses the full reward of all later turns.

    Two states, alive and lost; symbol 1 of either side loses the dialogue, and its own turn's reward with it. Policy
    and human never say it, the logged policy does with probability ``epsilon``, the simulator with ``delta``. With
    ``gap = sum_t 1 - (1 - delta)^t`` the interactive gap falls short of ``delta H (H + 1) / 2`` by terms in ``delta^2``
    alone; the terminal one is ``1 - (1 - delta)^H`` against ``H delta``.
    """
    successor = np.array([[[0, 1], [1, 1]], [[1, 1], [1, 1]]])
    alive = np.array([1.0, 0.0])
    world = World(start_S=alive, successor_SAX=successor, reward_SAX=alive[successor], terminal_S=alive)
    return _two_symbols(world, horizon, epsilon, delta)


def echo(horizon: int, *, delta: float) -> Construction:
    """A constant shift that does not compound: each turn the right reply earns 1, and nothing is remembered but the
    last reply. The gap is ``H delta`` turn by turn and ``delta`` at the end, for every H."""
    successor = np.broadcast_to(np.array([0, 1]), (2, 2, 2)).copy()
    is_right = np.array([1.0, 0.0])
    world = World(start_S=is_right, successor_SAX=successor, reward_SAX=is_right[successor], terminal_S=is_right)
    return _two_symbols(world, horizon, 0.0, delta)


def synonyms(horizon: int, *, delta: float) -> Construction:
    """A constant shift that costs nothing: the two replies mean the same. The gap is 0 for every size and H."""
    tight_world = tight(1).world
    successor = tight_world.successor_SAX.copy()
    successor[:, :, 1] = successor[:, :, 0]
    alive = tight_world.terminal_S
    world = World(start_S=alive, successor_SAX=successor, reward_SAX=alive[successor], terminal_S=alive)
    return _two_symbols(world, horizon, 0.0, delta)


def _two_symbols(world: World, horizon: int, epsilon: float, delta: float) -> Construction:
    """Policy and human always say symbol 0; the logged policy and the simulator say 1 now and then."""

    def rows(shape: tuple[int, ...], share: float) -> Floats:
        return np.broadcast_to(np.array([1 - share, share]), shape)

    return Construction(
        world=world,
        policy=stationary(rows((2, 2), 0.0), horizon),
        logged=stationary(rows((2, 2), epsilon), horizon),
        human=stationary(rows((2, 2, 2), 0.0), horizon),
        simulator=stationary(rows((2, 2, 2), delta), horizon),
    )
