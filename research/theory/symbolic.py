"""The exact world: dialogues of symbols in which every shift and every value can be computed, not estimated.

In turn ``t = 1..H`` the policy says one of ``A`` symbols, then the user (human or simulator) one of ``X``. All
distributions depend on the history through a finite *state* and the turn: a deterministic machine moves from state
to state with each pair of symbols (``successor_SAX``). Any state machine will do ("the last two symbols", "what has
been told so far, and whether patience is lost"), so that this is a choice of what the two sides remember, not of how
the bounds come about. It makes expectations over all ``(A X)^H`` histories sums over ``H S`` states, which is exact,
because whatever is averaged here (a distance between *conditional* distributions, a reward) is the same for all
histories that lead to one state. The distance between whole *history distributions* (``history_shift``, see
docs/shift.md) is not of that kind and is not computed here.

Names of axes: S states, A policy symbols, X user symbols, H turns. A policy is ``[H, S, A]``, a user ``[H, S, A, X]``;
index 0 is turn 1. Rewards lie in ``[0, reward_range]``: one after each user turn (``per_turn``), or a single one of
the state in which the dialogue ends (``terminal``).

Shifts, with histories from the policy in question and the human (docs/shift.md):

    eps_t   = E_{h ~ human, policy}     TV(policy(.|h), logged(.|h))           or KL(policy || logged), in nats
    delta_t = E_{(h,a) ~ human, policy} TV(human(.|h,a), simulator(.|h,a))     or KL(human || simulator), in nats
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrated_rl.errors import UserError

Floats = NDArray[np.float64]
RewardKind = Literal["per_turn", "terminal"]
Measure = Literal["tv", "kl"]
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What both sides' symbols lead to, and what it is worth. Shapes and ranges are checked.

    Raises:
        UserError: a shape does not fit, a successor does not exist, the start is no distribution, or a reward lies
            outside ``[0, reward_range]``.
    """

    start_S: Floats
    """Distribution of the state before the first policy turn (the user's greeting)."""
    successor_SAX: NDArray[np.int64]
    """The state after policy symbol ``a`` and user symbol ``x`` in state ``s``."""
    reward_SAX: Floats
    """The reward after that user turn, where rewards come turn by turn."""
    terminal_S: Floats
    """The only reward, where it comes at the end: that of the state after the last user turn."""
    reward_range: float = 1.0

    def __post_init__(self) -> None:
        if self.successor_SAX.ndim != 3 or self.successor_SAX.size == 0:
            raise UserError(f"successor_SAX must be [S, A, X], not {self.successor_SAX.shape}")
        states = self.states
        shapes = {"start_S": (states,), "terminal_S": (states,), "reward_SAX": self.successor_SAX.shape}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise UserError(f"{name} must have shape {shape}, not {getattr(self, name).shape}")
        if not ((self.successor_SAX >= 0) & (self.successor_SAX < states)).all():
            raise UserError(f"successor_SAX names a state outside 0..{states - 1}")
        _require_distribution("start_S", self.start_S)
        for name in ("reward_SAX", "terminal_S"):
            rewards = getattr(self, name)
            if not ((rewards >= 0) & (rewards <= self.reward_range)).all():
                raise UserError(f"{name} leaves [0, {self.reward_range}]")

    @property
    def states(self) -> int:
        return self.successor_SAX.shape[0]

    @property
    def policy_symbols(self) -> int:
        return self.successor_SAX.shape[1]

    @property
    def user_symbols(self) -> int:
        return self.successor_SAX.shape[2]

    def require_policy(self, policy: Floats, name: str = "policy") -> Floats:
        """
        Raises:
            UserError: ``policy`` is not [H, S, A] with distributions in its rows.
        """
        return _require_rows(name, policy, (self.states, self.policy_symbols))

    def require_user(self, user: Floats, name: str = "user") -> Floats:
        """
        Raises:
            UserError: ``user`` is not [H, S, A, X] with distributions in its rows.
        """
        return _require_rows(name, user, (self.states, self.policy_symbols, self.user_symbols))


def _require_distribution(name: str, rows: Floats) -> None:
    if not (rows >= 0).all() or not (np.abs(rows.sum(axis=-1) - 1) <= _ROUNDING).all():
        raise UserError(f"{name} contains a row that is no probability distribution")


def _require_rows(name: str, table: Floats, shape: tuple[int, ...]) -> Floats:
    if table.ndim != len(shape) + 1 or table.shape[1:] != shape or not len(table):
        raise UserError(f"{name} must have shape (H, {', '.join(map(str, shape))}), not {table.shape}")
    _require_distribution(name, table)
    return table


def stationary(table: ArrayLike, horizon: int) -> Floats:
    """The same conditional distributions in every turn: ``[...]`` becomes ``[horizon, ...]``.

    Raises:
        UserError: the horizon is not at least 1.
    """
    if horizon < 1:
        raise UserError(f"a dialogue has at least one turn, not {horizon}")
    array = np.asarray(table, np.float64)
    return np.broadcast_to(array, (horizon, *array.shape))


def distance(p: Floats, q: Floats, measure: Measure = "tv") -> Floats:
    """Between the distributions in the last axis: total variation, or ``KL(p || q)`` in nats (may be infinite)."""
    if measure == "tv":
        return np.asarray(0.5 * np.abs(p - q).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return np.asarray(np.maximum(terms.sum(axis=-1), 0.0))


def state_distribution(world: World, policy: Floats, user: Floats) -> Floats:
    """[H + 1, S]: the state before each policy turn, and after the last user turn.

    Raises:
        UserError: policy and user do not fit the world or each other.
    """
    _require_pair(world, policy, user)
    horizon = len(policy)
    state_HS = np.empty((horizon + 1, world.states))
    state_HS[0] = world.start_S
    for t in range(horizon):
        joint_SAX = state_HS[t][:, None, None] * policy[t][:, :, None] * user[t]
        state_HS[t + 1] = np.bincount(world.successor_SAX.ravel(), joint_SAX.ravel(), world.states)
    return state_HS


def _require_pair(world: World, policy: Floats, user: Floats) -> None:
    world.require_policy(policy)
    world.require_user(user)
    if len(policy) != len(user):
        raise UserError(f"the policy has {len(policy)} turns, the user {len(user)}")


def _expectation(weights: Floats, values: Floats) -> Floats:
    """[H]: ``values`` averaged over all but the first axis; what has no weight does not count, though infinite."""
    product = np.where(weights > 0, weights * np.where(weights > 0, values, 0.0), 0.0)
    return np.asarray(product.reshape(len(product), -1).sum(axis=1))


def policy_shift(world: World, policy: Floats, logged: Floats, human: Floats, measure: Measure = "tv") -> Floats:
    """``eps_t`` [H]: how differently the logged policy would have continued, on the histories of ``policy``.

    Raises:
        UserError: shapes do not fit.
    """
    world.require_policy(logged, "logged")
    state_HS = state_distribution(world, policy, human)[:-1]
    return _expectation(state_HS, distance(policy, logged, measure))


def simulator_shift(world: World, policy: Floats, human: Floats, simulator: Floats, measure: Measure = "tv") -> Floats:
    """``delta_t`` [H]: how differently the simulator would have replied, on the histories of ``policy`` and human.

    Raises:
        UserError: shapes do not fit.
    """
    world.require_user(simulator, "simulator")
    state_HS = state_distribution(world, policy, human)[:-1]
    return _expectation(state_HS[:, :, None] * policy, distance(human, simulator, measure))


def prefix_values(
    world: World, policy: Floats, user: Floats, reward: RewardKind, *, histories_of: Floats | None = None
) -> Floats:
    """[H]: the value of the dialogue that ends after turn 1, 2, ..., H, with these very tables.

    Args:
        histories_of: [H, S, A], a logged policy for *static* training: its dialogues with ``user`` supply the
            histories, and on each of them ``policy`` says one turn, to which ``user`` replies. Without it the policy
            meets its own histories.

    Raises:
        UserError: shapes do not fit.
    """
    state_HS = state_distribution(world, policy if histories_of is None else histories_of, user)[:-1]
    joint_HSAX = state_HS[:, :, None, None] * world.require_policy(policy)[:, :, :, None] * user
    if reward == "terminal":
        return np.asarray(np.einsum("hsax,sax->h", joint_HSAX, world.terminal_S[world.successor_SAX]))
    return np.cumsum(np.einsum("hsax,sax->h", joint_HSAX, world.reward_SAX))


def value(
    world: World, policy: Floats, user: Floats, reward: RewardKind, *, histories_of: Floats | None = None
) -> float:
    """What the whole dialogue is worth; see ``prefix_values``."""
    return float(prefix_values(world, policy, user, reward, histories_of=histories_of)[-1])


def turn_values(world: World, policy: Floats, user: Floats, reward: RewardKind) -> Floats:
    """[H, S, A]: the value of saying ``a`` in state ``s`` at turn ``t`` and following ``policy`` from then on.

    Raises:
        UserError: shapes do not fit.
    """
    _require_pair(world, policy, user)
    return _backward(world, user, reward, policy)


def optimal_policy(world: World, user: Floats, reward: RewardKind) -> Floats:
    """[H, S, A]: a policy of the highest value with ``user``; the first of equally good symbols is said.

    Raises:
        UserError: the user's shape does not fit.
    """
    return greedy(_backward(world, world.require_user(user), reward, None))


def greedy(values_HSA: Floats) -> Floats:
    """[H, S, A]: the policy that always says the first symbol of the highest value."""
    return np.eye(values_HSA.shape[-1])[values_HSA.argmax(axis=-1)]


def _backward(world: World, user: Floats, reward: RewardKind, policy: Floats | None) -> Floats:
    """Values of turns by dynamic programming from the end; without a policy the best turn follows."""
    horizon = len(user)
    values_HSA = np.empty((horizon, world.states, world.policy_symbols))
    after_S = world.terminal_S if reward == "terminal" else np.zeros(world.states)
    gain_SAX = world.reward_SAX if reward == "per_turn" else np.zeros_like(world.reward_SAX)
    for t in reversed(range(horizon)):
        values_HSA[t] = (user[t] * (gain_SAX + after_S[world.successor_SAX])).sum(axis=-1)
        best = policy is None
        after_S = values_HSA[t].max(axis=-1) if best else (policy[t] * values_HSA[t]).sum(axis=-1)  # type: ignore[index]
    return values_HSA


@dataclass(frozen=True, kw_only=True, eq=False)
class Dialogues:
    """N dialogues sampled in a world; all arrays are [N, H]."""

    state: NDArray[np.int64]
    """Before the policy's turn."""
    said: NDArray[np.int64]
    """The policy's symbol."""
    reply: NDArray[np.int64]
    """The user's symbol."""
    logged: NDArray[np.int64]
    """What the logged policy would have said in the same state: a matched draw."""
    simulated: NDArray[np.int64]
    """What the simulator would have replied in the same state to the same policy symbol: a matched draw."""


def sample(
    world: World, policy: Floats, user: Floats, logged: Floats, simulator: Floats, count: int, rng: np.random.Generator
) -> Dialogues:
    """``count`` dialogues of ``policy`` with ``user``, with matched draws of the other policy and the other user.

    Raises:
        UserError: shapes do not fit, or ``count`` is not at least 1.
    """
    _require_pair(world, policy, user)
    _require_pair(world, logged, simulator)
    if count < 1:
        raise UserError(f"at least one dialogue is needed, not {count}")
    columns_by_turn: list[list[NDArray[np.int64]]] = []
    state = rng.choice(world.states, size=count, p=world.start_S)
    for t in range(len(policy)):
        said = _draw(policy[t][state], rng)
        reply = _draw(user[t][state, said], rng)
        columns_by_turn.append(
            [state, said, reply, _draw(logged[t][state], rng), _draw(simulator[t][state, said], rng)]
        )
        state = world.successor_SAX[state, said, reply]
    columns = (np.stack(column, axis=1) for column in zip(*columns_by_turn, strict=True))
    return Dialogues(**dict(zip(("state", "said", "reply", "logged", "simulated"), columns, strict=True)))


def _draw(probabilities: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """One symbol for each row of [N, K]."""
    below = np.cumsum(probabilities, axis=-1)
    at = rng.random((len(below), 1)) * below[:, -1:]  # the last sum may miss 1 by a rounding error
    return np.asarray((at >= below).sum(axis=-1), np.int64)
